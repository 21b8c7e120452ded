//! Commands of people: each one transaction with its event, and a sentence of what it did.
//!
//! In: a [`Command`] and whose it was. Out: [`Told`], and the units that nobody wants any more. May
//! not enter: HTTP.

use rlhfd_config::CheckedConfig;
use rlhfd_domain::{JobKind, JobName, UnitId, UploadId};
use rlhfd_store::{JobStatus, ModelIdentity, NewEvent, NewJob, PausedBy, Run, StoreError};

use crate::actors::iteration::OrderContext;
use crate::advance::{identity, open_run};
use crate::examples;
use crate::handles::{AskError, Command, Told, now_ms};
use crate::stages::{plan, sums};

/// Units of an iteration that are looked at when it is cancelled.
const UNITS_PAGE: u32 = 10_000;

/// Obeys, or says why not.
pub async fn obey(
    ctx: &OrderContext,
    command: Command,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    if command == Command::UploadPublished {
        // Prompts may wait for a run that cannot be opened yet.
        let _ = active(ctx).await;
        return told("the upload is seen");
    }
    let run = active(ctx).await?;
    match command {
        Command::Start => start(ctx, &run, uid).await,
        Command::Pause { reason } => pause(ctx, &run, reason, uid).await,
        Command::Resume => resume(ctx, &run, uid).await,
        Command::RollBack { iteration, reason } => {
            roll_back(ctx, &run, iteration, reason, uid).await
        }
        Command::Pin { checkpoint, pinned } => pin(ctx, &run, checkpoint, pinned, uid).await,
        Command::CancelIteration { iteration } => cancel(ctx, &run, iteration, uid).await,
        Command::CancelJob { job } => cancel_job(ctx, &run, &job, uid).await,
        Command::Train { job, upload } => train(ctx, &run, &job, upload, uid).await,
        Command::UploadPublished => told("the upload is seen"),
    }
}

fn told(message: impl Into<String>) -> Result<(Told, Vec<UnitId>), AskError> {
    Ok((Told { message: message.into(), job: None }, Vec::new()))
}

async fn active(ctx: &OrderContext) -> Result<Run, AskError> {
    let config = ctx.stage.config.borrow().clone();
    open_run(ctx, &config).await?.map_err(AskError::Refused)
}

/// The event of a command, with whose it was.
fn event(run: &Run, kind: &str, message: &str, uid: Option<u32>) -> NewEvent {
    NewEvent { uid, ..NewEvent::of(run.id, kind, message) }
}

async fn start(
    ctx: &OrderContext,
    run: &Run,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let id = run.id;
    let (fresh, current) =
        ctx.stage.store.read(move |r| Ok((r.fresh_prompts(id)?, r.current_iteration(id)?))).await?;
    if let Some(current) = current {
        return Err(AskError::Refused(format!(
            "iteration {} is under way; the next one can be started when it has ended",
            current.iteration
        )));
    }
    if fresh == 0 {
        return Err(AskError::Refused(
            "there is no fresh prompt; add some with `rlhfctl prompts add FILE --set NAME`".into(),
        ));
    }
    let event = event(run, "start_asked", "an iteration was asked for", uid);
    ctx.stage
        .store
        .write(move |s| {
            s.ask_start(id, now_ms())?;
            s.append_event(&event, now_ms())
        })
        .await?;
    let paused = if run.paused.is_some() { "; the run is paused, resume it first" } else { "" };
    told(format!(
        "an iteration starts with {fresh} fresh prompts as soon as the models are ready{paused}"
    ))
}

async fn pause(
    ctx: &OrderContext,
    run: &Run,
    reason: Option<String>,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    if let Some(paused) = &run.paused {
        return told(format!("the run was paused already ({})", paused.reason));
    }
    let (id, reason) = (run.id, reason.unwrap_or_else(|| "asked for".into()));
    let event = event(run, "pause_asked", &reason, uid);
    ctx.stage
        .store
        .write(move |s| {
            s.pause_run(id, PausedBy::Operator, &reason, now_ms())?;
            s.append_event(&event, now_ms())
        })
        .await?;
    told("the run is paused: running units finish, none begins")
}

async fn resume(
    ctx: &OrderContext,
    run: &Run,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let Some(paused) = run.paused.clone() else {
        return told("the run was not paused");
    };
    let id = run.id;
    let event = event(run, "resume_asked", &paused.reason, uid);
    ctx.stage
        .store
        .write(move |s| {
            s.resume_run(id, now_ms())?;
            s.append_event(&event, now_ms())
        })
        .await?;
    told("the run goes on")
}

async fn roll_back(
    ctx: &OrderContext,
    run: &Run,
    iteration: u32,
    reason: Option<String>,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let (id, reason) = (run.id, reason.unwrap_or_else(|| "asked for".into()));
    let event = event(run, "rollback_asked", &reason, uid);
    let name = ctx
        .stage
        .store
        .write(move |s| {
            let name = s.roll_back(id, iteration, &reason, now_ms())?;
            s.append_event(&event, now_ms())?;
            Ok(name)
        })
        .await?;
    told(format!("the head is {name}: the next iteration begins with it"))
}

