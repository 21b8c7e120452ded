//! Checkpoints: their kinds and names.
//!
//! In: words and numbers. Out: `CheckpointKind`, `PolicyChoice` and names. May not enter: folders, weights.

use crate::UnknownWord;
use crate::job::JobKind;

/// What a checkpoint is in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// What the policy that the run begins with is trained from, where a training job makes that one.
    Base,
    /// The policy that the run began with.
    Initial,
    /// The reference, where it is not the initial policy.
    Reference,
    /// What an iteration, or a supervised fine-tuning, trained.
    Policy,
    /// A reward model.
    Reward,
    /// A preference model.
    Preference,
}

impl CheckpointKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Base, Self::Initial, Self::Reference, Self::Policy, Self::Reward, Self::Preference];

    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Initial => "initial",
            Self::Reference => "reference",
            Self::Policy => "policy",
            Self::Reward => "reward",
            Self::Preference => "preference",
        }
    }

    /// Whether it writes responses in the loop: what a run began with, and what was trained from it.
    #[must_use]
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::Initial | Self::Policy)
    }

    /// The kind of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|k| k.label() == word).ok_or_else(|| UnknownWord {
            what: "checkpoint kind",
            found: word.to_owned(),
            known: "base, initial, reference, policy, reward, preference",
        })
    }
}

/// Which policy of a run is meant, before its row is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyChoice {
    /// The head.
    Current,
    /// The policy before the head in its line; the initial one where the head is that.
    Previous,
    /// The policy that the run began with.
    Initial,
    /// The one of this name.
    Named(String),
}

/// The name of what an iteration trains: `iteration-0001`.
#[must_use]
pub fn iteration_name(iteration: u32) -> String {
    format!("iteration-{iteration:04}")
}

/// The name of the moving average of policies up to an iteration's: `reference-0001`.
#[must_use]
pub fn reference_name(iteration: u32) -> String {
    format!("reference-{iteration:04}")
}

/// The name of what a training job makes: `reward-NAME`. `slug` is [`crate::job::job_slug`]'s.
#[must_use]
pub fn job_checkpoint_name(kind: JobKind, slug: &str) -> String {
    format!("{kind}-{slug}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_iterations_do() {
        assert!(iteration_name(2) < iteration_name(10));
        assert_eq!(job_checkpoint_name(JobKind::Reward, "short"), "reward-short");
        for kind in CheckpointKind::ALL {
            assert_eq!(CheckpointKind::parse(kind.label()).unwrap(), kind);
        }
    }
}
