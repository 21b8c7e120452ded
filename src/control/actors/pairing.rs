//! The pairing actor: preferences of an iteration, without a worker.
//!
//! In: units of the stage pair. Out: their rows. May not enter: workers.

use super::stage::{Perform, StageContext, StageError, stage_actor};
use crate::stages::pair;

stage_actor! {
    /// The actor.
    PairingActor { Perform => perform }
}

async fn perform(ctx: &StageContext, work: Perform) -> Result<(), StageError> {
    pair::perform(ctx, &work).await
}
