//! What can be wrong with a configuration, told all at once.
//!
//! In: findings from every step of reading. Out: errors whose text names line, key, what was found
//! and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line it stands in, from 1; `None` where something is missing or was an override.
    pub line: Option<usize>,
    /// The key as `section.key`, or the section.
    pub key: String,
    /// What is wrong and what would be right: one sentence without a full stop.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(out, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(out, "{}: ", self.key)?;
        }
        write!(out, "{}", self.what)
    }
}

/// All that is wrong with one text, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{problem}")?;
        }
        Ok(())
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "the configuration {path} cannot be read: {source}\n\
         try: name another with --config, or start from the commented configs/rlhfd.toml"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is far larger than any configuration.
    #[error("the configuration {path} is larger than {max_bytes} bytes\ntry: name the right file")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The ceiling.
        max_bytes: u64,
    },
    /// The file is no text.
    #[error("the configuration {path} is not UTF-8 text (byte {offset})\ntry: save it as UTF-8")]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is none.
        offset: usize,
    },
    /// The text is wrong, in one place or in many.
    #[error("the configuration {path} is wrong:\n{problems}")]
    Wrong {
        /// The file, or what it is called where the text came from elsewhere.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Problems,
    },
}

/// Collects problems while reading goes on.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Problem>);

/// Nobody reads more than this many complaints.
const PROBLEMS_MAX: usize = 100;

impl Findings {
    pub(crate) fn add(&mut self, line: Option<usize>, key: impl Into<String>, what: String) {
        if self.0.len() < PROBLEMS_MAX {
            self.0.push(Problem { line, key: key.into(), what });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value` where nothing was found wrong.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        self.0.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Problems(self.0)),
        }
    }
}
