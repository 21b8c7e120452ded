//! Checkpoints: their kinds and names.
//!
//! In: words and numbers. Out: `CheckpointKind` and names. May not enter: folders, weights.

use crate::UnknownWord;
use crate::ids::Name;

/// What a checkpoint is in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// The policy that the run began with.
    Initial,
    /// The reference, where it is not the initial policy.
    Reference,
    /// What an iteration trained.
    Policy,
    /// A reward model.
    Reward,
    /// A preference model.
    Preference,
}

impl CheckpointKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Initial, Self::Reference, Self::Policy, Self::Reward, Self::Preference];

    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Reference => "reference",
            Self::Policy => "policy",
            Self::Reward => "reward",
            Self::Preference => "preference",
        }
    }

    /// The kind of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|k| k.label() == word).ok_or_else(|| UnknownWord {
            what: "checkpoint kind",
            found: word.to_owned(),
            known: "initial, reference, policy, reward, preference",
        })
    }
}

/// The name of what an iteration trains: `iteration-0001`.
#[must_use]
pub fn iteration_name(iteration: u32) -> String {
    format!("iteration-{iteration:04}")
}

/// The name of what a reward training makes: `reward-NAME`.
#[must_use]
pub fn reward_name(job: &Name) -> String {
    format!("reward-{job}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_iterations_do() {
        assert!(iteration_name(2) < iteration_name(10));
        assert_eq!(reward_name(&Name::parse("short", "job").unwrap()), "reward-short");
        for kind in CheckpointKind::ALL {
            assert_eq!(CheckpointKind::parse(kind.label()).unwrap(), kind);
        }
    }
}
