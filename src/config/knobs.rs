//! Knobs: one row a knob. The rows feed the parser's checks, the commented sample in `configs/`
//! and the documentation, so that a default or a range is written down once.
//!
//! In: nothing. Out: rows in flow order. A new knob is one row here and one field in `sections`.

mod daemon;
mod flow;
mod train;

pub(crate) use daemon::{CONTROL, DEVICES, SCHEDULER, STORE, WORKER};
pub(crate) use flow::{ARMS, EVALUATE, GATE, GENERATE, LABEL, PAIR, PROMPTS, RUN, SCORERS};
pub(crate) use train::{PREFERENCE, REWARD, SFT, TRAIN};

/// What a knob takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number in a closed range.
    Count {
        /// The smallest that is taken.
        low: u64,
        /// The largest.
        high: u64,
    },
    /// A finite number in a range.
    Number {
        /// The lower end.
        low: Bound,
        /// The upper end.
        high: Bound,
    },
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A name that may become a file's name: letters, digits, `-`, `_`, `.`; at most 64 of them.
    Name,
    /// A path; a relative one is meant from the configuration's folder.
    Path,
    /// Files of data: paths, none twice, or tables of a `file` and its `weight`; the list may be empty.
    Data,
    /// A training job's checkpoint, as `reward/NAME` or `preference/NAME`.
    Job,
    /// What a run begins with: `policy`, or a training job's checkpoint, as `sft/NAME`.
    Start,
    /// The policy that an arm samples from: a word, or a checkpoint's name.
    Policy,
    /// A list of numbers, none twice, at least one.
    Numbers {
        /// The lower end of each.
        low: Bound,
        /// The upper end of each.
        high: Bound,
    },
    /// `"all-linear"`, or a list of module names, none twice, at least one.
    Modules,
    /// A list of names of sets, none twice; it may be empty.
    Sets,
    /// `"auto"`, or a list of device names: `"cpu"`, an index, or a GPU's UUID.
    Devices,
    /// A list of hours of the day in UTC, as `"22:00-06:00"`; it may be empty.
    Hours,
}

/// One end of a range of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// The end itself is taken.
    At(f64),
    /// Everything on the inner side of it, but not the end itself.
    Past(f64),
    /// No end on this side.
    Open,
}

/// One knob.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knob {
    /// The key.
    pub key: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The default as TOML; empty where leaving the key out means something of its own.
    pub default: &'static str,
    /// What leaving it out means where there is no default; empty for a required key.
    pub unset: &'static str,
    /// Shown in the sample where there is no default.
    pub example: &'static str,
    /// What one of it is; empty for words and bare numbers.
    pub unit: &'static str,
    /// What it does, and what gets worse at each end.
    pub doc: &'static str,
    /// Where the default comes from.
    pub source: &'static str,
}

impl Knob {
    /// A row with a default.
    const fn new(key: &'static str, kind: Kind, default: &'static str) -> Self {
        Self { key, kind, default, unset: "", example: "", unit: "", doc: "", source: "" }
    }

    /// A row without a default, and what leaving the key out means.
    const fn unset(
        key: &'static str,
        kind: Kind,
        unset: &'static str,
        example: &'static str,
    ) -> Self {
        Self { key, kind, default: "", unset, example, unit: "", doc: "", source: "" }
    }

    /// A row that every configuration must have.
    const fn required(key: &'static str, kind: Kind, example: &'static str) -> Self {
        Self::unset(key, kind, "", example)
    }

    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    const fn source(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }

    /// Whether every configuration must have it.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.default.is_empty() && self.unset.is_empty()
    }
}

/// A table of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its name, dotted for a table inside another.
    pub name: &'static str,
    /// Whether it stands any number of times (`[[name]]`).
    pub repeated: bool,
    /// What the section is for; for a repeated one, what its absence means.
    pub doc: &'static str,
    /// Whether its values shape what an iteration computes: those are frozen with the iteration,
    /// while the others describe this machine and apply at the daemon's next start.
    pub frozen: bool,
    /// Its knobs, in the order of the documentation.
    pub knobs: &'static [Knob],
}

impl Section {
    /// The row of `key`.
    #[must_use]
    pub fn knob(&self, key: &str) -> Option<&'static Knob> {
        self.knobs.iter().find(|knob| knob.key == key)
    }
}

/// Every section: the run, then the machine, then the stages in flow order.
pub static SECTIONS: [&Section; 18] = [
    &flow::RUN,
    &daemon::CONTROL,
    &daemon::STORE,
    &daemon::DEVICES,
    &daemon::SCHEDULER,
    &daemon::WORKER,
    &flow::PROMPTS,
    &flow::GENERATE,
    &flow::ARMS,
    &flow::LABEL,
    &flow::SCORERS,
    &flow::PAIR,
    &train::TRAIN,
    &flow::EVALUATE,
    &flow::GATE,
    &train::SFT,
    &train::REWARD,
    &train::PREFERENCE,
];

const fn count(low: u64, high: u64) -> Kind {
    Kind::Count { low, high }
}

const ABOVE_ZERO: Kind = Kind::Number { low: Bound::Past(0.0), high: Bound::Open };
const NOT_NEGATIVE: Kind = Kind::Number { low: Bound::At(0.0), high: Bound::Open };
const SHARE: Kind = Kind::Number { low: Bound::At(0.0), high: Bound::At(1.0) };
const BELOW_ONE: Kind = Kind::Number { low: Bound::At(0.0), high: Bound::Past(1.0) };
/// Weights and penalties: far below what could make a finite score infinite.
const FACTOR_MAX: Bound = Bound::At(1e6);
/// A temperature; 0 is greedy.
const TEMPERATURE: (Bound, Bound) = (Bound::At(0.0), Bound::At(10.0));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole_and_stands_once() {
        for (index, section) in SECTIONS.into_iter().enumerate() {
            assert!(!section.doc.is_empty(), "[{}] says nothing of itself", section.name);
            assert!(SECTIONS[..index].iter().all(|other| other.name != section.name));
            for (row, knob) in section.knobs.iter().enumerate() {
                let name = format!("{}.{}", section.name, knob.key);
                assert!(section.knobs[..row].iter().all(|other| other.key != knob.key), "{name}");
                assert!(!knob.doc.is_empty() && !knob.source.is_empty(), "{name} is undocumented");
                assert!(knob.default.is_empty() || knob.unset.is_empty(), "{name}");
                assert!(!knob.default.is_empty() || !knob.example.is_empty(), "{name}");
                assert!(!knob.doc.ends_with('.') || knob.doc.contains(". "), "{name}");
            }
        }
    }
}
