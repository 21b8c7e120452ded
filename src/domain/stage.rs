//! The seven stages in the order of the flow.
//!
//! In: words of rows and requests. Out: `Stage`. May not enter: what a stage does.

use std::fmt;

use crate::UnknownWord;

/// A stage. The order of the variants is the order of the flow everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Drawn prompts are rendered to token ids.
    Prompts,
    /// The policy writes responses.
    Generate,
    /// Scorers label them.
    Label,
    /// Best against worst.
    Pair,
    /// Reference log-probs and the update.
    Train,
    /// The folder is admitted as the new head.
    Checkpoint,
    /// The new policy against the initial one on reserved prompts.
    Evaluate,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 7] = [
        Self::Prompts,
        Self::Generate,
        Self::Label,
        Self::Pair,
        Self::Train,
        Self::Checkpoint,
        Self::Evaluate,
    ];

    /// The word of rows, API and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Generate => "generate",
            Self::Label => "label",
            Self::Pair => "pair",
            Self::Train => "train",
            Self::Checkpoint => "checkpoint",
            Self::Evaluate => "evaluate",
        }
    }

    /// The stage of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|s| s.label() == word).ok_or_else(|| UnknownWord {
            what: "stage",
            found: word.to_owned(),
            known: "prompts, generate, label, pair, train, checkpoint, evaluate",
        })
    }

    /// The stage after this one; none after evaluate.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|s| *s > self)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other_and_keep_their_words() {
        let mut walked = vec![Stage::Prompts];
        while let Some(next) = walked.last().copied().and_then(Stage::next) {
            walked.push(next);
        }
        assert_eq!(walked, Stage::ALL);
        for stage in Stage::ALL {
            assert_eq!(Stage::parse(stage.label()).unwrap(), stage);
        }
        assert!(Stage::parse("training").unwrap_err().to_string().contains("train, checkpoint"));
    }
}
