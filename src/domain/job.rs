//! Training jobs: what is trained beside the iterations, and what it makes.
//!
//! In: words and names. Out: `JobKind`, and the names under which a job's units, folders and checkpoint
//! stand. May not enter: data, losses, folders.

use std::fmt;

use crate::checkpoint::CheckpointKind;
use crate::work::WorkKind;
use crate::{Name, UnknownWord};

/// What a training job makes, in the order of the workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobKind {
    /// A policy, by supervised fine-tuning.
    Sft,
    /// A reward model.
    Reward,
    /// A preference model.
    Preference,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Sft, Self::Reward, Self::Preference];

    /// The word of rows, paths and commands.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Reward => "reward",
            Self::Preference => "preference",
        }
    }

    /// The kind of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|kind| kind.label() == word).ok_or_else(|| UnknownWord {
            what: "kind of training job",
            found: word.to_owned(),
            known: "sft, reward, preference",
        })
    }

    /// The work of its train unit.
    #[must_use]
    pub const fn work(self) -> WorkKind {
        match self {
            Self::Sft => WorkKind::TrainSft,
            Self::Reward => WorkKind::TrainReward,
            Self::Preference => WorkKind::TrainPreference,
        }
    }

    /// What its checkpoint is.
    #[must_use]
    pub const fn makes(self) -> CheckpointKind {
        match self {
            Self::Sft => CheckpointKind::Policy,
            Self::Reward => CheckpointKind::Reward,
            Self::Preference => CheckpointKind::Preference,
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A job as people name it: `reward/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobName {
    /// What it makes.
    pub kind: JobKind,
    /// Its name among the jobs of its kind.
    pub name: Name,
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// What a job's units, folder and checkpoint are called after: its name, and, where earlier jobs of
/// this name ended without a checkpoint, its number behind a `~`, which no name holds. So nothing that
/// they left stands in its way, and all of it stays to be looked at.
#[must_use]
pub fn job_slug(name: &str, number: u32) -> String {
    if number < 2 { name.to_owned() } else { format!("{name}~{number}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_keeps_its_word_and_trains() {
        for kind in JobKind::ALL {
            assert_eq!(JobKind::parse(kind.label()).unwrap(), kind);
            assert!(kind.work().trains());
        }
        assert!(JobKind::parse("dpo").is_err());
    }

    #[test]
    fn a_second_job_of_a_name_stands_apart_from_every_name() {
        assert_eq!(job_slug("main", 1), "main");
        assert_eq!(job_slug("main", 2), "main~2");
        assert!(Name::parse(&job_slug("main", 2), "job").is_err());
    }
}
