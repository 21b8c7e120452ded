//! A DPO training in memory: the worker's own steps, without folders.
//!
//! In: a loaded model, pairs of ids, settings. Out: what the training gave; the model is trained in
//! place. The model that is given is its own reference. For `gpu-check` and `bench`. May not enter:
//! files, units.

use rlhfd_config::{TrainSettings, Training as Kind};
use tch::Tensor;

use crate::errors::WorkerError;
use crate::model::Transformer;
use crate::train::batches::{BatchPlan, Order};
use crate::train::error::TrainError;
use crate::train::learners::Learners;
use crate::train::loss::DpoLoss;
use crate::train::pack::TokenPair;
use crate::train::reference;
use crate::train::trainer::{Objective, Observer, Trained, Training};
use crate::train::trunk::{Activations, Trunk};
use crate::watch::Watch;

/// Settings of DPO from the lines of a `[train]` table.
///
/// # Errors
/// What is wrong with them.
pub fn settings(text: &str) -> Result<TrainSettings, WorkerError> {
    TrainSettings::read(Kind::Dpo, text, &[])
        .map_err(|problems| WorkerError::Torch(format!("the rehearsal's own settings: {problems}")))
}

/// Computes the reference's log-probs, then trains. `master_of` gives f32 values that are finer than
/// the model's own, where there are any.
///
/// # Errors
/// What training says.
pub fn train(
    model: &Transformer,
    mut pairs: Vec<TokenPair>,
    (settings, activations): (&TrainSettings, Activations),
    master_of: impl Fn(&str) -> Option<Tensor>,
) -> Result<Trained, WorkerError> {
    let watch = Watch::default();
    let observer = Observer { watch: &watch, filled: &|_, _| {}, stepped: &|_, _| {} };
    let mut trunk = Trunk::new(model, activations);
    reference::fill(model, &mut trunk, &mut pairs, &observer)?;
    let learners = Learners::new(model, Training::adam(settings), |name| {
        Ok::<_, TrainError>(master_of(name))
    })?;
    let training = Training {
        model,
        pairs: &pairs,
        objective: Objective::Dpo(DpoLoss {
            loss: settings.loss,
            beta: settings.beta,
            label_smoothing: settings.label_smoothing,
        }),
        settings,
        micro_batch: None,
        plan: BatchPlan {
            examples: pairs.len(),
            batch: settings.batch_pairs as usize,
            epochs: u64::from(settings.epochs),
            order: Order::AsGiven,
        },
        state: None,
        trunk,
    };
    Ok(training.run(learners, &observer)?)
}