async fn pin(
    ctx: &OrderContext,
    run: &Run,
    checkpoint: String,
    pinned: bool,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let (id, name) = (run.id, checkpoint.clone());
    ctx.stage.store.write(move |s| s.pin(id, &name, pinned, (uid, now_ms()))).await?;
    told(if pinned {
        format!("checkpoint {checkpoint} is pinned: its files stay")
    } else {
        format!("checkpoint {checkpoint} is not pinned: its files go once they are old")
    })
}

async fn cancel(
    ctx: &OrderContext,
    run: &Run,
    iteration: Option<u32>,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let id = run.id;
    let current = ctx.stage.store.read(move |r| r.current_iteration(id)).await?;
    let number = match (current, iteration) {
        (Some(current), None) => current.iteration,
        (Some(current), Some(wanted)) if current.iteration == wanted => wanted,
        (Some(current), Some(wanted)) => {
            return Err(AskError::Refused(format!(
                "iteration {wanted} is not under way; iteration {} is",
                current.iteration
            )));
        }
        (None, Some(wanted)) => {
            return Err(AskError::Refused(format!(
                "iteration {wanted} is not under way; none is, `rlhfctl iterations` lists them"
            )));
        }
        (None, None) => {
            return Err(AskError::Refused(
                "no iteration is under way; there is nothing to cancel".into(),
            ));
        }
    };
    let running = ctx
        .stage
        .store
        .read(move |r| r.units_of(id, number, None, UNITS_PAGE))
        .await?
        .into_iter()
        .filter(|unit| unit.state == "running")
        .map(|unit| unit.id)
        .collect();
    let event = NewEvent {
        iteration: Some(number),
        ..event(run, "cancel_asked", "the iteration is cancelled", uid)
    };
    ctx.stage
        .store
        .write(move |s| {
            s.cancel_iteration(id, number, now_ms())?;
            s.append_event(&event, now_ms())
        })
        .await?;
    let message =
        format!("iteration {number} is cancelled; its prompts are back in the pool, its rows stay");
    Ok((Told { message, job: None }, running))
}

async fn cancel_job(
    ctx: &OrderContext,
    run: &Run,
    named: &JobName,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let (id, wanted) = (run.id, named.clone());
    let read = ctx.stage.store.read(move |r| r.job_by_name(id, wanted.kind, wanted.name.as_str()));
    let Some(job) = read.await? else {
        return Err(AskError::Refused(format!("there is no training job {named}")));
    };
    let (job, event) = (job.id, event(run, "cancel_asked", &named.to_string(), uid));
    let running = ctx
        .stage
        .store
        .read(move |r| r.units_of_job(job))
        .await?
        .into_iter()
        .filter(|unit| unit.state == "running")
        .map(|unit| unit.id)
        .collect();
    ctx.stage
        .store
        .write(move |s| {
            s.end_job(job, JobStatus::Cancelled, "asked for", now_ms())?;
            s.append_event(&event, now_ms())
        })
        .await?;
    Ok((Told { message: format!("the training job {named} is cancelled"), job: None }, running))
}

/// Makes a training job on the data of an upload.
///
/// Errors: refused where the upload holds something else, the base is no model, or the name is taken.
pub async fn train(
    ctx: &OrderContext,
    run: &Run,
    named: &JobName,
    upload: UploadId,
    uid: Option<u32>,
) -> Result<(Told, Vec<UnitId>), AskError> {
    let config = ctx.stage.config.borrow().clone();
    let row = ctx.stage.store.read(move |r| r.upload(upload)).await?;
    let wanted = examples::data_of(named.kind);
    if row.kind != wanted.label() {
        return Err(AskError::Refused(format!("upload {upload} holds no {}", wanted.label())));
    }
    let base = base(ctx, &config, run, named.kind).await?;
    let text = config.to_frozen_toml();
    let new = NewJob {
        run: run.id,
        kind: named.kind,
        name: named.name.as_str().to_owned(),
        upload: Some(upload),
        config_sha256: sums::text_sum(&text),
        config: text,
        base,
    };
    let kind = named.kind;
    let section = examples::section(&config, kind);
    let micro_batch = section.settings.micro_batch(section.training);
    let asked = event(run, "job_asked", &named.to_string(), uid);
    let created = ctx
        .stage
        .store
        .write(move |s| {
            let job = s.create_job(&new, |slug| plan::job(kind, slug, micro_batch), now_ms())?;
            s.append_event(&asked, now_ms())?;
            Ok(job)
        })
        .await;
    match created {
        Ok(job) => {
            let message = format!("the training job {named} is queued");
            Ok((Told { message, job: Some(job) }, Vec::new()))
        }
        Err(AskError::Store(error @ StoreError::Conflict { .. })) => {
            Err(AskError::Refused(error.to_string()))
        }
        Err(other) => Err(other),
    }
}

/// What a job starts from; none where it waits for the policy that the run begins with.
async fn base(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
    kind: JobKind,
) -> Result<Option<ModelIdentity>, AskError> {
    let job = examples::section(config, kind);
    // Fine-tuning is what a run may begin with: it never waits for that.
    let named = (job.base.is_some() || kind == JobKind::Sft).then(|| config.base_path(job));
    let Some(folder) = named else {
        if !run.has_begun() {
            return Ok(None);
        }
        let initial = run.initial;
        let row = ctx.stage.store.read(move |r| r.checkpoint(initial)).await?;
        return Ok(Some(ModelIdentity { path: row.path, sha256: row.sha256 }));
    };
    identity(ctx, folder).await?.map(Some).map_err(AskError::Refused)
}
