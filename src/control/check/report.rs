//! The report of `check`: findings in the order in which they were made.
//!
//! In: findings. Out: lines. May not enter: how they were found.

use std::io::{self, Write};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// As it should be.
    Well,
    /// It works, and may not be what was meant.
    Warn,
    /// A run cannot begin, or would fail.
    Bad,
}

impl Level {
    /// The word of answers.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// Findings so far.
#[derive(Debug, Default)]
pub(crate) struct Report(pub(crate) Vec<(Level, &'static str, String)>);

impl Report {
    pub(crate) fn well(&mut self, about: &'static str, what: String) {
        self.0.push((Level::Well, about, what));
    }

    pub(crate) fn warn(&mut self, about: &'static str, what: String) {
        self.0.push((Level::Warn, about, what));
    }

    pub(crate) fn bad(&mut self, about: &'static str, what: String) {
        self.0.push((Level::Bad, about, what));
    }

    /// Whether nothing stands in a run's way.
    pub(crate) fn is_well(&self) -> bool {
        self.count(Level::Bad) == 0
    }

    fn count(&self, wanted: Level) -> usize {
        self.0.iter().filter(|(level, _, _)| *level == wanted).count()
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for (level, about, what) in &self.0 {
            let word = match level {
                Level::Well => "ok   ",
                Level::Warn => "warn ",
                Level::Bad => "BAD  ",
            };
            let mut lines = what.lines();
            writeln!(out, "{word} {about:13}  {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(out, "{:21}{line}", "")?;
            }
        }
        let (bad, warn) = (self.count(Level::Bad), self.count(Level::Warn));
        writeln!(out, "\n{bad} wrong, {warn} to look at")
    }
}
