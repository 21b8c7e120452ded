//! The bridge between a knob's value and a plain field, in both directions.
//!
//! In: values that `values` let through. Out: typed fields, and values again for the frozen text.
//! `section!` writes both directions for a struct whose field names are its keys.

use std::path::{Path, PathBuf};

use crate::values::{ALL_LINEAR, Value};

/// A type that a knob's value can become.
pub(crate) trait Setting: Sized {
    /// The field; `None` where the row in `knobs` promises another type than the field has.
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self>;
    /// The value; `None` where the key would be absent.
    fn value(&self) -> Option<Value>;
}

/// A path as the configuration gives it, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As written: this goes into the frozen configuration.
    pub given: String,
    /// Taken from the configuration's folder where it is relative.
    pub path: PathBuf,
}

impl Setting for Place {
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self> {
        let given = String::of(value, base_dir)?;
        let path = base_dir.join(&given);
        Some(Self { given, path })
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Text(self.given.clone()))
    }
}

impl Setting for String {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Text(self.clone()))
    }
}

impl Setting for u64 {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Count(count)) => Some(*count),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Count(*self))
    }
}

impl Setting for u32 {
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self> {
        u64::of(value, base_dir).and_then(|count| u32::try_from(count).ok())
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Count(u64::from(*self)))
    }
}

impl Setting for f64 {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Number(*self))
    }
}

impl Setting for bool {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Switch(on)) => Some(*on),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Switch(*self))
    }
}

impl Setting for Vec<f64> {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Numbers(numbers)) => Some(numbers.clone()),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Numbers(self.clone()))
    }
}

/// A file of training data.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// Where it lies.
    pub place: Place,
    /// How often each of its lines is taken.
    pub weight: f64,
}

impl Setting for Vec<DataFile> {
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self> {
        let Some(Value::Files(files)) = value else { return None };
        let file = |(given, weight): &(String, f64)| DataFile {
            place: Place { given: given.clone(), path: base_dir.join(given) },
            weight: *weight,
        };
        Some(files.iter().map(file).collect())
    }

    fn value(&self) -> Option<Value> {
        let file = |file: &DataFile| (file.place.given.clone(), file.weight);
        Some(Value::Files(self.iter().map(file).collect()))
    }
}

/// What a run begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunStart {
    /// `[run] policy` itself.
    Policy,
    /// What the supervised fine-tuning of this name makes of it.
    SftJob(String),
}

impl RunStart {
    /// The supervised fine-tuning that it begins with.
    #[must_use]
    pub fn job(&self) -> Option<&str> {
        match self {
            Self::Policy => None,
            Self::SftJob(name) => Some(name),
        }
    }
}

impl Setting for RunStart {
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self> {
        let text = String::of(value, base_dir)?;
        Some(match text.strip_prefix("sft/") {
            Some(name) => Self::SftJob(name.to_owned()),
            None => Self::Policy,
        })
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Text(match self {
            Self::Policy => "policy".to_owned(),
            Self::SftJob(name) => format!("sft/{name}"),
        }))
    }
}

/// Which linear maps of a model get an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    /// Every one of every block.
    AllLinear,
    /// Those whose name is one of these, or ends in a dot and one of these.
    Named(Vec<String>),
}

impl LoraTargets {
    /// Whether this module gets an adapter, by peft's rule: its name is a target, or ends in a dot
    /// and a target.
    #[must_use]
    pub fn adapts(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Named(names) => names.iter().any(|target| names_module(target, module)),
        }
    }

    /// The first target that is the name of none of these modules.
    #[must_use]
    pub fn unmatched(&self, modules: &[String]) -> Option<&str> {
        let Self::Named(names) = self else { return None };
        let nothing = |target: &&String| !modules.iter().any(|module| names_module(target, module));
        names.iter().find(nothing).map(String::as_str)
    }
}

fn names_module(target: &str, module: &str) -> bool {
    module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Setting for LoraTargets {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Text(text)) if text == ALL_LINEAR => Some(Self::AllLinear),
            Some(Value::Texts(names)) => Some(Self::Named(names.clone())),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(match self {
            Self::AllLinear => Value::Text(ALL_LINEAR.to_owned()),
            Self::Named(names) => Value::Texts(names.clone()),
        })
    }
}

impl Setting for Vec<String> {
    fn of(value: Option<&Value>, _: &Path) -> Option<Self> {
        match value {
            Some(Value::Texts(texts)) => Some(texts.clone()),
            _ => None,
        }
    }

    fn value(&self) -> Option<Value> {
        Some(Value::Texts(self.clone()))
    }
}

impl<T: Setting> Setting for Option<T> {
    fn of(value: Option<&Value>, base_dir: &Path) -> Option<Self> {
        match value {
            None => Some(None),
            given => T::of(given, base_dir).map(Some),
        }
    }

    fn value(&self) -> Option<Value> {
        self.as_ref().and_then(Setting::value)
    }
}

/// An enum that is a word in the text.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$about])* $variant,)+ }

        impl $name {
            /// The word in configurations.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl $crate::setting::Setting for $name {
            fn of(value: Option<&$crate::values::Value>, _: &std::path::Path) -> Option<Self> {
                match value {
                    Some($crate::values::Value::Text(text)) => match text.as_str() {
                        $($word => Some(Self::$variant),)+
                        _ => None,
                    },
                    _ => None,
                }
            }

            fn value(&self) -> Option<$crate::values::Value> {
                Some($crate::values::Value::Text(self.label().to_owned()))
            }
        }
    };
}

/// A struct whose field names are its section's keys.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name { $($(#[$about])* pub $field: $type,)+ }

        impl $name {
            /// From the values of its table, or of `fallback` for a key that the table's rows lack;
            /// a key of neither has its default.
            pub(crate) fn of(
                entry: &$crate::values::Entry,
                fallback: &$crate::values::Entry,
                base_dir: &std::path::Path,
            ) -> Option<Self> {
                Some(Self {
                    $($field: {
                        let value = $crate::values::value_among(stringify!($field), [entry, fallback]);
                        $crate::setting::Setting::of(value.as_ref(), base_dir)?
                    },)+
                })
            }

            /// Its keys and values, in the order of the fields.
            pub(crate) fn values(&self) -> Vec<(&'static str, Option<$crate::values::Value>)> {
                vec![$((stringify!($field), $crate::setting::Setting::value(&self.$field)),)+]
            }
        }
    };
}

pub(crate) use {section, words};
