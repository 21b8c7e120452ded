//! The labelling actor: scores and comparisons of the iteration's own responses.
//!
//! In: units of the stage label. Out: their works, and their rows. May not enter: pairing.

use rlhfd_domain::WorkKind;

use super::stage::{Conclude, Prepare, Prepared, StageContext, StageError, misplaced, stage_actor};
use crate::stages::{prefer, score};

stage_actor! {
    /// The actor.
    LabellingActor { Prepare => prepare, Conclude => conclude }
}

async fn prepare(ctx: &StageContext, message: Prepare) -> Result<Prepared, StageError> {
    match message.unit.work {
        WorkKind::Score => score::prepare(ctx, &message.unit).await,
        WorkKind::Prefer => prefer::prepare(ctx, &message.unit).await,
        _ => Err(misplaced(&message.unit)),
    }
}

async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    match done.unit.work {
        WorkKind::Score => score::conclude(ctx, done).await,
        WorkKind::Prefer => prefer::conclude(ctx, done).await,
        _ => Err(misplaced(&done.unit)),
    }
}
