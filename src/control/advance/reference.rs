//! What the next iteration is held to, before it starts: a moving average is made once its policy is
//! the head.
//!
//! In: the configuration, the run. Out: a planned unit, a sentence, or nothing that is waited for. May
//! not enter: the averages themselves.

use std::sync::Arc;

use rlhfd_config::CheckedConfig;
use rlhfd_domain::UnitId;
use rlhfd_store::{NextReference, Run, StoreError};

use super::Advanced;
use crate::actors::iteration::OrderContext;
use crate::handles::{AskError, now_ms};
use crate::stages::average;

/// None where the reference stands.
pub(super) async fn awaited(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
) -> Result<Option<Advanced>, AskError> {
    let (id, rule) = (run.id, average::rule(config));
    let missing = match ctx.stage.store.read(move |r| r.next_reference(id, rule)).await {
        Ok(NextReference::Stands(_)) => return Ok(None),
        Ok(NextReference::Missing(missing)) => missing,
        Err(AskError::Store(error @ StoreError::Conflict { .. })) => {
            return Ok(Some(Advanced::waits(error.to_string())));
        }
        Err(other) => return Err(other),
    };
    let unit = average::unit(missing, config.train.reference.decay);
    let key = unit.key.clone();
    let planned = ctx.stage.store.read(move |r| r.unit_by_key(id, &key)).await?;
    if planned.is_some() {
        let sentence = "the moving average that the next iteration is held to is being made";
        return Ok(Some(Advanced::waits(sentence)));
    }
    let _: Vec<UnitId> = ctx.stage.store.write(move |s| s.add_units(id, &[unit], now_ms())).await?;
    Ok(Some(Advanced::changed()))
}
