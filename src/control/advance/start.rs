//! Between two iterations: whether the next one may start, and what is missing where it may not.
//!
//! In: the configuration, the run, the prompts that are queued, time. Out: a started iteration, a
//! planned probe, or a sentence. May not enter: iterations under way.

use std::collections::BTreeSet;
use std::sync::Arc;

use rlhfd_config::{CheckedConfig, ScorePosition, ScorerConfig, ScorerKind, ScorerModel};
use rlhfd_domain::{JobKind, ScorerId, Stage, UnitId, WorkKind};
use rlhfd_store::{ModelIdentity, NewIteration, NewUnit, OfflineUse, Run, Store, StoreError};

use super::lacks::{missing_sets, none_kept, short_of, vain_target};
use super::{Advanced, NOTHING_KEPT, arms, identity, jobs, reference, tidy};
use crate::actors::iteration::OrderContext;
use crate::actors::scheduler::uses_cuda;
use crate::examples;
use crate::handles::{AskError, now_ms};
use crate::room;
use crate::stages::plan::{self, Given, Scores, Sizes};
use crate::stages::probe::Detail;
use crate::stages::{average, summarise, sums, train};

/// No iteration is under way: whether one may start, and what is missing.
pub(super) async fn between_iterations(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
) -> Result<Advanced, AskError> {
    if tidy::tidy(ctx, config, run).await? {
        return Ok(Advanced::changed());
    }
    let id = run.id;
    let (_, done) = ctx.stage.store.read(move |r| r.iterations_so_far(id)).await?;
    if config.run.iterations_max > 0 && u64::from(done) >= config.run.iterations_max {
        return Ok(Advanced::waits(format!(
            "the run has ended after {done} iterations; raise [run] iterations_max to go on"
        )));
    }
    if let Some(sentence) = out_of_patience(ctx, config, run).await? {
        return Ok(Advanced::waits(sentence));
    }
    let jobs = jobs::make(ctx, config, run).await?;
    if jobs.changed {
        return Ok(Advanced::changed());
    }
    let pending = (!jobs.notes.is_empty()).then(|| jobs.notes.join("; "));
    if !jobs.waits.is_empty() {
        return Ok(Advanced { waits_for: jobs.waits, pending, ..Advanced::default() });
    }
    Ok(Advanced { pending, ..with_jobs(ctx, config, run).await? })
}

/// The training jobs that the configuration asks for are made.
async fn with_jobs(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
) -> Result<Advanced, AskError> {
    let id = run.id;
    if let Some(sentence) = awaited_start(ctx, run).await? {
        return Ok(Advanced::waits(sentence));
    }
    let scorers = match scorers(ctx, config, run).await? {
        Ok(scorers) => scorers,
        Err(sentence) => return Ok(Advanced::waits(sentence)),
    };
    match probe(ctx, run, &scorers).await? {
        Probe::Good => {}
        Probe::Planned => return Ok(Advanced::changed()),
        Probe::Running => {
            let sentence = "the models are being probed before their first use";
            return Ok(Advanced::waits(sentence));
        }
    }
    if let Some(advanced) = reference::awaited(ctx, config, run).await? {
        return Ok(advanced);
    }
    if let Some(sentence) = missing_sets(ctx, config).await? {
        return Ok(Advanced::waits(sentence));
    }
    if let Some(sentence) = arms::missing(&ctx.stage, config, run).await? {
        return Ok(Advanced::waits(sentence));
    }
    if config.gate.asks_evaluation() && none_kept(ctx).await? {
        return Ok(Advanced::waits(NOTHING_KEPT));
    }
    let fresh = ctx.stage.store.read(move |r| r.fresh_prompts(id)).await?;
    if let Some(sentence) = short_of(ctx, config, run, fresh).await? {
        return Ok(Advanced::waits(sentence));
    }
    if let Some(sentence) = vain_target(ctx, config, run).await? {
        return Ok(Advanced::waits(sentence));
    }
    if let Some(sentence) = room::for_iteration(&ctx.stage, config, run).await? {
        return Ok(Advanced::waits(sentence));
    }
    // What was queued after a reload never starts with the configuration before it.
    if !Arc::ptr_eq(config, &ctx.stage.config.borrow()) {
        return Ok(Advanced::changed());
    }
    start(ctx, config, run, &scorers).await
}

