//! The training loop: steps over pairs, for DPO and for reward models alike.
//!
//! In: a loaded model, token pairs, settings, an order. Out: the model trained in place, and a row a
//! step. A step is: micro-batches forward and backward, one read of the step's numbers from the
//! device, and, if they are finite, one update. Nothing else is synchronised to the host. May not
//! enter: text, model folders, the protocol.

use std::time::{Duration, Instant};

use rlhfd_config::TrainSettings;
use tch::{Kind, Tensor};

use super::adamw::AdamConfig;
use super::batches::BatchPlan;
use super::error::TrainError;
use super::head::{self, Wanted};
use super::learners::Learners;
use super::loss::{DpoLoss, Logprobs, PairLoss, bradley_terry};
use super::pack::{Packed, TokenPair};
use super::schedule::Schedule;
use super::state::{self, StatePlace};
use super::steps::StepRow;
use super::trunk::{Trunk, push};
use crate::model::Transformer;
use crate::watch::Watch;

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Direct preference optimisation, by the language head.
    Dpo(DpoLoss),
    /// Bradley and Terry's likelihood, by the score head.
    Reward,
}

/// Who watches a training: the terminal's progress, or the daemon's unit.
pub struct Observer<'a> {
    /// Ticked once a micro-batch; a cancel there ends the training before the next one.
    pub watch: &'a Watch,
    /// Told how many pairs have the reference's log-probs, and of how many, where they are computed.
    pub filled: &'a dyn Fn(usize, usize),
    /// Told of each step, and of how many there are.
    pub stepped: &'a dyn Fn(&StepRow, u64),
}

/// A training that is ready to run.
pub struct Training<'a> {
    /// The model; its trainable parameters carry gradients.
    pub model: &'a Transformer,
    /// The pairs, in the order of the data.
    pub pairs: &'a [TokenPair],
    /// What is learnt.
    pub objective: Objective,
    /// How fast, how long.
    pub settings: &'a TrainSettings,
    /// Which pairs make which step.
    pub plan: BatchPlan,
    /// Where the state is kept; None keeps none.
    pub state: Option<StatePlace>,
    /// Frozen states already computed for these very pairs by this very model, or a fresh trunk.
    pub trunk: Trunk,
}

/// What a finished training leaves besides the model.
pub struct Trained {
    /// Every step, also those of earlier attempts.
    pub rows: Vec<StepRow>,
    /// The masters, for the checkpoint.
    pub learners: Learners,
    /// The first step that this attempt made, counted from 1; one past the last where none was left.
    pub first_step: u64,
}

