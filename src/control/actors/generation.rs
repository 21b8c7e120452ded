//! The generation actor: probe, render and generate of the main flow.
//!
//! In: units of the stages prompts and generate. Out: their works, and their rows. May not enter:
//! evaluation's lanes.

use rlhfd_domain::WorkKind;

use super::stage::{Conclude, Prepare, Prepared, StageContext, StageError, misplaced, stage_actor};
use crate::stages::{generate, probe, render};

stage_actor! {
    /// The actor.
    GenerationActor { Prepare => prepare, Conclude => conclude }
}

async fn prepare(ctx: &StageContext, message: Prepare) -> Result<Prepared, StageError> {
    let unit = &message.unit;
    match unit.work {
        WorkKind::Probe => probe::prepare(ctx, unit).await,
        WorkKind::Render => render::prepare(ctx, unit).await,
        WorkKind::Generate => generate::prepare(ctx, unit).await,
        _ => Err(misplaced(unit)),
    }
}

async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    match done.unit.work {
        WorkKind::Probe => probe::conclude(ctx, &done).await,
        WorkKind::Render => render::conclude(ctx, done).await,
        WorkKind::Generate => generate::conclude(ctx, done).await,
        _ => Err(misplaced(&done.unit)),
    }
}
