//! What a model folder is for: a policy writes, a reward model scores, a preference model compares.
//!
//! In: what a folder holds, what is wanted of it. Out: nothing, or an error that names both. May not
//! enter: files, weights.

use std::path::Path;

use crate::errors::ModelError;

/// What a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// It has a language head.
    Policy,
    /// It has a score head.
    RewardModel,
    /// It has a language head, and preference.json.
    PreferenceModel,
}

impl ModelKind {
    /// Refuses a folder of another kind than the one that is wanted.
    ///
    /// Errors: `WrongKind`.
    pub fn require(self, wanted: Self, dir: &Path) -> Result<(), ModelError> {
        if self == wanted { Ok(()) } else { Err(self.refusal(wanted, dir)) }
    }

    /// The error where another kind is wanted.
    #[must_use]
    pub fn refusal(self, wanted: Self, dir: &Path) -> ModelError {
        ModelError::WrongKind {
            dir: dir.to_owned(),
            found: self.found(),
            wanted: wanted.wanted(),
            mend: wanted.mend(self),
        }
    }

    const fn found(self) -> &'static str {
        match self {
            Self::Policy => "a policy (it has no score head)",
            Self::RewardModel => "a reward model (it has a score head)",
            Self::PreferenceModel => "a preference model (it has preference.json)",
        }
    }

    const fn wanted(self) -> &'static str {
        match self {
            Self::Policy => "a policy",
            Self::RewardModel => "a reward model",
            Self::PreferenceModel => "a preference model",
        }
    }

    const fn mend(self, found: Self) -> &'static str {
        match (self, found) {
            (Self::Policy, Self::PreferenceModel) => {
                "name the policy; a preference model knows no answer but A and B"
            }
            (Self::Policy, _) => "name a folder with a language head (…ForCausalLM)",
            (Self::RewardModel, Self::PreferenceModel) => {
                "compare two responses with `prefer`, or name a reward model"
            }
            (Self::RewardModel, _) => {
                "name an AutoModelForSequenceClassification folder with one label, \
                 or make one with `train reward`"
            }
            (Self::PreferenceModel, _) => {
                "name a folder that `train preference` made, or that holds a preference.json"
            }
        }
    }
}
