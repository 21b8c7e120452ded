//! The training loop: steps over pairs or blocks of conversations, for every kind of training.
//!
//! In: a loaded model, examples of token ids, settings, an order. Out: the model trained in place, and a row a
//! step. A step is: micro-batches forward and backward, one read of the step's numbers from the
//! device, and, if they are finite, one update. Nothing else is synchronised to the host. May not
//! enter: text, model folders, the protocol.

use rlhfd_config::TrainSettings;
use rlhfd_domain::divergence::{Diverged, Limits, Lookout};
use tch::{Device, Kind, Tensor};

use super::adamw::AdamConfig;
use super::batches::BatchPlan;
use super::blocks::Block;
use super::error::TrainError;
use super::groups::{Group, Sides};
use super::head::{self, Scored, Wanted};
use super::learners::Learners;
use super::loss::{DpoLoss, Logprobs, PairLoss, RewardLoss, token_sums};
use super::pack::{Example, Packed, TokenPair};
use super::saver::Saver;
use super::schedule::Schedule;
use super::state::{self, StatePlace};
use super::steps::StepRow;
use super::trunk::{Pass, Trunk, push};
use crate::model::Transformer;
use crate::watch::Watch;

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective<'a> {
    /// Direct preference optimisation, by the language head.
    Dpo(DpoLoss),
    /// The likelihood of the assistant's tokens in these blocks, by the language head.
    Sft(&'a [Block]),
    /// Bradley and Terry's likelihood of the preferences in these groups, by the score head.
    Reward(RewardLoss, &'a [Group]),
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
    /// The pairs of DPO, in the order of the data.
    pub pairs: &'a [TokenPair],
    /// What is learnt.
    pub objective: Objective<'a>,
    /// How fast, how long.
    pub settings: &'a TrainSettings,
    /// Examples of a micro-batch, where they are to be fewer than the settings say.
    pub micro_batch: Option<u64>,
    /// Which examples make which step.
    pub plan: BatchPlan,
    /// Where the state is kept; None keeps none.
    pub state: Option<StatePlace>,
    /// Frozen states already computed for these very examples by this very model, or a fresh trunk.
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
    /// `NonFinite` (the step is not applied), `Diverged`, `Cancelled`, and what the state folder says.
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
        let mut lookout = Lookout::new(self.limits(), steps);
        for row in &rows {
            look(&mut lookout, row)?;
        }
        let mut saver = Saver::new(self.state.clone(), rows.len() as u64);
        while (rows.len() as u64) < steps {
            let index = rows.len() as u64;
            match self.step(index, schedule.rate(index), &mut learners, observer) {
                Ok(row) => {
                    (observer.stepped)(&row, steps);
                    look(&mut lookout, &row)?;
                    rows.push(row);
                }
                Err(error @ TrainError::Cancelled { .. }) => {
                    saver.save_in_time(&learners, &rows, observer.watch.time_left())?;
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

    fn limits(&self) -> Limits {
        Limits {
            loss_growth_max: self.settings.loss_growth_max,
            kl_max: self.settings.kl_max,
            stuck_steps: self.settings.stuck_steps,
            learning_rate: self.settings.learning_rate,
            beta: self.settings.beta,
        }
    }

    /// One optimiser step; `index` from 0.
    fn step(
        &mut self,
        index: u64,
        rate: f64,
        learners: &mut Learners,
        observer: &Observer<'_>,
    ) -> Result<StepRow, TrainError> {
        let examples = self.plan.step_examples(index);
        let weight = self.weight(&examples);
        let mut sums = Vec::new();
        let mut losses = Vec::new();
        for (number, part) in examples.chunks(self.micro_batch_examples()).enumerate() {
            self.model.adapters().draw_for(index, number as u64);
            let part = self.micro_batch(part, weight.recip(), learners);
            sums.push(part.sums);
            losses.push(part.losses);
            learners.collect();
            if observer.watch.tick(part.tokens).is_err() {
                learners.clear();
                return Err(TrainError::Cancelled { step: index });
            }
        }
        let norm = learners.gradient_norm();
        let sums = Tensor::stack(&sums, 0).sum_dim_intlist(0, false, Kind::Double);
        let read = Tensor::cat(&[&sums, &norm.view(1).to_device(sums.device())], 0);
        let read = Vec::<f64>::try_from(&read).unwrap_or_default();
        let [loss, ahead, margin, chosen, rejected, norm] = read[..] else {
            return Err(non_finite(index, "a loss", None));
        };
        if !loss.is_finite() {
            return Err(non_finite(index, "a loss", self.first_bad(&losses, &examples)));
        }
        if !norm.is_finite() {
            return Err(non_finite(index, "a gradient norm", None));
        }
        learners.apply(rate, index + 1, (norm, self.settings.max_grad_norm));
        let numbers = [loss, ahead, margin, chosen, rejected].map(|sum| sum / weight);
        Ok(self.row(index + 1, rate, norm, numbers))
    }

    /// What the sums of a step are divided by: its pairs, or its learnt tokens.
    fn weight(&self, examples: &[usize]) -> f64 {
        let count: usize = match self.objective {
            Objective::Sft(blocks) => {
                examples.iter().map(|index| blocks[*index].loss_tokens()).sum()
            }
            Objective::Reward(_, groups) => {
                examples.iter().map(|index| groups[*index].pairs.len()).sum()
            }
            Objective::Dpo(_) => {
                return examples.iter().map(|pair| self.pairs[*pair].weight).sum();
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52 tokens")]
        let count = count.max(1) as f64;
        count
    }

    fn micro_batch_examples(&self) -> usize {
        let settings = match self.objective {
            Objective::Sft(_) => self.settings.micro_batch_sequences,
            Objective::Dpo(_) | Objective::Reward(..) => self.settings.micro_batch_pairs,
        };
        let examples = self.micro_batch.unwrap_or(u64::from(settings));
        usize::try_from(examples).unwrap_or(1).max(1)
    }

    fn row(&self, step: u64, lr: f64, grad_norm: f64, numbers: [f64; 5]) -> StepRow {
        let [loss, accuracy, margin, chosen, rejected] = numbers;
        let dpo = matches!(self.objective, Objective::Dpo(_));
        let reward = matches!(self.objective, Objective::Reward(..));
        let sft = matches!(self.objective, Objective::Sft(_));
        StepRow {
            step,
            loss,
            lr,
            grad_norm,
            accuracy: (!sft).then_some(accuracy),
            margin: (!sft).then_some(margin),
            implicit_reward_chosen: dpo.then_some(chosen),
            implicit_reward_rejected: dpo.then_some(rejected),
            score_chosen: reward.then_some(chosen),
            score_rejected: reward.then_some(rejected),
            token_accuracy: sft.then_some(accuracy),
        }
    }

    /// The first pair or conversation, in the order of the data, whose loss is not finite.
    fn first_bad(&self, losses: &[Tensor], examples: &[usize]) -> Option<String> {
        let numbers: Vec<usize> = match self.objective {
            Objective::Sft(blocks) => {
                let documents = examples.iter().flat_map(|index| &blocks[*index].documents);
                documents.map(|document| document.line).collect()
            }
            Objective::Reward(_, groups) => {
                let groups = examples.iter().map(|index| &groups[*index]);
                groups
                    .flat_map(|group| std::iter::repeat_n(group.line, group.pairs.len()))
                    .collect()
            }
            Objective::Dpo(_) => examples.iter().map(|pair| pair + 1).collect(),
        };
        let losses = Vec::<f32>::try_from(&Tensor::cat(losses, 0)).unwrap_or_default();
        let bad = losses.iter().zip(numbers).filter(|(loss, _)| !loss.is_finite());
        let first = bad.map(|(_, number)| number).min()?;
        Some(match self.objective {
            Objective::Sft(_) => format!("the conversation of line {first}"),
            Objective::Reward(..) => format!("a preference of line {first}"),
            Objective::Dpo(_) => {
                format!("pair {first} of those trained on, from 1")
            }
        })
    }

    /// Forward and backward of one micro-batch. `share` is what a pair, or a learnt token, counts in
    /// its step.
    fn micro_batch(&mut self, part: &[usize], share: f64, learners: &Learners) -> Part {
        match self.objective {
            Objective::Dpo(dpo) => {
                let (packed, pass) = self.forward(self.pairs, part);
                let pairs: Vec<&TokenPair> = part.iter().map(|index| &self.pairs[*index]).collect();
                let loss = self.through_head((&packed, &pass), learners, |scored| {
                    let logprobs = &scored.logprobs;
                    let (loss, slopes) = dpo_sequences(&dpo, &packed, logprobs, &pairs, share);
                    (loss, slopes.index_select(0, &packed.sequence_of))
                });
                Part::of_pairs(&loss, &packed, &weights_of(&pairs, self.model.head_device()))
            }
            Objective::Sft(blocks) => {
                let (packed, pass) = self.forward(blocks, part);
                self.through_head((&packed, &pass), learners, |scored| {
                    (Part::of_documents(scored, &packed), scored.logprobs.full_like(-share))
                })
            }
            Objective::Reward(reward, groups) => {
                let (packed, pass) = self.forward(groups, part);
                let hidden = self.model.final_norm(&pass.stream.index_select(0, &packed.last));
                let scores = self.model.scores(&hidden);
                let groups = part.iter().map(|index| &groups[*index]);
                let sides = Sides::of(groups, self.model.head_device());
                let side = |places: &Tensor| scores.index_select(0, places);
                let loss = reward.of(&side(&sides.chosen), &side(&sides.rejected), &sides.apart);
                let weights = loss.loss.ones_like().to_kind(Kind::Double);
                loss.share_of_step(&weights, share).backward();
                self.trunk.backward(self.model, &packed, &pass);
                Part::of_pairs(&loss, &packed, &weights)
            }
        }
    }

    /// The stream of the examples at these indices.
    fn forward<E: Example>(&mut self, all: &[E], part: &[usize]) -> (Packed, Pass) {
        let examples: Vec<(usize, &E)> = part.iter().map(|index| (*index, &all[*index])).collect();
        let only: Vec<&E> = examples.iter().map(|(_, example)| *example).collect();
        let packed = Packed::of(&only, self.model);
        let pass = self.trunk.forward(self.model, &packed, &examples);
        (packed, pass)
    }

    /// The language head over a micro-batch, forward and backward. `of` gives, from the log-probs,
    /// what is reported and the loss's slope towards each of them (f32 `[positions]`).
    fn through_head<T>(
        &self,
        (packed, pass): (&Packed, &Pass),
        learners: &Learners,
        of: impl FnOnce(&Scored) -> (T, Tensor),
    ) -> T {
        let model = self.model;
        let hidden = model.final_norm(&pass.stream.index_select(0, &packed.predicting));
        let head = learners.find(head::weight_name(model));
        let wanted = match head {
            Some(_) => Wanted::WeightGradient,
            None => Wanted::HiddenGradient,
        };
        let scored = head::forward(model, &hidden, &packed.targets, wanted);
        let (told, slopes) = of(&scored);
        if let Some(gradient) = scored.hidden_gradient(&slopes) {
            push(&hidden, &gradient);
        }
        self.trunk.backward(model, packed, pass);
        if let Some(head) = head {
            let mut gradient = head.gradient_to_add_to();
            scored.add_weight_gradient(model, &slopes, &mut gradient);
        }
        told
    }
}

/// What a micro-batch gives.
struct Part {
    /// f64 `[5]`; see [`PairLoss::sums`] and [`token_sums`].
    sums: Tensor,
    /// f32, one loss a pair or document.
    losses: Tensor,
    /// Tokens computed.
    tokens: u64,
}

impl Part {
    fn of_pairs(loss: &PairLoss, packed: &Packed, weights: &Tensor) -> Self {
        Self { sums: loss.sums(weights), losses: loss.loss.detach(), tokens: packed.tokens() }
    }

    fn of_documents(scored: &Scored, packed: &Packed) -> Self {
        Self {
            sums: token_sums(&scored.logprobs, &scored.hits),
            losses: -sequence_sums(packed, &scored.logprobs),
            tokens: packed.tokens(),
        }
    }
}

/// The DPO loss of a micro-batch from per-token log-probs, and its slope towards each sequence's summed
/// log-prob (f32 `[sequences]`). `share` is what a weight of 1 counts in its step.
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
    let weights = weights_of(pairs, logprobs.device());
    loss.share_of_step(&weights, share).backward();
    let slopes = policy.grad().view(-1);
    (loss, slopes)
}

/// The pairs' weights: f64 `[pairs]`.
fn weights_of(pairs: &[&TokenPair], device: Device) -> Tensor {
    let weights: Vec<f64> = pairs.iter().map(|pair| pair.weight).collect();
    Tensor::from_slice(&weights).to_device(device)
}

/// Per-token log-probs summed by sequence: f32 `[sequences]`.
pub fn sequence_sums(packed: &Packed, logprobs: &Tensor) -> Tensor {
    let zeros = Tensor::zeros([packed.sequences()], (Kind::Float, logprobs.device()));
    zeros.index_add(0, &packed.sequence_of, logprobs).detach()
}

/// What the figures of a step say of the whole training.
fn look(lookout: &mut Lookout, row: &StepRow) -> Result<(), TrainError> {
    match lookout.step(&row.into()) {
        None => Ok(()),
        Some(Diverged { divergence, figures }) => {
            Err(TrainError::Diverged { step: row.step, divergence, figures })
        }
    }
}

fn non_finite(index: u64, what: &'static str, example: Option<String>) -> TrainError {
    TrainError::NonFinite { step: index + 1, what, example }
}
