//! One look at the active run: what control can do now is done, and what is waited for is said.
//!
//! In: the database, the configuration, time. Out: [`Advanced`]. Whatever it does is one transaction
//! each, and doing it twice changes nothing, so that a look may be cut off at any point. May not
//! enter: workers.

use std::sync::Arc;

use rlhfd_config::{CheckedConfig, ScorerModel, WhenShort};
use rlhfd_domain::{Name, ScorerId, Stage, UnitId, WorkKind};
use rlhfd_store::{ModelIdentity, NewIteration, NewUnit, Run, RunIdentity, StoreError, UnitRow};

use crate::actors::attempts;
use crate::actors::iteration::OrderContext;
use crate::actors::scheduler::uses_cuda;
use crate::actors::stage::{Perform, StageError};
use crate::handles::{AskError, now_ms};
use crate::stages::plan::{self, Answered, Given, Sizes};
use crate::stages::sums;

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
    ctx.live.change(|live| live.config_pending = pending);
    let mut advanced = match current {
        Some(_) => Advanced::default(),
        None => between_iterations(ctx, &config, &run).await?,
    };
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
            // The very same model needs no row of its own.
            Ok(identity) => Some(identity).filter(|reference| reference.sha256 != policy.sha256),
            Err(sentence) => return Ok(Err(sentence)),
        },
    };
    let name = match Name::parse(&config.run.name, "run") {
        Ok(name) => name,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let identity = RunIdentity { name, seed: config.run.seed, policy, reference };
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
    let (initial, reference) = (run.initial, run.reference);
    let (initial, reference) = ctx
        .stage
        .store
        .read(move |r| Ok((r.checkpoint(initial)?, r.checkpoint(reference)?)))
        .await?;
    let wanted = identity.reference.as_ref().unwrap_or(&identity.policy);
    let is = |row: &rlhfd_store::Checkpoint, model: &ModelIdentity| {
        row.sha256 == model.sha256 && row.path == model.path
    };
    Ok(run.seed == identity.seed && is(&initial, &identity.policy) && is(&reference, wanted))
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

/// No iteration is under way: whether one may start, and what is missing.
async fn between_iterations(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
) -> Result<Advanced, AskError> {
    let id = run.id;
    let (_, done) = ctx.stage.store.read(move |r| r.iterations_so_far(id)).await?;
    if config.run.iterations_max > 0 && u64::from(done) >= config.run.iterations_max {
        return Ok(Advanced::waits(format!(
            "the run has ended after {done} iterations; raise [run] iterations_max to go on"
        )));
    }
    let scorer = match scorer(ctx, config, run).await? {
        Ok(scorer) => scorer,
        Err(sentence) => return Ok(Advanced::waits(sentence)),
    };
    match probe(ctx, config, run, &scorer).await? {
        Probe::Good => {}
        Probe::Planned => return Ok(Advanced::changed()),
        Probe::Running => {
            let sentence = "the models are being probed before their first use";
            return Ok(Advanced::waits(sentence));
        }
    }
    let fresh = ctx.stage.store.read(move |r| r.fresh_prompts(id)).await?;
    match short_of(ctx, config, run, fresh).await? {
        Some(sentence) => Ok(Advanced::waits(sentence)),
        None => start(ctx, config, run, scorer.id).await,
    }
}

struct Scorer {
    id: ScorerId,
    sha256: String,
}

/// The configuration's scorer, if its model is there.
async fn scorer(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<Result<Scorer, String>, AskError> {
    let Some(scorer) = config.label.scorers.first() else {
        return Ok(Err("the configuration names no scorer; add [[label.scorers]]".into()));
    };
    let model = match &scorer.model {
        ScorerModel::Folder(place) => match identity(ctx, &place.path).await? {
            Ok(identity) => identity,
            Err(sentence) => return Ok(Err(sentence)),
        },
        ScorerModel::RewardJob(name) => match job_model(ctx, run, name).await? {
            Ok(identity) => identity,
            Err(sentence) => return Ok(Err(sentence)),
        },
    };
    let (name, sha256) = (scorer.name.clone(), model.sha256.clone());
    let id = ctx
        .stage
        .store
        .write(move |s| s.scorer(&name, "reward", &model.path, &model.sha256))
        .await?;
    Ok(Ok(Scorer { id, sha256 }))
}

async fn job_model(
    ctx: &OrderContext,
    run: &Run,
    name: &str,
) -> Result<Result<ModelIdentity, String>, AskError> {
    let (id, wanted) = (run.id, name.to_owned());
    let found = ctx
        .stage
        .store
        .read(move |r| {
            let job = r.job_by_name(id, "reward", &wanted)?;
            let checkpoint = match job.as_ref().and_then(|job| job.checkpoint) {
                Some(checkpoint) => Some(r.checkpoint(checkpoint)?),
                None => None,
            };
            Ok((job, checkpoint))
        })
        .await?;
    Ok(match found {
        (_, Some(checkpoint)) if checkpoint.sound => {
            Ok(ModelIdentity { path: checkpoint.path, sha256: checkpoint.sha256 })
        }
        (_, Some(checkpoint)) => Err(format!(
            "the reward model {} is not sound; restore its folder {}, or train another one",
            checkpoint.name, checkpoint.path
        )),
        (Some(job), None) => Err(format!(
            "the training job reward/{name} is {}, and its reward model scores this run{}",
            job.status.label(),
            job.reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
        )),
        (None, None) => Err(format!(
            "the reward model reward/{name} is not trained yet: \
             `rlhfctl train reward --data FILE --name {name}`"
        )),
    })
}

enum Probe {
    Good,
    Planned,
    Running,
}

/// Whether these models were probed under these settings; else the probe is planned.
async fn probe(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
    scorer: &Scorer,
) -> Result<Probe, AskError> {
    let (id, initial, reference) = (run.id, run.initial, run.reference);
    let (initial, reference) = ctx
        .stage
        .store
        .read(move |r| Ok((r.checkpoint(initial)?.sha256, r.checkpoint(reference)?.sha256)))
        .await?;
    let position = config.label.scorers.first().map(|scorer| scorer.score_position);
    let text = format!("{initial} {reference} {} {position:?}", scorer.sha256);
    let key = sums::text_sum(&text)[..8].to_owned();
    if run.probed_key.as_deref() == Some(&key) {
        return Ok(Probe::Good);
    }
    let unit_key = format!("probe/{key}");
    let wanted = unit_key.clone();
    let known = ctx.stage.store.read(move |r| r.unit_by_key(id, &wanted)).await?;
    let unit = match known {
        Some(unit) if matches!(unit.state.as_str(), "open" | "running") => {
            return Ok(Probe::Running);
        }
        // Probed long ago, and something else since: once more, under a key of its own.
        Some(_) => format!("{unit_key}-{}", now_ms()),
        None => unit_key,
    };
    let unit = NewUnit {
        stage: Stage::Prompts,
        work: WorkKind::Probe,
        lane: String::new(),
        key: unit,
        plan: None,
        policy: Some(run.initial),
        scorer: Some(scorer.id),
        detail: Some(format!("{{\"probed_key\":\"{key}\"}}")),
    };
    let _: Vec<UnitId> = ctx.stage.store.write(move |s| s.add_units(id, &[unit], now_ms())).await?;
    Ok(Probe::Planned)
}

/// What prompts are waited for; none where an iteration may start.
async fn short_of(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
    fresh: u64,
) -> Result<Option<String>, AskError> {
    let wanted = config.run.prompts_per_iteration;
    if fresh >= wanted || (run.start_asked_ms.is_some() && fresh > 0) {
        return Ok(None);
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

/// Freezes configuration, draw and plan together.
async fn start(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
    scorer: ScorerId,
) -> Result<Advanced, AskError> {
    let text = config.to_frozen_toml();
    let new = NewIteration {
        run: run.id,
        config_sha256: sums::text_sum(&text),
        config: text,
        prompts_max: config.run.prompts_per_iteration,
        evaluate_prompts_max: config.evaluate.prompts_max,
    };
    let sizes = Sizes::of(config, uses_cuda(&ctx.live, config));
    let (id, lane) = (run.id, plan::initial_lane(config));
    let initial = ctx
        .stage
        .store
        .read(move |r| {
            let done = |work| r.lane_done(id, &lane, work);
            Ok(Answered { generated: done(WorkKind::Generate)?, scored: done(WorkKind::Score)? })
        })
        .await?;
    let given = Given { scorer, initial: run.initial, answered: initial, sizes };
    let config = Arc::clone(config);
    let started = ctx
        .stage
        .store
        .write(move |s| {
            s.start_iteration(&new, now_ms(), |drawn| {
                // A checked configuration always gives a plan; no units at all would be refused.
                plan::iteration(&config, drawn, &given).unwrap_or_default()
            })
        })
        .await;
    match started {
        Ok(iteration) => {
            let number = iteration.iteration;
            tracing::info!(iteration = number, prompts = iteration.prompts, "an iteration starts");
            Ok(Advanced::changed())
        }
        Err(AskError::Store(error @ StoreError::Conflict { .. })) => {
            Ok(Advanced::waits(error.to_string()))
        }
        Err(other) => Err(other),
    }
}

/// What differs between two frozen configurations: `section.key` with both values.
fn changed_knobs(frozen: &str, today: &str) -> Vec<String> {
    let (before, after) = (knobs(frozen), knobs(today));
    let mut changed = Vec::new();
    for (key, value) in &after {
        match before.iter().find(|(known, _)| known == key) {
            Some((_, old)) if old == value => {}
            Some((_, old)) => changed.push(format!("{key} = {value} (was {old})")),
            None => changed.push(format!("{key} = {value}")),
        }
    }
    let gone = before.iter().filter(|(key, _)| after.iter().all(|(known, _)| known != key));
    changed.extend(gone.map(|(key, _)| format!("{key} left out")));
    changed
}

/// The lines of a canonical text, each under its section; repeated sections are counted.
fn knobs(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut tables = 0_u32;
    let mut knobs = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            tables += 1;
            section = format!("{name}[{tables}]");
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            tables = 0;
            name.clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once(" = ") {
            knobs.push((format!("{section}.{key}"), value.to_owned()));
        }
    }
    knobs
}

/// A number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_knob_is_named_with_both_values() {
        let text = |tokens, name| {
            format!(
                "[generate]\nmax_new_tokens = {tokens}\n\n[[generate.arms]]\nname = \"{name}\"\n"
            )
        };
        let changed = changed_knobs(&text(8, "a"), &text(6, "b"));
        assert_eq!(
            changed,
            ["generate.max_new_tokens = 6 (was 8)", "generate.arms[1].name = \"b\" (was \"a\")"]
        );
        assert!(changed_knobs(&text(8, "a"), &text(8, "a")).is_empty());
    }

    #[test]
    fn thousands_are_grouped() {
        let texts: Vec<String> = [0, 120, 1_000, 20_000, 1_234_567].map(grouped).into();
        assert_eq!(texts, ["0", "120", "1,000", "20,000", "1,234,567"]);
    }
}
