//! A training that goes wrong: how it is known from its steps, and what is likely behind it.
//!
//! In: the steps of a training, in order, and limits. Out: `Divergence` with its figures in words, or
//! nothing. The same steps give the same answer, so that a training that was resumed ends as one that
//! was not. May not enter: losses, tensors, what follows for the run.

use std::collections::VecDeque;
use std::f64::consts::LN_2;

use crate::train::TrainStep;

/// Steps over which a loss or a divergence is averaged before it is held against its limit: one odd
/// batch among good ones stops nothing. Of the first steps there are fewer to average, and one far
/// beyond a limit ends the training.
const RECENT_STEPS: usize = 5;
/// Steps in a row without any gradient,
const NO_GRADIENT_STEPS: u64 = 3;
/// where the loss is above this: below it there is nothing left to learn.
const LEARNT_LOSS: f64 = 1e-6;
/// How near ln 2 the mean loss stays of what learns nothing,
const CHANCE_LOSS_NEAR: f64 = 0.005;
/// and what its mean accuracy does not exceed. A margin of exactly 0 counts as wrong, so that a model
/// which does not move at all has an accuracy of 0.
const CHANCE_ACCURACY_MAX: f64 = 0.53;

/// What went wrong with a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Divergence {
    /// A loss, a gradient or a score that is no finite number.
    NonFinite,
    /// The loss grew far beyond its first value.
    LossExploded,
    /// The policy moved too far from its reference.
    KlBeyondLimit,
    /// Loss and accuracy stay those of chance.
    NothingLearnt,
    /// No gradient reaches what should learn.
    NoGradient,
}

impl Divergence {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NonFinite,
        Self::LossExploded,
        Self::KlBeyondLimit,
        Self::NothingLearnt,
        Self::NoGradient,
    ];

    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NonFinite => "non_finite",
            Self::LossExploded => "loss_exploded",
            Self::KlBeyondLimit => "kl_beyond_limit",
            Self::NothingLearnt => "nothing_learnt",
            Self::NoGradient => "no_gradient",
        }
    }

    /// What is likely behind it, and what mends that.
    #[must_use]
    pub const fn likely_cause(self) -> &'static str {
        match self {
            Self::NonFinite => {
                "most likely the learning rate is too high, or gradients are not clipped: lower \
                 learning_rate, set max_grad_norm; a single pair that does it is bad data"
            }
            Self::LossExploded => {
                "most likely the learning rate is too high or its warm-up too short: lower \
                 learning_rate, raise warmup_ratio; loss_growth_max is the limit"
            }
            Self::KlBeyondLimit => {
                "most likely the learning rate is too high or the pull towards the reference too \
                 weak: lower learning_rate or epochs, raise beta; kl_max is the limit"
            }
            Self::NothingLearnt => {
                "most likely the labels are chance (a scorer that tells nothing apart, sides that \
                 were swapped) or the learning rate is far too low; stuck_steps is the limit"
            }
            Self::NoGradient => {
                "most likely nothing that learns has a part in the loss: look at trainable_layers \
                 and lora_targets, and whether beta is absurdly small"
            }
        }
    }
}

/// How far a training may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The mean loss of the last steps, as a factor of the first step's (of ln 2 where that is less);
    /// 0: no limit.
    pub loss_growth_max: f64,
    /// Mean nats a response by which the log-probs fell below the reference's; 0: no limit.
    pub kl_max: f64,
    /// Steps of chance once the learning rate is up; 0: no limit.
    pub stuck_steps: u32,
    /// The learning rate at its highest.
    pub learning_rate: f64,
    /// The β of implicit rewards.
    pub beta: f64,
}

/// A training that went wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Diverged {
    /// How.
    pub divergence: Divergence,
    /// The figures that say so.
    pub figures: String,
}

/// Looks at each step of a training.
#[derive(Debug, Clone)]
pub struct Lookout {
    limits: Limits,
    /// Steps that the whole training has.
    steps: u64,
    /// The first step's loss.
    first: Option<f64>,
    /// The newest steps, oldest first: as many as the longest rule asks for.
    recent: VecDeque<TrainStep>,
    /// Steps in a row without a gradient.
    still: u64,
    /// Steps since the learning rate first was half of its highest: what is still warming up may well
    /// not have learnt anything.
    warm: usize,
}

impl Lookout {
    /// Before the first step of so many.
    #[must_use]
    pub fn new(limits: Limits, steps: u64) -> Self {
        Self { limits, steps, first: None, recent: VecDeque::new(), still: 0, warm: 0 }
    }

