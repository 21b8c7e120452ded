//! From raw keys to one value a knob: spelling, types and ranges, by the rows of `knobs`.
//!
//! In: a raw table and a section's rows. Out: an [`Entry`] with a value for every knob (the default
//! where the key is absent or wrong) and findings. May not enter: rules between knobs (`checked`).

use crate::arm::ArmPolicy;
use crate::hours::Hours;
use crate::knobs::{Bound, Kind, Knob, SECTIONS, Section};
use crate::problem::Findings;
use crate::raw::{Given, RawTable, RawValue};
use crate::spelling::nearest;

/// A knob's value, in its knob's range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Count(u64),
    Number(f64),
    Switch(bool),
    /// A word, name, path or job.
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
    /// Files with their weights.
    Files(Vec<(String, f64)>),
}

/// The values of one table of the text.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) section: &'static Section,
    /// Where the table begins; `None` where the text has none.
    pub(crate) line: Option<usize>,
    values: Vec<(&'static Knob, Option<usize>, Option<Value>)>,
}

/// A list in a configuration is short.
const LIST_MAX: usize = 64;
/// The word for every linear map of a block.
pub(crate) const ALL_LINEAR: &str = "all-linear";
/// Beyond it an epoch is one file many times over.
const FILE_WEIGHT_MAX: f64 = 1000.0;
const NAME_CHARS_MAX: usize = 64;
const PATH_BYTES_MAX: usize = 4096;

impl Entry {
    /// Every knob at its default.
    pub(crate) fn defaults(section: &'static Section) -> Self {
        let values = section.knobs.iter().map(|knob| (knob, None, default_value(knob))).collect();
        Self { section, line: None, values }
    }

    /// Reads `table`. A key in `inner` is a table of its own and is left to the caller.
    pub(crate) fn read(
        section: &'static Section,
        table: &RawTable,
        line: Option<usize>,
        inner: &[&str],
        findings: &mut Findings,
    ) -> Self {
        let mut entry = Self::defaults(section);
        entry.line = line;
        for (key, given) in table {
            if !inner.contains(&key.as_str()) {
                entry.set(key, given, findings);
            }
        }
        entry
    }

    /// Sets one knob from what the text gives.
    pub(crate) fn set(&mut self, key: &str, given: &Given, findings: &mut Findings) {
        let section = self.section;
        let Some((knob, line, value)) = self.values.iter_mut().find(|row| row.0.key == key) else {
            findings.add(given.line, dotted(section, key), unknown_key(section, key));
            return;
        };
        *line = given.line;
        match accept(knob.kind, &given.value) {
            Some(accepted) => *value = Some(accepted),
            None => {
                let what = format!("is {}, but must be {}", given.value.shown(), wanted(knob.kind));
                findings.add(given.line, dotted(section, key), what);
            }
        }
    }

    /// The value of `key`: what the text gives, else the default, else none.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|row| row.0.key == key)?.2.as_ref()
    }

    /// The line of `key`, or that of the table.
    pub(crate) fn line_of(&self, key: &str) -> Option<usize> {
        self.values.iter().find(|row| row.0.key == key).and_then(|row| row.1).or(self.line)
    }

    /// Complains of every required key that the text lacks, and takes its example meanwhile.
    pub(crate) fn require(&mut self, findings: &mut Findings) {
        for (knob, line, value) in &mut self.values {
            if knob.is_required() && value.is_none() {
                if line.is_none() {
                    let what = format!("is missing: {}, as in {}", knob.doc, knob.example);
                    findings.add(self.line, dotted(self.section, knob.key), what);
                }
                *value = literal(knob.kind, knob.example);
            }
        }
    }
}

/// `section.key`.
pub(crate) fn dotted(section: &Section, key: &str) -> String {
    format!("{}.{key}", section.name)
}

/// What to say of a key that `section` does not have.
fn unknown_key(section: &Section, key: &str) -> String {
    if let Some(home) = SECTIONS.iter().find(|other| other.knob(key).is_some()) {
        return format!("is unknown here; it belongs in [{}]", home.name);
    }
    match nearest(key, section.knobs.iter().map(|knob| knob.key)) {
        Some(right) => format!("is unknown; did you mean `{right}`?"),
        None => "is unknown".to_owned(),
    }
}

/// The value of `key` in the first entry whose section has it; where none of them has, the default
/// in the section that does.
pub(crate) fn value_among(key: &str, entries: [&Entry; 2]) -> Option<Value> {
    match entries.into_iter().find(|entry| entry.section.knob(key).is_some()) {
        Some(entry) => entry.value(key).cloned(),
        None => SECTIONS.iter().find_map(|section| section.knob(key)).and_then(default_value),
    }
}

