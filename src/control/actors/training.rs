//! The training actor: moving references, offline pairs, reference log-probs, updates, and the checkpoints that they
//! publish; of iterations and of training jobs.
//!
//! In: units of the stages train and checkpoint. Out: their works, folders and rows. May not enter:
//! losses.

use rlhfd_domain::WorkKind;

use super::stage::{
    Conclude, Perform, Prepare, Prepared, StageContext, StageError, misplaced, stage_actor,
};
use crate::stages::{average, checkpoint, logprobs, offline, train};

stage_actor! {
    /// The actor.
    TrainingActor { Prepare => prepare, Conclude => conclude, Perform => perform }
}

async fn prepare(ctx: &StageContext, message: Prepare) -> Result<Prepared, StageError> {
    match message.unit.work {
        WorkKind::Average => average::prepare(ctx, &message.unit).await,
        WorkKind::RenderPairs => offline::prepare_render(ctx, &message.unit).await,
        WorkKind::Logprobs => logprobs::prepare(ctx, &message.unit).await,
        WorkKind::LogprobsPairs => offline::prepare_logprobs(ctx, &message.unit).await,
        WorkKind::TrainDpo
        | WorkKind::TrainSft
        | WorkKind::TrainReward
        | WorkKind::TrainPreference => train::prepare(ctx, &message.unit).await,
        _ => Err(misplaced(&message.unit)),
    }
}

async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    match done.unit.work {
        WorkKind::Average => average::conclude(ctx, done).await,
        WorkKind::RenderPairs => offline::conclude_render(ctx, done).await,
        WorkKind::Logprobs => logprobs::conclude(ctx, done).await,
        WorkKind::LogprobsPairs => offline::conclude_logprobs(ctx, done).await,
        WorkKind::TrainDpo
        | WorkKind::TrainSft
        | WorkKind::TrainReward
        | WorkKind::TrainPreference => train::conclude(ctx, done).await,
        _ => Err(misplaced(&done.unit)),
    }
}

async fn perform(ctx: &StageContext, work: Perform) -> Result<(), StageError> {
    match work.unit.work {
        WorkKind::Checkpoint => checkpoint::perform(ctx, &work).await,
        _ => Err(misplaced(&work.unit)),
    }
}
