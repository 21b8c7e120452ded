//! Raw configuration: what the text said, each key with its line. Checks nothing but TOML itself.
//!
//! In: text. Out: a tree of plain values with line numbers. May not enter: the meaning of a key.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::Findings;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// From 1; `None` for an override that stands in no file.
    pub(crate) line: Option<usize>,
    pub(crate) value: RawValue,
}

/// What TOML knows, less what no knob takes.
#[derive(Debug, Clone)]
pub(crate) enum RawValue {
    Text(String),
    Whole(i64),
    Real(f64),
    Switch(bool),
    List(Vec<Given>),
    Table(RawTable),
    /// A date, or a number that fits no type; its text.
    Other(String),
}

/// Keys in alphabetical order; the line of each is its value's.
pub(crate) type RawTable = BTreeMap<String, Given>;

impl RawValue {
    /// The value as a person would recognise it in a complaint.
    pub(crate) fn shown(&self) -> String {
        const SHOWN_CHARS_MAX: usize = 60;
        let text = match self {
            RawValue::Text(text) => format!("{text:?}"),
            RawValue::Whole(number) => number.to_string(),
            RawValue::Real(number) => number.to_string(),
            RawValue::Switch(on) => on.to_string(),
            RawValue::List(items) => format!("a list of {}", items.len()),
            RawValue::Table(_) => "a table".to_owned(),
            RawValue::Other(text) => text.clone(),
        };
        match text.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Reads `text`; whatever is no TOML becomes a finding, and the rest is still read.
pub(crate) fn read(text: &str, findings: &mut Findings) -> RawTable {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map(|span| lines.at(span.start));
        let what = error.message().lines().next().unwrap_or("unreadable").to_owned();
        findings.add(line, "", format!("this is no TOML: {what}"));
    }
    convert_table(table.get_ref(), &lines)
}

/// One value as `--set` gives it: TOML where it reads as TOML, else a bare word (`loss=cdpo`).
pub(crate) fn read_override(text: &str) -> Given {
    let mut findings = Findings::default();
    let table = read(&format!("v = {text}"), &mut findings);
    let value = match table.into_iter().next() {
        Some((key, given)) if key == "v" && findings.is_empty() => given.value,
        _ => RawValue::Text(text.to_owned()),
    };
    Given { line: None, value }
}

fn convert_table(table: &DeTable<'_>, lines: &Lines) -> RawTable {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        let line = Some(lines.at(key.span().start));
        (key.get_ref().to_string(), Given { line, value: convert(value.get_ref(), lines) })
    };
    table.iter().map(entry).collect()
}

fn convert(value: &DeValue<'_>, lines: &Lines) -> RawValue {
    match value {
        DeValue::String(text) => RawValue::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(whole) => RawValue::Whole(whole),
            Err(_) => RawValue::Other(number.to_string()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(real) => RawValue::Real(real),
            Err(_) => RawValue::Other(number.to_string()),
        },
        DeValue::Boolean(on) => RawValue::Switch(*on),
        DeValue::Datetime(time) => RawValue::Other(time.to_string()),
        DeValue::Array(items) => RawValue::List(
            items
                .iter()
                .map(|item| Given {
                    line: Some(lines.at(item.span().start)),
                    value: convert(item.get_ref(), lines),
                })
                .collect(),
        ),
        DeValue::Table(table) => RawValue::Table(convert_table(table, lines)),
    }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(std::iter::once(0).chain(ends.map(|(end, _)| end + 1)).collect())
    }

    /// The line of byte `offset`, from 1.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_know_their_lines() {
        let mut findings = Findings::default();
        let table = read("# one\n[a]\nb = 1\n\nc.d = 'x'\n", &mut findings);
        assert!(findings.is_empty());
        let RawValue::Table(a) = &table["a"].value else { panic!("a is a table") };
        assert_eq!((table["a"].line, a["b"].line, a["c"].line), (Some(2), Some(3), Some(5)));
    }

    #[test]
    fn every_syntax_error_is_told_and_the_rest_is_read() {
        let mut findings = Findings::default();
        let table = read("a = \nb = 2\nc = = 3\n", &mut findings);
        let problems = findings.finish(Some(())).unwrap_err().0;
        assert!(problems.len() >= 2, "{problems:?}");
        assert_eq!(problems[0].line, Some(1));
        assert!(matches!(table["b"].value, RawValue::Whole(2)));
    }

    #[test]
    fn overrides_take_bare_words() {
        assert!(matches!(read_override("cdpo").value, RawValue::Text(word) if word == "cdpo"));
        assert!(matches!(read_override("0.2").value, RawValue::Real(_)));
        assert!(matches!(read_override("true").value, RawValue::Switch(true)));
    }
}