/// The row's default.
fn default_value(knob: &Knob) -> Option<Value> {
    literal(knob.kind, knob.default)
}

fn literal(kind: Kind, text: &str) -> Option<Value> {
    if text.is_empty() { None } else { accept(kind, &crate::raw::read_override(text).value) }
}

/// `value` as `kind` takes it; `None` where it does not.
fn accept(kind: Kind, value: &RawValue) -> Option<Value> {
    match (kind, value) {
        (Kind::Count { low, high }, RawValue::Whole(number)) => u64::try_from(*number)
            .ok()
            .filter(|number| (low..=high).contains(number))
            .map(Value::Count),
        (Kind::Number { low, high }, given) => number(given, low, high).map(Value::Number),
        (Kind::Switch, RawValue::Switch(on)) => Some(Value::Switch(*on)),
        (Kind::Word(words), RawValue::Text(text)) => {
            words.contains(&text.as_str()).then(|| Value::Text(text.clone()))
        }
        (Kind::Name, RawValue::Text(text)) => is_name(text).then(|| Value::Text(text.clone())),
        (Kind::Path, RawValue::Text(text)) => is_path(text).then(|| Value::Text(text.clone())),
        (Kind::Data, RawValue::List(items)) => files(items),
        (Kind::Job, RawValue::Text(text)) => {
            let job = ["reward/", "preference/"].iter().find_map(|kind| text.strip_prefix(kind));
            job.is_some_and(is_name).then(|| Value::Text(text.clone()))
        }
        (Kind::Start, RawValue::Text(text)) => {
            let job = text.strip_prefix("sft/").is_some_and(is_set_name);
            (job || text == "policy").then(|| Value::Text(text.clone()))
        }
        (Kind::Policy, RawValue::Text(text)) => {
            ArmPolicy::parse(text).map(|_| Value::Text(text.clone()))
        }
        (Kind::Numbers { low, high }, RawValue::List(items)) => numbers(items, low, high),
        (Kind::Modules, RawValue::Text(text)) if text == ALL_LINEAR => {
            Some(Value::Text(text.clone()))
        }
        (Kind::Modules, RawValue::List(items)) => modules(items),
        (Kind::Sets, RawValue::List(items)) => sets(items),
        (Kind::Devices, RawValue::Text(text)) if text == "auto" => Some(Value::Text(text.clone())),
        (Kind::Devices, RawValue::List(items)) => devices(items),
        (Kind::Hours, RawValue::List(items)) => hours(items),
        _ => None,
    }
}

fn number(value: &RawValue, low: Bound, high: Bound) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "no knob's range goes near 2^52")]
    let number = match value {
        RawValue::Whole(whole) => *whole as f64,
        RawValue::Real(real) => *real,
        _ => return None,
    };
    let above = match low {
        Bound::At(end) => number >= end,
        Bound::Past(end) => number > end,
        Bound::Open => true,
    };
    let below = match high {
        Bound::At(end) => number <= end,
        Bound::Past(end) => number < end,
        Bound::Open => true,
    };
    (number.is_finite() && above && below).then_some(number)
}

fn numbers(items: &[Given], low: Bound, high: Bound) -> Option<Value> {
    let mut list = Vec::new();
    for item in items {
        let next = number(&item.value, low, high)?;
        if list.contains(&next) {
            return None;
        }
        list.push(next);
    }
    (1..=LIST_MAX).contains(&list.len()).then_some(Value::Numbers(list))
}

/// Names of modules, none twice.
fn modules(items: &[Given]) -> Option<Value> {
    let mut list: Vec<String> = Vec::new();
    for item in items {
        match &item.value {
            RawValue::Text(text) if is_name(text) && !list.contains(text) => {
                list.push(text.clone());
            }
            _ => return None,
        }
    }
    (1..=LIST_MAX).contains(&list.len()).then_some(Value::Texts(list))
}

/// Names as uploads give them to their sets, none twice.
fn sets(items: &[Given]) -> Option<Value> {
    let mut list: Vec<String> = Vec::new();
    for item in items {
        let RawValue::Text(text) = &item.value else { return None };
        if !is_set_name(text) || list.contains(text) {
            return None;
        }
        list.push(text.clone());
    }
    (list.len() <= LIST_MAX).then_some(Value::Texts(list))
}

/// A name as uploads give it to their sets and jobs.
pub(crate) fn is_set_name(text: &str) -> bool {
    is_name(text) && !text.chars().any(|c| c.is_ascii_uppercase())
}

/// Paths, none twice, each alone or in a table with its weight.
fn files(items: &[Given]) -> Option<Value> {
    let mut list: Vec<(String, f64)> = Vec::new();
    for item in items {
        let (path, weight) = file(&item.value)?;
        if !is_path(path) || list.iter().any(|(known, _)| known == path) {
            return None;
        }
        list.push((path.to_owned(), weight));
    }
    (list.len() <= LIST_MAX).then_some(Value::Files(list))
}

