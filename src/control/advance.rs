//! One look at the active run: what control can do now is done, and what is waited for is said.
//!
//! In: the database, the configuration, time. Out: [`Advanced`]. Whatever it does is one transaction
//! each, and doing it twice changes nothing, so that a look may be cut off at any point. May not
//! enter: workers.

pub(crate) mod arms;
mod jobs;
mod lacks;
mod reference;
mod start;
pub(crate) mod tidy;
pub(crate) mod words;

use std::sync::Arc;

use rlhfd_config::CheckedConfig;
use rlhfd_domain::Name;
use rlhfd_store::{ModelIdentity, Run, RunIdentity, StoreError, UnitRow};

use self::start::between_iterations;
use self::words::changed_knobs;

use crate::actors::attempts;
use crate::actors::iteration::OrderContext;
use crate::actors::stage::{Perform, StageError};
use crate::handles::{AskError, now_ms};

/// What a gate waits for that has nothing to look at: it would reject every checkpoint.
pub const NOTHING_KEPT: &str = "[gate] looks at answers to prompts that are kept for evaluation, and \
    none is; `rlhfctl prompts add FILE --set NAME --reserve 0.1` keeps some";

/// Ready units looked at.
const READY_MAX: u32 = 64;

/// What a look gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advanced {
    /// Something was done: look again.
    pub changed: bool,
    /// There is work for workers.
    pub ready: bool,
    /// What has to happen before the run goes on, as whole sentences.
    pub waits_for: Vec<String>,
    /// What the configuration says and nothing follows yet, as a sentence.
    pub pending: Option<String>,
}

impl Advanced {
    fn waits(sentence: impl Into<String>) -> Self {
        Self { waits_for: vec![sentence.into()], ..Self::default() }
    }

    fn changed() -> Self {
        Self { changed: true, ..Self::default() }
    }
}

/// Looks at the active run, once.
pub async fn advance(ctx: &OrderContext) -> Result<Advanced, AskError> {
    if !ctx.stage.health.is_well() {
        // What nobody needs may be just what fills the place. Where nothing can be written at all, the
        // fault that stands says so.
        if tidy::make_room(ctx).await.unwrap_or(false) {
            return Ok(Advanced::changed());
        }
        let faults = ctx.live.now().faults;
        return Ok(Advanced { waits_for: faults.into_values().collect(), ..Advanced::default() });
    }
    let config = ctx.stage.config.borrow().clone();
    let run = match open_run(ctx, &config).await? {
        Ok(run) => run,
        Err(sentence) => return Ok(Advanced::waits(sentence)),
    };
    if let Some(paused) = &run.paused {
        let by = paused.by.label();
        return Ok(Advanced::waits(format!(
            "the run is paused by the {by} ({}); `rlhfctl resume` lets it go on",
            paused.reason
        )));
    }
    let id = run.id;
    let ready = ctx.stage.store.read(move |r| r.ready_units(id, READY_MAX)).await?;
    if let Some(unit) = ready.iter().find(|unit| unit.work.by_control()) {
        perform(ctx, unit.clone()).await?;
        return Ok(Advanced::changed());
    }
    let current = ctx.stage.store.read(move |r| r.current_iteration(id)).await?;
    let pending = current.as_ref().and_then(|iteration| {
        let changed = changed_knobs(&iteration.config, &config.to_frozen_toml());
        (!changed.is_empty()).then(|| {
            format!(
                "iteration {} keeps the configuration that it started with; {} applies from the \
                 next one",
                iteration.iteration,
                changed.join(", ")
            )
        })
    });
    let mut advanced = match current {
        Some(_) => Advanced { pending, ..Advanced::default() },
        None => between_iterations(ctx, &config, &run).await?,
    };
    ctx.live.change(|live| live.config_pending = advanced.pending.take());
    advanced.ready |= !ready.is_empty();
    if advanced.ready {
        advanced.waits_for.extend(ctx.live.now().faults.into_values());
    }
    Ok(advanced)
}

