//! The model that learns, as a training starts with it.
//!
//! In: a job, its base folder, its masters. Out: a loaded model whose trainable parameters carry
//! gradients, its f32 masters, and what a reward model's folder will say of padding. May not enter:
//! pairs' files, steps, publishing.

use rlhfd_config::{TrainSettings, Training};
use serde_json::Value;
use tch::Kind;

use super::error::TrainError;
use super::examples::Examples;
use super::job::TrainJob;
use super::lora::Lora;
use super::publish::{Masters, RewardFolder};
use super::reward_head;
use super::trunk::Activations;
use crate::device::Compute;
use crate::errors::{ModelError, TextError};
use crate::model::labels::Labels;
use crate::model::{Dropout, Head, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use crate::render::Renderer;

/// What a training starts from.
pub(super) struct Origin {
    /// The folder whose weights learn, or stay frozen beneath adapters.
    pub(super) base: ModelFolder,
    /// Its f32 masters. Beneath adapters none: the base is then the published folder to the bit, as
    /// a reference that is loaded from there.
    pub(super) masters: Masters,
    /// The adapters, where they are what learns.
    pub(super) lora: Option<Lora>,
}

pub(super) fn options(compute: Compute, trainable: Trainable) -> LoadOptions {
    LoadOptions { devices: compute.devices, precision: compute.precision, trainable }
}

pub(super) fn activations(settings: &TrainSettings) -> Activations {
    if settings.activation_checkpointing { Activations::Recomputed } else { Activations::Kept }
}

/// Loads the model that learns, from its masters where it has any.
pub(super) fn load(
    job: &TrainJob,
    compute: Compute,
    origin: &Origin,
) -> Result<Transformer, TrainError> {
    let Origin { base, masters, lora } = origin;
    let trainable = match (lora, job.settings.trainable_layers) {
        (Some(_), _) => Trainable::Adapters,
        (None, Some(blocks)) => Trainable::TopBlocks(blocks as usize),
        (None, None) => Trainable::Everything,
    };
    let missing =
        |name| ModelError::Tensor { name, problem: "is missing".to_owned(), dir: base.dir.clone() };
    let model = Transformer::load(base, &options(compute, trainable))?;
    let needs_head = job.training == Training::Reward && base.config.head == Head::Language;
    let model = if needs_head {
        let head = reward_head::seeded(base.config.width, initializer_range(base), job.seed);
        model.with_score_head(&head).map_err(missing)?
    } else {
        model
    };
    let model = match lora {
        Some(lora) => {
            let dropout = Dropout { probability: job.settings.lora_dropout, seed: job.seed };
            model.with_adapters(&lora.adapters, dropout).map_err(missing)?
        }
        None => model,
    };
    let _no_grad = tch::no_grad_guard();
    for (name, parameter) in model.parameters() {
        if let Some(master) = masters.get(name)? {
            parameter.detach().copy_(&master);
        }
    }
    Ok(model)
}

fn initializer_range(base: &ModelFolder) -> f64 {
    let config = std::fs::read(base.dir.join("config.json")).ok();
    let config: Option<Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let range = config.and_then(|config| config.get("initializer_range")?.as_f64());
    range.filter(|range| *range > 0.0 && *range < 10.0).unwrap_or(0.02)
}

/// A tensor's f32 values where they are finer than what the model computes with.
pub(super) fn finer(
    origin: &Origin,
    precision: Precision,
    name: &str,
) -> Result<Option<tch::Tensor>, TrainError> {
    let Origin { base, masters, lora } = origin;
    if precision == Precision::Float32 {
        // The parameter is its own master; `load` has brought it to the folder's masters.
        return Ok(None);
    }
    if let Some(matrix) = lora.as_ref().and_then(|lora| lora.adapters.get(name)) {
        return Ok(Some(matrix.shallow_clone()));
    }
    if let Some(master) = masters.get(name)? {
        return Ok(Some(master));
    }
    for file in base.files() {
        let entry = file.entries.iter().find(|entry| entry.name == name);
        if let Some(entry) = entry.filter(|entry| entry.kind == Kind::Float) {
            return Ok(Some(file.read(entry)?));
        }
    }
    Ok(None)
}

pub(super) fn reward_folder(
    job: &TrainJob,
    base: &ModelFolder,
    renderer: Option<&Renderer>,
    examples: &Examples,
) -> Result<Option<RewardFolder>, TrainError> {
    let (Training::Reward, Some(renderer)) = (job.training, renderer) else { return Ok(None) };
    let tokenizer = &renderer.tokenizer;
    let pad_id = reward_head::pad_id(tokenizer, base.config.vocabulary, &examples.last_ids());
    let Some(pad_id) = pad_id else {
        return Err(TrainError::Job {
            path: base.dir.join("tokenizer_config.json"),
            problem: "every token could end a text, so none can be the pad token\n\
                      try: name a pad_token that is no stop token"
                .to_owned(),
        });
    };
    let pad_token = tokenizer.has(pad_id).then(|| tokenizer.token(pad_id));
    Ok(Some(RewardFolder { pad_id, pad_token }))
}

/// What a preference model's folder says of its labels.
pub(super) fn labels(
    job: &TrainJob,
    renderer: Option<&Renderer>,
) -> Result<Option<Labels>, TextError> {
    let renderer = renderer.filter(|_| job.training == Training::Preference);
    renderer.map(Renderer::labels).transpose()
}