fn file(value: &RawValue) -> Option<(&str, f64)> {
    let table = match value {
        RawValue::Text(path) => return Some((path, 1.0)),
        RawValue::Table(table) => table,
        _ => return None,
    };
    let RawValue::Text(path) = &table.get("file")?.value else { return None };
    let weight = match table.get("weight") {
        Some(given) => number(&given.value, Bound::Past(0.0), Bound::At(FILE_WEIGHT_MAX))?,
        None => 1.0,
    };
    let known = |key: &String| key == "file" || key == "weight";
    table.keys().all(known).then_some((path, weight))
}

/// Names of devices, none twice; "cpu" stands alone.
fn devices(items: &[Given]) -> Option<Value> {
    let mut list: Vec<String> = Vec::new();
    for item in items {
        let next = match &item.value {
            RawValue::Whole(index) if (0..1024).contains(index) => index.to_string(),
            RawValue::Text(text) if text == "cpu" || is_name(text) => text.clone(),
            _ => return None,
        };
        if list.contains(&next) {
            return None;
        }
        list.push(next);
    }
    let cpu_among_others = list.len() > 1 && list.iter().any(|name| name == "cpu");
    let fits = (1..=LIST_MAX).contains(&list.len()) && !cpu_among_others;
    fits.then_some(Value::Texts(list))
}

fn hours(items: &[Given]) -> Option<Value> {
    let text = |item: &Given| match &item.value {
        RawValue::Text(text) => Hours::parse(text).map(|_| text.clone()),
        _ => None,
    };
    let list = items.iter().map(text).collect::<Option<Vec<_>>>()?;
    (list.len() <= LIST_MAX).then_some(Value::Texts(list))
}

/// Whether `text` may become a file's name.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= NAME_CHARS_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && text.len() <= PATH_BYTES_MAX && !text.chars().any(char::is_control)
}

/// What `kind` takes, in words.
pub(crate) fn wanted(kind: Kind) -> String {
    match kind {
        Kind::Count { low, high } => format!("a whole number from {low} to {high}"),
        Kind::Number { low, high } => format!("a number{}", range(low, high)),
        Kind::Switch => "true or false".to_owned(),
        Kind::Word(words) => {
            let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            quoted.join(" or ")
        }
        Kind::Name => "a name of at most 64 letters, digits, `-`, `_` and `.`, \
                       beginning with a letter or digit"
            .to_owned(),
        Kind::Path => "a path, in quotes".to_owned(),
        Kind::Data => "a list of different paths, each in quotes, or with its weight as \
                       { file = \"PATH\", weight = 2.0 }"
            .to_owned(),
        Kind::Job => {
            "\"reward/NAME\" or \"preference/NAME\", NAME being the training job's".to_owned()
        }
        Kind::Start => "\"policy\" or \"sft/NAME\", NAME being the training job's".to_owned(),
        Kind::Policy => "\"current\", \"previous\", \"initial\", or a checkpoint of this run, as \
                         \"iteration-0002\" or \"sft-NAME\""
            .to_owned(),
        Kind::Numbers { low, high } => {
            format!("a list of different numbers, each{}", range(low, high))
        }
        Kind::Modules => format!(
            "\"{ALL_LINEAR}\", or a list of different module names, as [\"q_proj\", \"v_proj\"]"
        ),
        Kind::Sets => "a list of different names, each of at most 64 of a-z, 0-9, `.`, `_`, `-`, \
                       beginning with a letter or digit"
            .to_owned(),
        Kind::Devices => {
            "\"auto\", [\"cpu\"], or a list of different GPU indices or UUIDs".to_owned()
        }
        Kind::Hours => "a list of hours of the day in UTC, as [\"22:00-06:00\"], or []".to_owned(),
    }
}

fn range(low: Bound, high: Bound) -> String {
    let low = match low {
        Bound::At(end) => format!(" from {end}"),
        Bound::Past(end) => format!(" above {end}"),
        Bound::Open => String::new(),
    };
    let high = match high {
        Bound::At(end) => format!(" to {end}"),
        Bound::Past(end) => format!(" to below {end}"),
        Bound::Open => String::new(),
    };
    format!("{low}{high}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_example_is_taken_by_its_own_row() {
        for section in SECTIONS {
            for knob in section.knobs {
                for text in [knob.default, knob.example].into_iter().filter(|t| !t.is_empty()) {
                    assert!(literal(knob.kind, text).is_some(), "[{}] {}", section.name, knob.key);
                }
            }
        }
    }

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["main", "t0.7", "a-b_c", "1"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
