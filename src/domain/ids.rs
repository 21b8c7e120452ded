//! Identities: one newtype a table, so that one number never passes for another, and the names that
//! people give to runs, sets, jobs, arms and scorers.
//!
//! In: row numbers and text. Out: typed ids and checked names. May not enter: anything that looks a
//! row up.

use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);

        impl $name {
            /// The row's number.
            #[must_use]
            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

ids! {
    /// A row of `runs`.
    RunId,
    /// A row of `prompt_sets`.
    SetId,
    /// A row of `uploads`.
    UploadId,
    /// A row of `prompts`.
    PromptId,
    /// A row of `preference_sets`.
    PreferenceSetId,
    /// A row of `offline_preferences`.
    OfflineId,
    /// A row of `training_jobs`.
    JobId,
    /// A row of `units`.
    UnitId,
    /// A row of `attempts`.
    AttemptId,
    /// A row of `leases`.
    LeaseId,
    /// A row of `devices`.
    DeviceId,
    /// A row of `responses`.
    ResponseId,
    /// A row of `scorers`.
    ScorerId,
    /// A row of `preferences`.
    PreferenceId,
    /// A row of `checkpoints`.
    CheckpointId,
    /// A row of `events`.
    EventId,
}

/// The name of a run, set, job, arm or scorer: it becomes part of folder names and unit keys, so it
/// holds lower-case letters, digits, `.`, `_` and `-` only, begins with a letter or digit, and has at
/// most 64 characters. That also keeps `..` and `/` out of every path built from one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no name for a {what}: use 1 to 64 of a-z, 0-9, `.`, `_`, `-`, beginning with a \
     letter or digit"
)]
pub struct NameError {
    /// What was to be named.
    pub what: &'static str,
    /// The text, at most its first 80 characters.
    pub found: String,
}

impl Name {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks a text once, at the edge. `what` names the thing in the error.
    pub fn parse(text: &str, what: &'static str) -> Result<Self, NameError> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fits = (1..=Self::BYTES_MAX).contains(&text.len())
            && text.bytes().next().is_some_and(good)
            && text.bytes().all(|b| good(b) || matches!(b, b'.' | b'_' | b'-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError { what, found: text.chars().take(80).collect() })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for bad in ["", ".", "..", "../x", "a/b", "A", "-x", ".x", "a b", "ä", &"a".repeat(65)] {
            assert!(Name::parse(bad, "set").is_err(), "{bad}");
        }
        for good in ["a", "0", "main", "demo-2", "a.b_c", &"a".repeat(64)] {
            assert_eq!(Name::parse(good, "set").unwrap().as_str(), good);
        }
    }
}
