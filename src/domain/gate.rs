//! The gate: what makes a trained checkpoint the head.
//!
//! In: figures of an evaluation and a training, and their limits. Out: a verdict with every figure
//! beside its limit. A figure that could not be measured does not hold: nothing becomes the head
//! unseen. May not enter: scorers, rows, statistics.

use crate::train::TrainStep;

/// What is looked at, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Share of paired answers that the policy wins, ties one half.
    WinRate,
    /// Divergence from the reference, in nats a response.
    KlK3,
    /// Mean response tokens, as a factor of the initial policy's.
    LengthGrowth,
    /// Nats that the chosen responses' log-prob lost against the reference.
    ChosenLogprobFall,
    /// What a scorer that training never uses says of the policy.
    CanaryGain,
}

impl Figure {
    /// The word of rows and messages.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::WinRate => "win_rate",
            Self::KlK3 => "kl_k3",
            Self::LengthGrowth => "length_growth",
            Self::ChosenLogprobFall => "chosen_logprob_fall",
            Self::CanaryGain => "canary_gain",
        }
    }
}

/// What a figure is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// The policy that the run began with.
    Initial,
    /// The policy that the iteration began with.
    Previous,
    /// The reference of training.
    Reference,
}

impl Against {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Previous => "previous",
            Self::Reference => "reference",
        }
    }
}

/// On which side of its limit a figure must lie; on the limit it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// At least so much.
    Min(f64),
    /// At most so much.
    Max(f64),
}

impl Limit {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Min(_) => "min",
            Self::Max(_) => "max",
        }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> f64 {
        match self {
            Self::Min(limit) | Self::Max(limit) => limit,
        }
    }

    /// Whether a figure keeps it. What is no number does not.
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::Min(limit) => figure >= limit,
            Self::Max(limit) => figure <= limit,
        }
    }
}

/// What a failed gate does beside keeping the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFail {
    /// The loop goes on from the old head.
    KeepHead,
    /// The run pauses.
    Pause,
}

/// A figure beside its limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Check {
    /// What is looked at.
    pub figure: Figure,
    /// What it was measured against.
    pub against: Against,
    /// What is asked of it.
    pub limit: Limit,
    /// What it is; none where it could not be measured.
    pub value: Option<f64>,
}

impl Check {
    /// Whether the figure was measured and keeps its limit.
    #[must_use]
    pub fn held(&self) -> bool {
        self.value.is_some_and(|value| self.limit.holds(value))
    }

    /// What is wrong, as in `win_rate 0.400 < 0.500 (initial)`.
    fn reason(&self) -> String {
        let (figure, against) = (self.figure.label(), self.against.label());
        match (self.value, self.limit) {
            (None, _) => format!("{figure} was not measured"),
            (Some(value), Limit::Min(limit)) => {
                format!("{figure} {value:.3} < {limit:.3} ({against})")
            }
            (Some(value), Limit::Max(limit)) => {
                format!("{figure} {value:.3} > {limit:.3} ({against})")
            }
        }
    }
}

/// All that a gate looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// A check for each limit that is set.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// The verdict of these checks; none where there is no limit, and so no gate.
    #[must_use]
    pub fn of(checks: Vec<Check>) -> Option<Self> {
        (!checks.is_empty()).then_some(Self { checks })
    }

    /// Whether every figure keeps its limit.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::held)
    }

    /// `passed`, or `failed: ` and why.
    #[must_use]
    pub fn words(&self) -> String {
        if self.passed() {
            return "passed".to_owned();
        }
        let failed = self.checks.iter().filter(|check| !check.held());
        let reasons: Vec<String> = failed.map(Check::reason).collect();
        format!("failed: {}", reasons.join(", "))
    }
}

/// Mean response tokens of the policy as a factor of the initial policy's. `None` where that wrote
/// nothing.
#[must_use]
pub fn length_growth(policy: f64, initial: f64) -> Option<f64> {
    (initial > 0.0).then(|| policy / initial)
}