impl Training<'_> {
    /// The optimiser's constants in these settings.
    #[must_use]
    pub fn adam(settings: &TrainSettings) -> AdamConfig {
        AdamConfig {
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            weight_decay: settings.weight_decay,
        }
    }

    /// Runs every step that is not done yet.
    ///
    /// # Errors
    /// `NonFinite` (the step is not applied), `Cancelled`, and what the state folder says.
    pub fn run(
        mut self,
        mut learners: Learners,
        observer: &Observer<'_>,
    ) -> Result<Trained, TrainError> {
        let steps = self.plan.steps();
        let schedule = Schedule::new(
            self.settings.learning_rate,
            self.settings.schedule,
            self.settings.warmup_ratio,
            steps,
        );
        let mut rows = match &self.state {
            Some(place) => state::resume(place, &mut learners)?,
            None => Vec::new(),
        };
        let first_step = rows.len() as u64 + 1;
        let mut saver = Saver::new(self.state.clone(), rows.len() as u64);
        while (rows.len() as u64) < steps {
            let index = rows.len() as u64;
            match self.step(index, schedule.rate(index), &mut learners, observer) {
                Ok(row) => {
                    (observer.stepped)(&row, steps);
                    rows.push(row);
                }
                Err(error @ TrainError::Cancelled { .. }) => {
                    saver.save(&learners, &rows)?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
            if (rows.len() as u64) < steps {
                saver.save_if_due(&learners, &rows)?;
            }
        }
        Ok(Trained { rows, learners, first_step })
    }

    /// One optimiser step; `index` from 0.
    fn step(
        &mut self,
        index: u64,
        rate: f64,
        learners: &mut Learners,
        observer: &Observer<'_>,
    ) -> Result<StepRow, TrainError> {
        let step_pairs = self.plan.step_pairs(index);
        let count = step_pairs.len();
        let mut sums = Vec::new();
        let mut losses = Vec::new();
        let micro = usize::try_from(self.settings.micro_batch_pairs).unwrap_or(1).max(1);
        for (number, part) in step_pairs.chunks(micro).enumerate() {
            self.model.adapters().draw_for(index, number as u64);
            let pairs: Vec<(usize, &TokenPair)> =
                part.iter().map(|pair| (*pair, &self.pairs[*pair])).collect();
            let (loss, tokens) = self.micro_batch(&pairs, count, learners);
            sums.push(loss.sums());
            losses.push(loss.loss.detach());
            learners.collect();
            if observer.watch.tick(tokens).is_err() {
                learners.clear();
                return Err(TrainError::Cancelled { step: index });
            }
        }
        let norm = learners.gradient_norm();
        let sums = Tensor::stack(&sums, 0).sum_dim_intlist(0, false, Kind::Double);
        let read = Tensor::cat(&[sums, norm.view(1)], 0);
        let read = Vec::<f64>::try_from(&read).unwrap_or_default();
        let [loss, ahead, margin, chosen, rejected, norm] = read[..] else {
            return Err(non_finite(index, "a loss", None));
        };
        if !loss.is_finite() {
            return Err(non_finite(index, "a loss", first_bad(&losses, &step_pairs)));
        }
        if !norm.is_finite() {
            return Err(non_finite(index, "a gradient norm", None));
        }
        learners.apply(rate, index + 1, (norm, self.settings.max_grad_norm));
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52 pairs")]
        let mean = |sum: f64| sum / count.max(1) as f64;
        let numbers = [loss, ahead, margin, chosen, rejected].map(mean);
        Ok(self.row(index + 1, rate, norm, numbers))
    }

    fn row(&self, step: u64, lr: f64, grad_norm: f64, numbers: [f64; 5]) -> StepRow {
        let [loss, accuracy, margin, chosen, rejected] = numbers;
        let dpo = matches!(self.objective, Objective::Dpo(_));
        StepRow {
            step,
            loss,
            lr,
            grad_norm,
            accuracy,
            margin,
            implicit_reward_chosen: dpo.then_some(chosen),
            implicit_reward_rejected: dpo.then_some(rejected),
            score_chosen: (!dpo).then_some(chosen),
            score_rejected: (!dpo).then_some(rejected),
        }
    }

    /// Forward and backward of one micro-batch of a step of `count` pairs. Returns its numbers and
    /// the tokens computed.
    fn micro_batch(
        &mut self,
        pairs: &[(usize, &TokenPair)],
        count: usize,
        learners: &Learners,
    ) -> (PairLoss, u64) {
        let model = self.model;
        let only: Vec<&TokenPair> = pairs.iter().map(|(_, pair)| *pair).collect();
        let packed = Packed::new(&only, model.device());
        let pass = self.trunk.forward(model, &packed, pairs);
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52 pairs")]
        let share = 1.0 / count.max(1) as f64;
        let loss = match self.objective {
            Objective::Dpo(dpo) => {
                let hidden = model.final_norm(&pass.stream.index_select(0, &packed.predicting));
                let head = learners.find(head::weight_name(model));
                let wanted = match head {
                    Some(_) => Wanted::WeightGradient,
                    None => Wanted::HiddenGradient,
                };
                let scored = head::forward(model, &hidden, &packed.targets, wanted);
                let (loss, slopes) = dpo_sequences(&dpo, &packed, &scored.logprobs, &only, share);
                let coefficients = slopes.index_select(0, &packed.sequence_of);
                if let Some(gradient) = scored.hidden_gradient(&coefficients) {
                    push(&hidden, &gradient);
                }
                self.trunk.backward(model, &packed, &pass);
                if let Some(head) = head {
                    let mut gradient = head.gradient_to_add_to();
                    scored.add_weight_gradient(model, &coefficients, &mut gradient);
                }
                loss
            }
            Objective::Reward => {
                let hidden = model.final_norm(&pass.stream.index_select(0, &packed.last));
                let scores = model.scores(&hidden).view([-1, 2]);
                let loss = bradley_terry(&scores.select(1, 0), &scores.select(1, 1));
                (loss.loss.sum(Kind::Float) * share).backward();
                self.trunk.backward(model, &packed, &pass);
                loss
            }
        };
        (loss, packed.tokens())
    }
}

/// The DPO loss of a micro-batch from per-token log-probs, and its slope towards each sequence's summed
/// log-prob (f32 `[sequences]`). `share` is a pair's weight in its step.
fn dpo_sequences(
    dpo: &DpoLoss,
    packed: &Packed,
    logprobs: &Tensor,
    pairs: &[&TokenPair],
    share: f64,
) -> (PairLoss, Tensor) {
    let policy = sequence_sums(packed, logprobs).view([-1, 2]).set_requires_grad(true);
    #[expect(clippy::cast_possible_truncation, reason = "log-probs are f32 everywhere else too")]
    let reference = |side: fn(&(f64, f64)) -> f64| {
        let values: Vec<f32> =
            pairs.iter().map(|pair| pair.reference.as_ref().map_or(0.0, side) as f32).collect();
        Tensor::from_slice(&values).to_device(logprobs.device())
    };
    let loss = dpo.of(
        &Logprobs { chosen: policy.select(1, 0), rejected: policy.select(1, 1) },
        &Logprobs { chosen: reference(|pair| pair.0), rejected: reference(|pair| pair.1) },
    );
    (loss.loss.sum(Kind::Float) * share).backward();
    let slopes = policy.grad().view(-1);
    (loss, slopes)
}

/// Per-token log-probs summed by sequence: f32 `[sequences]`.
pub fn sequence_sums(packed: &Packed, logprobs: &Tensor) -> Tensor {
    let zeros = Tensor::zeros([packed.sequences()], (Kind::Float, logprobs.device()));
    zeros.index_add(0, &packed.sequence_of, logprobs).detach()
}

fn non_finite(index: u64, what: &'static str, pair: Option<usize>) -> TrainError {
    TrainError::NonFinite { step: index + 1, what, pair }
}

/// The first pair, in the order of the data and counted from 1, whose loss is not finite.
fn first_bad(losses: &[Tensor], pairs: &[usize]) -> Option<usize> {
    let losses = Vec::<f32>::try_from(&Tensor::cat(losses, 0)).unwrap_or_default();
    let bad = losses.iter().zip(pairs).filter(|(loss, _)| !loss.is_finite());
    bad.map(|(_, pair)| pair + 1).min()
}

/// Saves every so many steps or seconds.
struct Saver {
    place: Option<StatePlace>,
    saved_step: u64,
    saved_at: Instant,
}

impl Saver {
    fn new(place: Option<StatePlace>, step: u64) -> Self {
        Self { place, saved_step: step, saved_at: Instant::now() }
    }

    fn save_if_due(&mut self, learners: &Learners, rows: &[StepRow]) -> Result<(), TrainError> {
        let Some(place) = &self.place else { return Ok(()) };
        let steps = rows.len() as u64 - self.saved_step;
        let by_steps = place.every_steps > 0 && steps >= place.every_steps;
        let by_time =
            place.every_s > 0 && self.saved_at.elapsed() >= Duration::from_secs(place.every_s);
        if by_steps || by_time { self.save(learners, rows) } else { Ok(()) }
    }

    fn save(&mut self, learners: &Learners, rows: &[StepRow]) -> Result<(), TrainError> {
        let Some(place) = &self.place else { return Ok(()) };
        if rows.len() as u64 > self.saved_step {
            state::save(place, learners, rows)?;
            self.saved_step = rows.len() as u64;
            self.saved_at = Instant::now();
        }
        Ok(())
    }
}
