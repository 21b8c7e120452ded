//! Preferences: a chosen and a rejected response of one prompt.
//!
//! In: the responses of one prompt that have a score, and a rule. Out: a `Pairing`: preferences, a
//! tie, or the reason why there is none. Nothing is dropped in silence: every prompt gives exactly
//! one `Pairing`.
//! May not enter: rows, scorers, tokens.

mod rule;

use crate::ids::ResponseId;
use crate::label::Score;
use crate::response::Finish;

pub use rule::{Arms, Choice, PairRule, PromptKey, Unfinished, pair};

/// A response of a prompt that has a score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its row.
    pub response: ResponseId,
    /// Its number over all arms of the prompt.
    pub sample: u32,
    /// A number that its arm alone has.
    pub arm: u32,
    /// How it ended.
    pub finish: Finish,
    /// `response::text_key` of its text: equal texts are one response.
    pub text_key: i64,
    /// What pairing goes by: the combined score, length penalty and all.
    pub score: Score,
}

/// A chosen and a rejected response: never the same, and the chosen one scored higher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    chosen: Candidate,
    rejected: Candidate,
}

impl Preference {
    /// The two of them, the higher score chosen; none where texts or scores are equal.
    #[must_use]
    pub fn of(a: &Candidate, b: &Candidate) -> Option<Self> {
        let (chosen, rejected) = if a.score > b.score { (*a, *b) } else { (*b, *a) };
        let differ = chosen.score > rejected.score && chosen.text_key != rejected.text_key;
        differ.then_some(Self { chosen, rejected })
    }

    /// The better one.
    #[must_use]
    pub const fn chosen(&self) -> &Candidate {
        &self.chosen
    }

    /// The worse one.
    #[must_use]
    pub const fn rejected(&self) -> &Candidate {
        &self.rejected
    }

    /// Chosen score − rejected score; above 0.
    #[must_use]
    pub fn score_gap(&self) -> f64 {
        self.chosen.score.get() - self.rejected.score.get()
    }
}

/// What a prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Pairing {
    /// At least one preference, in the order of their ranks.
    Pairs(Vec<Preference>),
    /// All responses that may meet have the same score.
    Tie,
    /// No pair, for this reason.
    Without(WithoutPair),
}

/// Why a prompt gave no pair, in a word that SQL can group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WithoutPair {
    /// No response has a score.
    Unlabelled,
    /// Fewer than two different responses have one.
    OneResponse,
    /// No two different responses may meet by their arms.
    Arms,
    /// Responses differ in score, but the rule for those without a stop id lets none of them meet.
    Unfinished,
    /// All that may meet differ by less than the floor.
    SmallGap,
}

impl WithoutPair {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unlabelled => "unlabelled",
            Self::OneResponse => "one_response",
            Self::Arms => "arms",
            Self::Unfinished => "unfinished",
            Self::SmallGap => "small_gap",
        }
    }
}
