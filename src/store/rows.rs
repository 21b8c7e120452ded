//! Small conversions between rows and values that every module needs.
//!
//! In and out: numbers and texts of SQLite. May not enter: queries.

use std::collections::BTreeMap;

use rlhfd_domain::limits;

use crate::error::{Result, StoreError};

/// A count of SQL as a number that is never below 0.
pub(crate) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A count for SQL. Nothing that we count comes near the end of an i64.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A row bound for LIMIT.
pub(crate) fn limit(rows: u32) -> i64 {
    i64::from(rows.min(limits::LIST_ROWS_MAX))
}

/// A message as it is kept: bounded.
pub(crate) fn message(text: &str) -> String {
    text.chars().take(limits::MESSAGE_CHARS_MAX).collect()
}

/// `NotFound` where a row is missing.
pub(crate) fn found<T>(row: Option<T>, what: &'static str, name: impl ToString) -> Result<T> {
    row.ok_or_else(|| StoreError::NotFound { what, name: name.to_string() })
}

/// How often each word occurs, as one line: `template 3, over_long 1`.
pub(crate) fn tally<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(word, n)| format!("{word} {n}")).collect();
    parts.join(", ")
}
