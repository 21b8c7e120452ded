//! What an update is trained on, and what a step of it says.
//!
//! In: words and numbers. Out: `History`, `Replay`, `TrainStep`, `HeldOut`. May not enter: losses,
//! tensors.

use crate::UnknownWord;

/// Which preferences an iteration trains on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// D₁ ∪ … ∪ Dₜ, as the paper does.
    All,
    /// Dₜ alone.
    Newest,
}

impl History {
    /// The word of the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Newest => "newest",
        }
    }

    /// The history of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "all" => Ok(Self::All),
            "newest" => Ok(Self::Newest),
            other => {
                Err(UnknownWord { what: "history", found: other.to_owned(), known: "all, newest" })
            }
        }
    }
}

/// What of the past an update is trained on beside its own iteration's preferences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replay {
    /// Which earlier iterations.
    pub history: History,
    /// The weight of their preferences in the loss; above 0.
    pub history_weight: f64,
}

/// Which checkpoint an iteration's update is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceRule {
    /// The run's own, for ever.
    Fixed,
    /// The head as it was at the last iteration that is a multiple of this number; 1: the policy that
    /// the iteration begins with.
    Every(u32),
    /// A moving average of the policies that were heads.
    Average,
}

/// The last multiple of `every` before an iteration; 0: the policy that the run began with.
#[must_use]
pub fn last_multiple(iteration: u32, every: u32) -> u32 {
    iteration.saturating_sub(1) / every.max(1) * every.max(1)
}

/// One optimiser step, as steps.jsonl has it. Implicit rewards are β·(policy − reference log-prob) in
/// nats; `margin` is chosen − rejected. What a kind of training does not have is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainStep {
    /// From 1.
    pub step: u64,
    /// Mean over the step's pairs by their weights, or over learnt tokens.
    pub loss: f64,
    /// The rate applied.
    pub lr: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Share of pairs whose margin is above 0.
    pub accuracy: Option<f64>,
    /// Mean over the step's pairs.
    pub margin: Option<f64>,
    /// Mean over the step's pairs.
    pub implicit_reward_chosen: Option<f64>,
    /// Mean over the step's pairs.
    pub implicit_reward_rejected: Option<f64>,
    /// Share of learnt tokens that no other id was likelier than.
    pub token_accuracy: Option<f64>,
}

/// What a trained reward model is worth on preferences that were held out, as report.json has it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// As the data names it; empty: all held-out preferences.
    pub source: String,
    /// Pairs.
    pub pairs: u64,
    /// Share of pairs whose chosen response has the higher score.
    pub accuracy: f64,
    /// Expected calibration error, over ten bins of the predicted preference.
    pub calibration_error: f64,
    /// Responses, each counted once.
    pub responses: u64,
    /// Pearson's correlation of score and length in tokens.
    pub length_correlation: Option<f64>,
}

/// Steps that are no account of a training.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepsError {
    /// A number is missing or out of order.
    #[error("step {found} stands where step {expected} should: steps.jsonl is not whole")]
    Order {
        /// The number that should stand there.
        expected: u64,
        /// The number that does.
        found: u64,
    },
    /// A number that a table of figures cannot hold.
    #[error("step {step} has a loss, rate or norm that is not finite: the training is not sound")]
    NonFinite {
        /// The step.
        step: u64,
    },
}

/// Whether the steps count 1, 2, … and are finite.
pub fn check_steps(steps: &[TrainStep]) -> Result<(), StepsError> {
    for (expected, row) in (1_u64..).zip(steps) {
        if row.step != expected {
            return Err(StepsError::Order { expected, found: row.step });
        }
        let figures = [row.loss, row.lr, row.grad_norm];
        if figures.iter().any(|figure| !figure.is_finite()) {
            return Err(StepsError::NonFinite { step: row.step });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> TrainStep {
        TrainStep {
            step,
            loss,
            lr: 1e-6,
            grad_norm: 1.0,
            accuracy: None,
            margin: None,
            implicit_reward_chosen: None,
            implicit_reward_rejected: None,
            token_accuracy: None,
        }
    }

    #[test]
    fn a_reference_stays_for_as_many_iterations_as_were_asked() {
        let of = |every| (1..=7).map(|t| last_multiple(t, every)).collect::<Vec<_>>();
        assert_eq!(of(1), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(of(2), [0, 0, 2, 2, 4, 4, 6]);
        assert_eq!(of(3), [0, 0, 0, 3, 3, 3, 6]);
    }

    #[test]
    fn steps_count_from_one_without_a_gap() {
        assert!(check_steps(&[]).is_ok());
        assert!(check_steps(&[step(1, 0.7), step(2, 0.6)]).is_ok());
        let gap = check_steps(&[step(1, 0.7), step(3, 0.6)]).unwrap_err();
        assert_eq!(gap, StepsError::Order { expected: 2, found: 3 });
        assert!(check_steps(&[step(1, f64::NAN)]).is_err());
        assert_eq!(History::parse("newest").unwrap(), History::Newest);
        assert!(History::parse("some").is_err());
    }
}