    /// Looks at the next step.
    pub fn step(&mut self, step: &TrainStep) -> Option<Diverged> {
        self.first.get_or_insert(step.loss);
        let still = step.grad_norm == 0.0 && step.loss > LEARNT_LOSS;
        self.still = if still { self.still + 1 } else { 0 };
        if self.warm > 0 || step.lr >= self.limits.learning_rate / 2.0 {
            self.warm += 1;
        }
        self.recent.push_back(*step);
        let kept = RECENT_STEPS.max(self.limits.stuck_steps as usize);
        while self.recent.len() > kept {
            self.recent.pop_front();
        }
        let rules = [Self::finite, Self::loss, Self::kl, Self::gradient, Self::learning];
        rules.iter().find_map(|rule| rule(self))
    }

    fn finite(&self) -> Option<Diverged> {
        let step = self.recent.back()?;
        let broken = !step.loss.is_finite() || !step.grad_norm.is_finite();
        broken.then(|| Diverged {
            divergence: Divergence::NonFinite,
            figures: format!("loss {}, gradient norm {}", step.loss, step.grad_norm),
        })
    }

    fn loss(&self) -> Option<Diverged> {
        let limit = self.limits.loss_growth_max * self.first?.max(LN_2);
        let mean = self.mean(RECENT_STEPS, |step| Some(step.loss))?;
        (limit > 0.0 && mean > limit).then(|| Diverged {
            divergence: Divergence::LossExploded,
            figures: format!("the mean loss of the last steps is {mean:.3}, more than {limit:.3}"),
        })
    }

    /// The mean of log reference − log policy over the responses of the steps: where the reference
    /// wrote them it estimates KL(reference‖policy) (k1).
    fn kl(&self) -> Option<Diverged> {
        let limit = self.limits.kl_max;
        let fall = |step: &TrainStep| {
            let both = step.implicit_reward_chosen? + step.implicit_reward_rejected?;
            Some(-both / 2.0 / self.limits.beta)
        };
        let mean = self.mean(RECENT_STEPS, fall)?;
        (limit > 0.0 && mean > limit).then(|| Diverged {
            divergence: Divergence::KlBeyondLimit,
            figures: format!(
                "the policy is {mean:.1} nats a response from its reference, more than {limit:.1}"
            ),
        })
    }

    fn gradient(&self) -> Option<Diverged> {
        let enough = NO_GRADIENT_STEPS.min(self.steps);
        (self.still >= enough).then(|| Diverged {
            divergence: Divergence::NoGradient,
            figures: format!("the gradient of the last {} steps is exactly 0", self.still),
        })
    }

    fn learning(&self) -> Option<Diverged> {
        let stuck = self.limits.stuck_steps as usize;
        if stuck == 0 || self.warm < stuck {
            return None;
        }
        let loss = self.mean(stuck, |step| Some(step.loss))?;
        let accuracy = self.mean(stuck, |step| step.accuracy.or(step.token_accuracy))?;
        let chance = (loss - LN_2).abs() <= CHANCE_LOSS_NEAR && accuracy <= CHANCE_ACCURACY_MAX;
        chance.then(|| Diverged {
            divergence: Divergence::NothingLearnt,
            figures: format!(
                "over the last {stuck} steps the mean loss is {loss:.3} (chance: {LN_2:.3}) and the \
                 mean accuracy {accuracy:.2}"
            ),
        })
    }

