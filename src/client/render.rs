//! What a person sees: the only file that prints.
//!
//! Results go to standard output, words about them to standard error, so that a pipe gets results
//! only. A reader that closes the pipe early is no error: Rust ignores SIGPIPE, and it stays ignored,
//! because a daemon that closes the socket in the middle of an upload must not kill this process
//! before it has read why; the broken pipe arrives here as an error and ends the process quietly.

use std::io::{self, Write};
use std::sync::Once;

use rlhfd_protocol::control::Table;
use serde::Serialize;

use crate::errors::ClientError;
use crate::format;

/// Prints a text; whatever a file or a model wrote into it, it sends the terminal no commands.
pub fn text(text: &str) -> Result<(), ClientError> {
    raw(&format::harmless(text))
}

fn raw(text: &str) -> Result<(), ClientError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(closed)
}

/// Prints one line.
pub fn line(line: &str) -> Result<(), ClientError> {
    text(&format!("{line}\n"))
}

/// Prints an answer as indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), ClientError> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| ClientError::Local { what: "write JSON", source: e.into() })?;
    line(&json)
}

/// Prints an answer as one line of JSON.
pub fn json_line<T: Serialize>(value: &T) -> Result<(), ClientError> {
    let json = serde_json::to_string(value)
        .map_err(|e| ClientError::Local { what: "write JSON", source: e.into() })?;
    line(&json)
}

/// Prints a table, or a sentence where it has no row.
pub fn table(headers: &[&str], rows: &[Vec<String>], none: &str) -> Result<(), ClientError> {
    if rows.is_empty() { line(none) } else { text(&format::table(headers, rows)) }
}

/// Prints a result as it came, all columns.
pub fn result(result: &Table) -> Result<(), ClientError> {
    let headers: Vec<&str> = result.columns.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> =
        result.rows.iter().map(|row| row.iter().map(format::value).collect()).collect();
    text(&format::table(&headers, &rows))?;
    note_cut(result);
    Ok(())
}

/// Prints a result as CSV.
pub fn csv(result: &Table) -> Result<(), ClientError> {
    let header: Vec<String> =
        result.columns.iter().map(|c| format::csv_field(&c.as_str().into())).collect();
    let mut csv = header.join(",") + "\n";
    for row in &result.rows {
        csv.push_str(&row.iter().map(format::csv_field).collect::<Vec<_>>().join(","));
        csv.push('\n');
    }
    raw(&csv)?;
    note_cut(result);
    Ok(())
}

/// Says on standard error that a result is not all.
pub fn note_cut(result: &Table) {
    if result.truncated {
        warn(&format!(
            "only the first {} are shown; narrow the statement, or raise --rows-max",
            format::counted(result.rows.len() as u64, "row")
        ));
    }
}

/// Clears the terminal and prints, for `--watch`.
pub fn screen(screen: &str) -> Result<(), ClientError> {
    raw(&format!("\x1b[H\x1b[2J{}", format::harmless(screen)))
}

/// An error, on standard error.
pub fn complain(error: &ClientError) {
    stderr(&format!("rlhfctl: {error}\n"));
}

/// A word that is no error, on standard error, once.
pub fn warn_once(once: &Once, what: &str) {
    once.call_once(|| warn(what));
}

/// A word that is no error, on standard error.
pub fn warn(what: &str) {
    stderr(&format!("rlhfctl: {what}\n"));
}

/// A line of progress, on standard error.
pub fn progress(line: &str) {
    stderr(&format!("{line}\n"));
}

fn stderr(text: &str) {
    // Where even standard error is closed, there is nobody left to tell.
    let _ = io::stderr().lock().write_all(format::harmless(text).as_bytes());
}

fn closed(source: io::Error) -> ClientError {
    ClientError::Local { what: "write to standard output", source }
}