/// Why the run has ended early: its last iterations gave no better policy.
async fn out_of_patience(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<Option<String>, AskError> {
    let (patience, id) = (config.run.patience, run.id);
    let Some(best) = run.best.filter(|_| patience > 0) else { return Ok(None) };
    let (since, name) = ctx
        .stage
        .store
        .read(move |r| Ok((r.iterations_since(id, best)?, r.checkpoint(best)?.name)))
        .await?;
    Ok((since >= patience).then(|| {
        format!(
            "the run has ended: the last {since} iterations gave no better policy than {name}; raise \
             [run] patience to go on"
        )
    }))
}

/// What the policy that the run begins with waits for; none where it is there.
async fn awaited_start(ctx: &OrderContext, run: &Run) -> Result<Option<String>, AskError> {
    let Some(name) = run.start_job.as_ref().filter(|_| !run.has_begun()) else { return Ok(None) };
    let why = "this run begins with its policy";
    Ok(Some(match job_model(ctx, run, (JobKind::Sft, name), why).await? {
        Err(sentence) => sentence,
        Ok(_) => format!("the run did not begin with sft/{name}: give it a new name in [run]"),
    }))
}

struct Known {
    id: ScorerId,
    name: String,
    sha256: String,
    kind: ScorerKind,
    position: ScorePosition,
}

/// The configuration's scorers, if the models of all of them are there.
async fn scorers(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<Result<Vec<Known>, String>, AskError> {
    let mut known = Vec::with_capacity(config.label.scorers.len());
    for scorer in &config.label.scorers {
        match scorer_row(ctx, scorer, run).await? {
            Ok(scorer) => known.push(scorer),
            Err(sentence) => return Ok(Err(sentence)),
        }
    }
    Ok(Ok(known))
}

async fn scorer_row(
    ctx: &OrderContext,
    scorer: &ScorerConfig,
    run: &Run,
) -> Result<Result<Known, String>, AskError> {
    let model = match &scorer.model {
        ScorerModel::Folder(place) => match identity(ctx, &place.path).await? {
            Ok(identity) => identity,
            Err(sentence) => return Ok(Err(sentence)),
        },
        ScorerModel::Job(name) => {
            let job = (examples::trains(scorer.kind), name.as_str());
            match job_model(ctx, run, job, "what it makes scores this run").await? {
                Ok(identity) => identity,
                Err(sentence) => return Ok(Err(sentence)),
            }
        }
    };
    let (name, sha256) = (scorer.name.clone(), model.sha256.clone());
    let id = match ctx.models.scorer(&name, &model) {
        Some(id) => id,
        None => {
            let (row, wanted, kind) = (name.clone(), model.clone(), scorer.kind.label());
            let write = move |s: &mut Store| s.scorer(&row, kind, &wanted.path, &wanted.sha256);
            let id = ctx.stage.store.write(write).await?;
            ctx.models.keep_scorer(&name, &model, id);
            id
        }
    };
    Ok(Ok(Known { id, name, sha256, kind: scorer.kind, position: scorer.score_position }))
}

/// What a training job made; else a sentence, of which `why` says what it is wanted for.
async fn job_model(
    ctx: &OrderContext,
    run: &Run,
    (kind, name): (JobKind, &str),
    why: &str,
) -> Result<Result<ModelIdentity, String>, AskError> {
    let (id, wanted) = (run.id, name.to_owned());
    let found = ctx
        .stage
        .store
        .read(move |r| {
            let job = r.job_by_name(id, kind, &wanted)?;
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
            "the checkpoint {} is not sound; restore its folder {}, or train another one",
            checkpoint.name, checkpoint.path
        )),
        (Some(job), None) => {
            let again =
                format!("; `rlhfctl train {kind} --data FILE --name {name}` makes another one");
            Err(format!(
                "the training job {kind}/{name} is {}, and {why}{}{}",
                job.status.label(),
                job.reason.map(|reason| format!(" ({reason})")).unwrap_or_default(),
                if job.status.leaves_its_name() { again.as_str() } else { "" }
            ))
        }
        (None, None) => Err(format!(
            "the training job {kind}/{name} is not there yet, and {why}: \
             `rlhfctl train {kind} --data FILE --name {name}`, or name its data in [{kind}]"
        )),
    })
}

enum Probe {
    Good,
    Planned,
    Running,
}