    /// The mean over the newest `count` steps, of all where there are fewer; none where one of them
    /// says nothing.
    fn mean(&self, count: usize, of: impl Fn(&TrainStep) -> Option<f64>) -> Option<f64> {
        let (mut sum, mut steps) = (0.0, 0.0);
        for step in self.recent.iter().rev().take(count) {
            sum += of(step)?;
            steps += 1.0;
        }
        (steps > 0.0).then(|| sum / steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        loss_growth_max: 5.0,
        kl_max: 100.0,
        stuck_steps: 20,
        learning_rate: 1e-6,
        beta: 0.1,
    };

    fn healthy(loss: f64) -> TrainStep {
        TrainStep {
            step: 1,
            loss,
            lr: 1e-6,
            grad_norm: 1.0,
            accuracy: Some(0.8),
            margin: None,
            implicit_reward_chosen: Some(0.1),
            implicit_reward_rejected: Some(-0.3),
            token_accuracy: None,
        }
    }

    /// The number of the step, from 1, at which the lookout says something, and what.
    fn first(limits: Limits, steps: &[TrainStep]) -> Option<(usize, Divergence)> {
        let mut lookout = Lookout::new(limits, steps.len() as u64);
        steps.iter().enumerate().find_map(|(index, step)| {
            lookout.step(step).map(|diverged| (index + 1, diverged.divergence))
        })
    }

    #[test]
    fn a_training_that_learns_is_left_alone() {
        let falling: Vec<_> =
            (0..200).map(|n| healthy(LN_2 * (-0.01 * f64::from(n)).exp())).collect();
        assert_eq!(first(LIMITS, &falling), None);
        // One odd batch among good ones.
        let mut odd = vec![healthy(0.6); 10];
        odd[6] = healthy(14.0);
        assert_eq!(first(LIMITS, &odd), None, "(4 × 0.6 + 14) / 5 = 3.28 < 5 ln 2");
    }

    #[test]
    fn each_divergence_is_known_by_its_own_figures() {
        let blown = [healthy(LN_2), healthy(50.0)];
        assert_eq!(first(LIMITS, &blown), Some((2, Divergence::LossExploded)));
        assert_eq!(first(Limits { loss_growth_max: 0.0, ..LIMITS }, &blown), None);
        // A small first loss is no licence to stop at a small rise: ln 2 is the least that counts.
        assert_eq!(first(LIMITS, &[healthy(0.05), healthy(0.9)]), None);

        // (−9 − 13) / 2 / 0.1 = −110 nats, alone above 100; with a first step at 10 nats: 60, 76.7, 85 …
        let far = TrainStep {
            implicit_reward_chosen: Some(-9.0),
            implicit_reward_rejected: Some(-13.0),
            ..healthy(0.5)
        };
        assert_eq!(first(LIMITS, &[far]), Some((1, Divergence::KlBeyondLimit)));
        let late = [vec![healthy(0.6)], vec![far; 9]].concat();
        // The mean of five: 110 once the first step is out of it.
        assert_eq!(first(LIMITS, &late), Some((6, Divergence::KlBeyondLimit)));
        assert_eq!(first(Limits { kl_max: 0.0, ..LIMITS }, &late), None);

        let nan = TrainStep { grad_norm: f64::NAN, ..healthy(0.6) };
        assert_eq!(first(LIMITS, &[healthy(0.6), nan]), Some((2, Divergence::NonFinite)));

        let dead = TrainStep { grad_norm: 0.0, ..healthy(0.6) };
        assert_eq!(first(LIMITS, &[dead, dead, healthy(0.6), dead, dead]), None);
        assert_eq!(
            first(LIMITS, &[healthy(0.6), dead, dead, dead]),
            Some((4, Divergence::NoGradient))
        );
        assert_eq!(first(LIMITS, &[dead]), Some((1, Divergence::NoGradient)), "of one step, one");
        let learnt = TrainStep { grad_norm: 0.0, ..healthy(1e-20) };
        assert_eq!(first(LIMITS, &[learnt; 9]), None, "a pair that is learnt has no slope in f32");
    }

    #[test]
    fn chance_is_told_after_as_many_steps_as_are_asked_and_not_before() {
        let chance = TrainStep { accuracy: Some(0.48), ..healthy(LN_2 + 0.001) };
        assert_eq!(first(LIMITS, &[chance; 40]), Some((20, Divergence::NothingLearnt)));
        let unmoved = TrainStep { accuracy: Some(0.0), ..chance };
        assert_eq!(first(LIMITS, &[unmoved; 40]), Some((20, Divergence::NothingLearnt)));
        assert_eq!(first(LIMITS, &[chance; 19]), None);
        assert_eq!(first(Limits { stuck_steps: 0, ..LIMITS }, &[chance; 40]), None);
        // A warm-up of 60 steps: those from half of the rate on count, however low it is later.
        let warming = (0..60).map(|n| TrainStep { lr: 1e-6 * f64::from(n) / 60.0, ..chance });
        let warming: Vec<_> = warming.collect();
        assert_eq!(first(LIMITS, &warming), Some((50, Divergence::NothingLearnt)));
        let late = [vec![chance], vec![TrainStep { lr: 1e-9, ..chance }; 19]].concat();
        assert_eq!(first(LIMITS, &late), Some((20, Divergence::NothingLearnt)));
        // Right more often than not, or a loss that has begun to fall: it learns.
        let right = TrainStep { accuracy: Some(0.6), ..chance };
        assert_eq!(first(LIMITS, &[right; 40]), None);
        assert_eq!(first(LIMITS, &[TrainStep { loss: 0.68, ..chance }; 40]), None);
        // Of a preference model it is the accuracy of its one token that says so; of text, nothing does.
        let token = TrainStep { accuracy: None, token_accuracy: Some(0.5), ..chance };
        assert_eq!(first(LIMITS, &[token; 40]), Some((20, Divergence::NothingLearnt)));
        let text = TrainStep { token_accuracy: Some(0.8), ..token };
        assert_eq!(first(LIMITS, &[text; 40]), None);
    }

    #[test]
    fn labels_are_distinct_and_causes_say_what_to_do() {
        let words: std::collections::BTreeSet<_> =
            Divergence::ALL.iter().map(|one| one.label()).collect();
        assert_eq!(words.len(), Divergence::ALL.len());
        assert!(Divergence::ALL.iter().all(|one| one.likely_cause().starts_with("most likely ")));
    }
}
