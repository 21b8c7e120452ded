//! What a unit does, as a word: the kinds of work within the stages.
//!
//! In: words of rows. Out: `WorkKind` and what the rules need to know of it. May not enter: how the
//! work is done.

use std::fmt;

use crate::UnknownWord;

/// The kind of a unit's work, in flow order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkKind {
    /// A few conversations are rendered and decoded with each model.
    Probe,
    /// Prompts to token ids.
    Render,
    /// Responses of a policy.
    Generate,
    /// Scores of a reward model.
    Score,
    /// Comparisons by a preference model.
    Prefer,
    /// Best against worst; done by control.
    Pair,
    /// The next reference, where that is a moving average of policies.
    Average,
    /// Offline preferences to token ids.
    RenderPairs,
    /// Log-probs of the reference.
    Logprobs,
    /// Log-probs of the reference, of both sides of offline preferences.
    LogprobsPairs,
    /// A DPO update.
    TrainDpo,
    /// Supervised fine-tuning of a policy.
    TrainSft,
    /// A reward model's training.
    TrainReward,
    /// A preference model's training.
    TrainPreference,
    /// A checkpoint folder is admitted; done by control.
    Checkpoint,
    /// Evaluation rows are written; done by control.
    Summarise,
}

impl WorkKind {
    /// All kinds, in flow order.
    pub const ALL: [Self; 16] = [
        Self::Probe,
        Self::Render,
        Self::Generate,
        Self::Score,
        Self::Prefer,
        Self::Pair,
        Self::Average,
        Self::RenderPairs,
        Self::Logprobs,
        Self::LogprobsPairs,
        Self::TrainDpo,
        Self::TrainSft,
        Self::TrainReward,
        Self::TrainPreference,
        Self::Checkpoint,
        Self::Summarise,
    ];

    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Render => "render",
            Self::Generate => "generate",
            Self::Score => "score",
            Self::Prefer => "prefer",
            Self::Pair => "pair",
            Self::Average => "average",
            Self::RenderPairs => "render_pairs",
            Self::Logprobs => "logprobs",
            Self::LogprobsPairs => "logprobs_pairs",
            Self::TrainDpo => "train_dpo",
            Self::TrainSft => "train_sft",
            Self::TrainReward => "train_reward",
            Self::TrainPreference => "train_preference",
            Self::Checkpoint => "checkpoint",
            Self::Summarise => "summarise",
        }
    }

    /// The kind of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|k| k.label() == word).ok_or_else(|| UnknownWord {
            what: "work",
            found: word.to_owned(),
            known: "probe, render, generate, score, prefer, pair, average, render_pairs, logprobs, \
                    logprobs_pairs, train_dpo, train_sft, train_reward, train_preference, checkpoint, summarise",
        })
    }

    /// Whether it updates a model: such a unit goes on from its last saved state and is never split.
    #[must_use]
    pub const fn trains(self) -> bool {
        matches!(self, Self::TrainDpo | Self::TrainSft | Self::TrainReward | Self::TrainPreference)
    }

    /// Whether the control plane does it itself, without a worker.
    #[must_use]
    pub const fn by_control(self) -> bool {
        matches!(self, Self::Pair | Self::Checkpoint | Self::Summarise)
    }
}

impl fmt::Display for WorkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_keeps_its_word() {
        for kind in WorkKind::ALL {
            assert_eq!(WorkKind::parse(kind.label()).unwrap(), kind);
            assert!(!(kind.trains() && kind.by_control()));
        }
        assert!(WorkKind::parse("rollout").is_err());
    }
}
