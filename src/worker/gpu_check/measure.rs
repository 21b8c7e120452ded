//! What one side (devices and a precision) computes for a subject.
//!
//! In: a [`Subject`], a [`Side`]. Out: [`Measured`], all of it on the host in f32 or f64. The code
//! paths are the worker's own: the same forward, generation and training as the units'. May not
//! enter: bounds, comparisons.

use rlhfd_protocol::worker::{Arm, Purpose};
use tch::{Device, Tensor};

use super::models::Subject;
use crate::errors::WorkerError;
use crate::generate::{Generation, PromptTask, Written, generate_batch};
use crate::logprob::{host_floats, response_logprobs};
use crate::model::{Devices, LoadOptions, Precision, Trainable, Transformer};
use crate::rehearsal;
use crate::train::trunk::Activations;
use crate::watch::Watch;

/// New ids of a greedy response.
const GREEDY_TOKENS: u32 = 24;
/// The trainings: steps at the subject's own rate, and at the paper's, far below bf16's resolution,
/// that only f32 masters can follow.
const FALLING_EPOCHS: u32 = 4;
const PAPER_EPOCHS: u32 = 10;
const PAPER_RATE: f64 = 5e-7;
const COMMON: &str = "beta = 0.05\nschedule = \"constant\"\nwarmup_ratio = 0.0\nbatch_pairs = 4\n\
                      micro_batch_pairs = 2\nmax_grad_norm = 1.0\nweight_decay = 0.0\n";

/// Devices and a precision.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    pub devices: Devices,
    pub precision: Precision,
}

/// A training's losses, and how far its masters moved.
pub struct Curve {
    /// One a step.
    pub losses: Vec<f64>,
    /// Final minus initial master of each tensor, f32 on the CPU.
    pub moved: Vec<Tensor>,
}

/// All that one side gave.
pub struct Measured {
    /// One a sequence, `[tokens · vocabulary]`.
    pub logits: Vec<Vec<f32>>,
    /// One a sequence, in nats.
    pub logprobs: Vec<Vec<f32>>,
    /// One a prompt.
    pub greedy: Vec<Vec<u32>>,
    pub falling: Curve,
    pub paper: Curve,
}

/// Measures one side.
///
/// # Errors
/// What training or generation say.
pub fn measure(subject: &Subject, side: Side) -> Result<Measured, WorkerError> {
    let watch = Watch::default();
    let model = model(subject, side, Trainable::Nothing)?;
    let sequences = subject.sequences();
    let logits = sequences.iter().map(|sequence| logits(&model, &sequence.ids)).collect();
    let logprobs = response_logprobs(&model, &sequences, &watch)?;
    let greedy = greedy(subject, &model, &watch)?;
    drop(model);
    // Both ways back over the border of two devices.
    let several = side.devices.all().len() > 1;
    let paper = if several { Activations::Recomputed } else { Activations::Kept };
    Ok(Measured {
        logits,
        logprobs,
        greedy,
        falling: train(subject, side, (subject.falling_rate, FALLING_EPOCHS), Activations::Kept)?,
        paper: train(subject, side, (PAPER_RATE, PAPER_EPOCHS), paper)?,
    })
}

/// The subject's model on that side.
///
/// # Errors
/// None that a correct build gives.
pub fn model(
    subject: &Subject,
    side: Side,
    trainable: Trainable,
) -> Result<Transformer, WorkerError> {
    let config = subject.config()?;
    let weights = subject.weights(&config);
    let place = |(name, tensor): (String, Tensor)| (name, tensor.to_kind(side.precision.kind()));
    let weights = weights.into_iter().map(place).collect();
    let options = LoadOptions { devices: side.devices, precision: side.precision, trainable };
    Transformer::assemble(config, options, weights)
        .map_err(|name| WorkerError::Torch(format!("the check's own model has no {name}")))
}

/// Logits at every position, flat.
pub fn logits(model: &Transformer, ids: &[u32]) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let ids = Tensor::from_slice(&ids).to_device(model.device()).unsqueeze(0);
    host_floats(&model.logits(&model.hidden(&ids)))
}

fn greedy(
    subject: &Subject,
    model: &Transformer,
    watch: &Watch,
) -> Result<Vec<Vec<u32>>, WorkerError> {
    let prompt = |ids| PromptTask { ids, occurrence: 0 };
    let prompts: Vec<PromptTask> = subject.prompts().into_iter().map(prompt).collect();
    let arm = Arm {
        name: "greedy".to_owned(),
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        n: 1,
        first_sample: 0,
    };
    let generation = Generation {
        run_seed: 0,
        purpose: Purpose::Generate,
        iteration: 0,
        arms: vec![arm],
        max_new_tokens: GREEDY_TOKENS,
        stop_ids: Vec::new(),
    };
    let ids = |written| match written {
        Written::Responses(responses) => responses.into_iter().flat_map(|r| r.ids).collect(),
        Written::NonFinite => Vec::new(),
    };
    Ok(generate_batch(model, &prompts, &generation, watch)?.into_iter().map(ids).collect())
}

fn train(
    subject: &Subject,
    side: Side,
    (rate, epochs): (f64, u32),
    activations: Activations,
) -> Result<Curve, WorkerError> {
    let text = format!("learning_rate = {rate:e}\nepochs = {epochs}\n{COMMON}");
    let settings = rehearsal::settings(&text)?;
    let model = model(subject, side, Trainable::Everything)?;
    let initial = subject.weights(&model.config);
    let first = |name: &str| {
        let found = initial.iter().find(|(candidate, _)| candidate == name);
        found.map(|(_, tensor)| tensor.shallow_clone())
    };
    let trained = rehearsal::train(&model, subject.pairs(), (&settings, activations), first)?;
    let moved = |learner: &crate::train::learners::Learner| {
        let after = learner.master.detach().to_device(Device::Cpu);
        first(&learner.name).map_or_else(|| after.shallow_clone(), |before| &after - before)
    };
    Ok(Curve {
        losses: trained.rows.iter().map(|row| row.loss).collect(),
        moved: trained.learners.all().iter().map(moved).collect(),
    })
}
