//! What an iteration would lack: preference sets, prompts, something for its gate to look at, a part of
//! the model for its adapters.
//!
//! In: the configuration, the run, what is queued. Out: a sentence on what is waited for, or none.
//! May not enter: what is done once all is there.

use std::sync::Arc;

use rlhfd_config::{CheckedConfig, WhenShort};
use rlhfd_store::Run;

use super::words::grouped;
use crate::actors::iteration::OrderContext;
use crate::handles::{AskError, now_ms};

/// The preference sets that the configuration names and nobody has brought yet.
pub(super) async fn missing_sets(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
) -> Result<Option<String>, AskError> {
    if config.train.offline.is_empty() {
        return Ok(None);
    }
    let names = config.train.offline.clone();
    let missing = ctx.stage.store.read(move |r| {
        let mut missing = Vec::new();
        for name in names {
            if r.preference_set(&name)?.is_none() {
                missing.push(name);
            }
        }
        Ok(missing)
    });
    let missing = missing.await?;
    Ok(missing.first().map(|first| {
        format!(
            "[train] offline names preferences that are not there yet ({}): \
             `rlhfctl preferences add FILE --set {first}`",
            missing.join(", ")
        )
    }))
}

/// Whether there is nothing to evaluate on.
pub(super) async fn none_kept(ctx: &OrderContext) -> Result<bool, AskError> {
    let sets = ctx.stage.store.read(|r| r.prompt_sets(None)).await?;
    Ok(sets.iter().all(|set| set.reserved == 0))
}

/// What prompts are waited for; none where an iteration may start.
pub(super) async fn short_of(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
    fresh: u64,
) -> Result<Option<String>, AskError> {
    let wanted = config.run.prompts_per_iteration;
    if fresh >= wanted || (run.start_asked_ms.is_some() && fresh > 0) {
        return Ok(None);
    }
    if config.run.reuse_prompts {
        let id = run.id;
        let used = ctx.stage.store.read(move |r| r.used_prompts(id)).await?;
        if fresh.saturating_add(used) >= wanted {
            return Ok(None);
        }
    }
    let mut sentence = format!(
        "{} of {} prompts are queued; `rlhfctl prompts add` more, or `rlhfctl start`",
        grouped(fresh),
        grouped(wanted)
    );
    if fresh > 0 && config.run.when_short == WhenShort::TakeRest {
        let id = run.id;
        let since = ctx.stage.store.read(move |r| r.waiting_since(id)).await?;
        let waited_ms = since.map_or(0, |since| now_ms().saturating_sub(since));
        let max_ms = i64::try_from(config.run.wait_max_s).unwrap_or(i64::MAX / 1000) * 1000;
        if waited_ms >= max_ms {
            return Ok(None);
        }
        let left = (max_ms - waited_ms) / 1000;
        sentence.push_str(&format!("; in {left} s the iteration takes what there is"));
    }
    Ok(Some(sentence))
}

/// What no adapter can be made for, told before anything is generated.
pub(super) async fn vain_target(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
) -> Result<Option<String>, AskError> {
    let (config, initial) = (Arc::clone(config), run.initial);
    let initial = ctx.stage.store.read(move |r| r.checkpoint(initial)).await?;
    let folder = ctx.stage.places.resolve(&initial.path);
    let look = move || crate::check::vain_target(&folder, &config.train.settings);
    actix_rt::task::spawn_blocking(look).await.map_err(|_| AskError::Gone)
}
