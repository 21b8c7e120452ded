//! The evaluation actor: every unit of evaluation's lanes, and the summary that ends an iteration.
//!
//! In: units of the stage evaluate. Out: their works, and their rows. May not enter: the main flow.

use rlhfd_domain::WorkKind;

use super::stage::{
    Conclude, Perform, Prepare, Prepared, StageContext, StageError, misplaced, stage_actor,
};
use crate::stages::{generate, logprobs, prefer, render, score, summarise};

stage_actor! {
    /// The actor.
    EvaluationActor { Prepare => prepare, Conclude => conclude, Perform => perform }
}

async fn prepare(ctx: &StageContext, message: Prepare) -> Result<Prepared, StageError> {
    let unit = &message.unit;
    match unit.work {
        WorkKind::Render => render::prepare(ctx, unit).await,
        WorkKind::Generate => generate::prepare(ctx, unit).await,
        WorkKind::Score => score::prepare(ctx, unit).await,
        WorkKind::Prefer => prefer::prepare(ctx, unit).await,
        WorkKind::Logprobs => logprobs::prepare(ctx, unit).await,
        _ => Err(misplaced(unit)),
    }
}

async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    match done.unit.work {
        WorkKind::Render => render::conclude(ctx, done).await,
        WorkKind::Generate => generate::conclude(ctx, done).await,
        WorkKind::Score => score::conclude(ctx, done).await,
        WorkKind::Prefer => prefer::conclude(ctx, done).await,
        WorkKind::Logprobs => logprobs::conclude(ctx, done).await,
        _ => Err(misplaced(&done.unit)),
    }
}

async fn perform(ctx: &StageContext, work: Perform) -> Result<(), StageError> {
    match work.unit.work {
        WorkKind::Summarise => summarise::perform(ctx, &work).await,
        _ => Err(misplaced(&work.unit)),
    }
}