/// The run that the configuration names, made or matched; else why it cannot be.
pub async fn open_run(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
) -> Result<Result<Run, String>, AskError> {
    let policy = match identity(ctx, &config.run.policy.path).await? {
        Ok(identity) => identity,
        Err(sentence) => return Ok(Err(sentence)),
    };
    let reference = match &config.run.reference {
        None => None,
        Some(place) => match identity(ctx, &place.path).await? {
            Ok(identity) => Some(identity),
            Err(sentence) => return Ok(Err(sentence)),
        },
    };
    let name = match Name::parse(&config.run.name, "run") {
        Ok(name) => name,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let start_job = match config.run.start.job().map(|job| Name::parse(job, "training job")) {
        Some(Err(error)) => return Ok(Err(error.to_string())),
        Some(Ok(job)) => Some(job),
        None => None,
    };
    // The very same model needs no row of its own, unless the policy moves away from it.
    let reference = reference.filter(|model| start_job.is_some() || model.sha256 != policy.sha256);
    let identity = RunIdentity { name, seed: config.run.seed, policy, start_job, reference };
    let active = ctx.stage.store.read(|r| r.active_run()).await?;
    if let Some(run) = active.filter(|run| run.name == identity.name.as_str()) {
        let same = matches(ctx, &run, &identity).await?;
        if same {
            return Ok(Ok(run));
        }
    }
    match ctx.stage.store.write(move |s| s.open_run(&identity, now_ms())).await {
        Ok(run) => Ok(Ok(run)),
        Err(AskError::Store(error @ StoreError::Conflict { .. })) => Ok(Err(error.to_string())),
        Err(other) => Err(other),
    }
}

/// Whether the active run is this one already: then nothing is written at every look.
async fn matches(ctx: &OrderContext, run: &Run, identity: &RunIdentity) -> Result<bool, AskError> {
    let (base, reference) = (run.base, run.named_reference());
    let (base, reference) = ctx
        .stage
        .store
        .read(move |r| {
            let reference = reference.map(|reference| r.checkpoint(reference)).transpose()?;
            Ok((r.checkpoint(base)?, reference))
        })
        .await?;
    let is = |row: &rlhfd_store::Checkpoint, model: &ModelIdentity| {
        row.sha256 == model.sha256 && row.path == model.path
    };
    let same_reference = match (&reference, &identity.reference) {
        (Some(row), Some(model)) => is(row, model),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    let start_job = identity.start_job.as_ref().map(Name::as_str);
    let same_start = run.seed == identity.seed && run.start_job.as_deref() == start_job;
    Ok(same_start && is(&base, &identity.policy) && same_reference)
}

/// A folder's identity; else a sentence.
pub async fn identity(
    ctx: &OrderContext,
    folder: &std::path::Path,
) -> Result<Result<ModelIdentity, String>, AskError> {
    let (models, places) = (Arc::clone(&ctx.models), Arc::clone(&ctx.stage.places));
    let folder = folder.to_path_buf();
    let read = actix_rt::task::spawn_blocking(move || models.identity(&places, &folder)).await;
    Ok(read.map_err(|_| AskError::Gone)?.map_err(|error| error.to_string()))
}

/// Does a unit that needs no worker.
async fn perform(ctx: &OrderContext, unit: UnitRow) -> Result<(), AskError> {
    let Some(performer) = ctx.stages.performer(&unit) else { return Ok(()) };
    let id = unit.id;
    let begun = ctx.stage.write_patiently(move |s| s.lease_unit(id, None, now_ms())).await;
    let attempt = match begun {
        Ok(Some(attempt)) => attempt.id,
        Ok(None) | Err(StageError::Ask(AskError::Store(StoreError::Illegal(_)))) => return Ok(()),
        Err(StageError::Ask(error)) => return Err(error),
        Err(other) => return Err(AskError::Refused(other.to_string())),
    };
    let unit = Arc::new(unit);
    let work = Perform { unit: Arc::clone(&unit), attempt };
    let done = performer.send(work).await.map_err(|_| AskError::Gone)?;
    if let Err(error) = done {
        tracing::warn!(key = %unit.key, "a unit of control failed: {error}");
        attempts::failed(&ctx.stage, &unit, attempt, error).await;
    }
    Ok(())
}