/// How far the log-prob of the chosen responses fell below the reference's at the end of a training,
/// in nats a response: −(mean implicit reward of the chosen) / β over the last tenth of the steps, and
/// over one at least. `None` without steps, or where a step says nothing of the chosen.
#[must_use]
pub fn chosen_logprob_fall(steps: &[TrainStep], beta: f64) -> Option<f64> {
    let last = steps.len().div_ceil(10);
    let (mut sum, mut count) = (0.0, 0.0);
    for step in steps.iter().rev().take(last) {
        sum += step.implicit_reward_chosen?;
        count += 1.0;
    }
    (count > 0.0 && beta > 0.0).then(|| -sum / count / beta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(figure: Figure, limit: Limit, value: Option<f64>) -> Check {
        Check { figure, against: Against::Initial, limit, value }
    }

    #[test]
    fn a_figure_on_its_limit_holds_and_beyond_it_does_not() {
        for (limit, value, held) in [
            (Limit::Min(0.5), 0.5, true),
            (Limit::Min(0.5), 0.499, false),
            (Limit::Min(-0.1), -0.05, true),
            (Limit::Max(2.0), 2.0, true),
            (Limit::Max(2.0), 2.001, false),
            (Limit::Min(0.5), f64::NAN, false),
            (Limit::Max(0.5), f64::NAN, false),
        ] {
            let one = check(Figure::WinRate, limit, Some(value));
            assert_eq!(one.held(), held, "{limit:?} {value}");
        }
        assert!(!check(Figure::KlK3, Limit::Max(1.0), None).held(), "unmeasured");
    }

    #[test]
    fn a_verdict_says_all_that_failed_and_nothing_else() {
        let good = check(Figure::CanaryGain, Limit::Min(0.0), Some(0.25));
        let low = check(Figure::WinRate, Limit::Min(0.5), Some(0.4));
        let high = Check {
            against: Against::Reference,
            ..check(Figure::KlK3, Limit::Max(2.0), Some(3.25))
        };
        let unknown = check(Figure::LengthGrowth, Limit::Max(1.5), None);
        let passed = Verdict::of(vec![good]).unwrap();
        assert!(passed.passed());
        assert_eq!(passed.words(), "passed");
        let failed = Verdict::of(vec![low, high, unknown, good]).unwrap();
        assert!(!failed.passed());
        assert_eq!(
            failed.words(),
            "failed: win_rate 0.400 < 0.500 (initial), kl_k3 3.250 > 2.000 (reference), \
             length_growth was not measured"
        );
        assert_eq!(Verdict::of(Vec::new()), None);
    }

    #[test]
    fn the_fall_of_the_chosen_is_the_mean_of_the_last_tenth_in_nats() {
        let step = |step: u64, chosen| TrainStep {
            step,
            loss: 0.6,
            lr: 1e-6,
            grad_norm: 1.0,
            accuracy: None,
            token_accuracy: None,
            margin: None,
            implicit_reward_chosen: chosen,
            implicit_reward_rejected: None,
        };
        // 20 steps: the last two have −0.2 and −0.4; β = 0.1: 0.3 / 0.1 = 3 nats.
        let mut steps: Vec<_> = (1..=18).map(|n| step(n, Some(5.0))).collect();
        steps.extend([step(19, Some(-0.2)), step(20, Some(-0.4))]);
        assert!((chosen_logprob_fall(&steps, 0.1).unwrap() - 3.0).abs() < 1e-12);
        // One step of three: a rise is a fall below 0.
        let few = [step(1, None), step(2, None), step(3, Some(0.1))];
        assert!((chosen_logprob_fall(&few, 0.1).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(chosen_logprob_fall(&few[..2], 0.1), None);
        assert_eq!(chosen_logprob_fall(&[], 0.1), None);
        assert_eq!(length_growth(30.0, 20.0), Some(1.5));
        assert_eq!(length_growth(30.0, 0.0), None);
    }
}