/// Whether these models were probed under these settings; else the probe is planned.
async fn probe(ctx: &OrderContext, run: &Run, scorers: &[Known]) -> Result<Probe, AskError> {
    let (id, initial, reference) = (run.id, run.initial, run.reference);
    let (initial, reference) = ctx
        .stage
        .store
        .read(move |r| Ok((r.checkpoint(initial)?.sha256, r.checkpoint(reference)?.sha256)))
        .await?;
    // A model that two scorers share is one, and its weight is nothing to the probe.
    let read = |known: &Known| format!("{} {:?} {:?}", known.sha256, known.kind, known.position);
    let models: BTreeSet<String> = scorers.iter().map(read).collect();
    let text = format!("{initial} {reference} {models:?}");
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
    let detail =
        Detail { probed_key: key, scorers: scorers.iter().map(|known| known.id.get()).collect() };
    let unit = NewUnit {
        stage: Stage::Prompts,
        work: WorkKind::Probe,
        lane: String::new(),
        key: unit,
        plan: None,
        micro_batch: None,
        policy: Some(run.initial),
        scorer: None,
        detail: serde_json::to_string(&detail).ok(),
    };
    let _: Vec<UnitId> = ctx.stage.store.write(move |s| s.add_units(id, &[unit], now_ms())).await?;
    Ok(Probe::Planned)
}

/// Freezes configuration, draw and plan together.
async fn start(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
    scorers: &[Known],
) -> Result<Advanced, AskError> {
    let text = config.to_frozen_toml();
    let new = NewIteration {
        run: run.id,
        config_sha256: sums::text_sum(&text),
        config: text,
        prompts_max: config.run.prompts_per_iteration,
        reuse_prompts: config.run.reuse_prompts,
        evaluate_prompts_max: config.evaluate.prompts_max,
        arms: arms::of(config),
        offline: OfflineUse {
            sets: config.train.offline.clone(),
            weight: config.train.offline_weight,
            tokens_max: config.train.settings.max_length,
            prompt_tokens_max: config.train.settings.max_prompt_length,
        },
        reference: average::rule(config),
        history: train::history(config),
    };
    let cuda = uses_cuda(&ctx.live, config);
    let mut sizes = Sizes::of(config, cuda);
    if config.generate.batch_prompts == 0 {
        sizes.generate_rows = fitting(ctx, config, run, sizes.generate_rows, cuda).await?;
    }
    let (id, lane) = (run.id, plan::initial_lane(config));
    let known: Vec<(ScorerId, ScorerKind, String)> =
        scorers.iter().map(|scorer| (scorer.id, scorer.kind, scorer.name.clone())).collect();
    let (of, head) = (Arc::clone(config), run.head);
    let (answered, scorers, previous) = ctx
        .stage
        .store
        .read(move |r| {
            let answered = r.lane_done(id, &lane, WorkKind::Generate, None)?;
            let scores = known.into_iter().map(|(scorer, kind, name)| {
                let initial = r.lane_done(id, &lane, WorkKind::Score, Some(scorer))?;
                Ok(Scores { id: scorer, kind, name, initial })
            });
            let scores = scores.collect::<Result<Vec<_>, StoreError>>()?;
            let previous = summarise::previous(r, &of, id, head)?;
            Ok((answered, scores, previous.map(|side| side.lane)))
        })
        .await?;
    let given = Given { scorers, initial: run.initial, previous, answered, sizes };
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

/// The rows of generate by the memory plan, for the smallest device in use. All of a device's memory
/// counts, not what is free now: the same machine gives the same plan each time.
async fn fitting(
    ctx: &OrderContext,
    config: &Arc<CheckedConfig>,
    run: &Run,
    most: u64,
    cuda: bool,
) -> Result<u64, AskError> {
    let head = run.head;
    let head = ctx.stage.store.read(move |r| r.checkpoint(head)).await?;
    let folder = ctx.stage.places.resolve(&head.path);
    let devices = ctx.live.now().devices;
    let smallest = devices.iter().filter_map(|device| device.fact.memory_mib).min();
    let room = match smallest {
        Some(memory) => memory.saturating_sub(config.devices.reserve_mib),
        None => match memory_total_mib() {
            Some(memory) => memory,
            None => return Ok(most),
        },
    };
    let tokens =
        u64::from(config.prompts.prompt_tokens_max) + u64::from(config.generate.max_new_tokens);
    let bytes = if cuda { 2 } else { 4 };
    actix_rt::task::spawn_blocking(move || {
        crate::check::rows_together(&folder, tokens, bytes, room, most)
    })
    .await
    .map_err(|_| AskError::Gone)
}

/// The host's memory.
fn memory_total_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}
