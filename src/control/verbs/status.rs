//! `status`: what the daemon does now, from the live board and a few indexed rows.

use actix_web::{HttpRequest, web};
use rlhfd_domain::{CheckpointId, Stage};
use rlhfd_protocol::control::{
    IterationStatus, JobStatus, LeaseStatus, PromptsStatus, RunStatus, ScorerStatus, StageStatus,
    Status,
};
use rlhfd_store::{Progress, Reader, Result, Run, ScorerProgress, StageProgress, status};

use super::{Shared, asked};
use crate::handles::AppState;
use crate::listener::answer::ok;
use crate::listener::{Answer, Refusal};
use crate::live::{Live, LiveWorker};

/// What the database says.
#[derive(Debug, Default)]
struct Stored {
    run: Option<(status::RunStatus, String)>,
    best: Option<String>,
    gate: Option<String>,
    reserved: u64,
    /// Names, and the beginnings of their units' keys.
    open_jobs: Vec<(String, String)>,
    last_event: i64,
}

/// `GET /v1/status`
pub async fn get(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let stored = shared.app.store.read(read).await;
    let stored = stored.map_err(|error| Refusal::ask(asked(&request), &error))?;
    ok(&whole(&shared.app, stored, shared.app.live.now()))
}

fn read(reader: &Reader) -> Result<Stored> {
    let run = reader.active_run()?;
    let sets = reader.prompt_sets(run.as_ref().map(|run| run.id))?;
    let mut stored = Stored {
        reserved: sets.iter().map(|set| set.reserved).sum(),
        last_event: reader.last_event()?.get(),
        ..Stored::default()
    };
    if let Some(Run { id, head, best, .. }) = run {
        stored.best = best.map(|best| name(reader, best)).transpose()?;
        let failed = reader.gate_failed(id)?;
        stored.gate = failed.map(|(iteration, words)| format!("iteration {iteration} {words}"));
        stored.open_jobs = open_jobs(reader, id)?;
        stored.run = Some((reader.status(id)?, name(reader, head)?));
    }
    Ok(stored)
}

fn open_jobs(reader: &Reader, run: rlhfd_domain::RunId) -> Result<Vec<(String, String)>> {
    let jobs = reader.jobs(run)?;
    let open = jobs.into_iter().filter(|job| job.status == rlhfd_store::JobStatus::Open);
    let told = |job: rlhfd_store::Job| {
        (format!("{}/{}", job.kind, job.name), format!("job/{}/{}/", job.kind, job.slug()))
    };
    Ok(open.map(told).collect())
}

fn name(reader: &Reader, checkpoint: CheckpointId) -> Result<String> {
    Ok(reader.checkpoint(checkpoint)?.name)
}

fn whole(app: &AppState, stored: Stored, live: Live) -> Status {
    let config = app.config.borrow().clone();
    let run = stored.run.as_ref().map(|(status, head)| RunStatus {
        name: status.run.name.clone(),
        head: head.clone(),
        iterations_done: u64::from(status.iterations_done),
        iterations_max: config.run.iterations_max,
        paused_by: status.run.paused.as_ref().map(|paused| paused.by.label().to_owned()),
        paused_reason: status.run.paused.as_ref().map(|paused| paused.reason.clone()),
        best: stored.best.clone(),
        gate: stored.gate.clone(),
    });
    let prompts = PromptsStatus {
        fresh: stored.run.as_ref().map_or(0, |(status, _)| status.fresh),
        reserved: stored.reserved,
        per_iteration: config.run.prompts_per_iteration,
    };
    let running: Vec<&str> =
        live.workers.values().filter_map(|w| w.unit.as_ref()).map(|u| u.key.as_str()).collect();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state: app.places.state.display().to_string(),
        started_ms: app.started_ms,
        jobs: stored.open_jobs.iter().map(|job| job_status(job, &running)).collect(),
        iteration: stored
            .run
            .and_then(|(status, _)| status.iteration)
            .map(|progress| iteration(&progress)),
        run,
        prompts,
        devices: super::gpus::devices(&live),
        leases: live.workers.values().map(lease).collect(),
        waits_for: live.faults.into_values().chain(live.waits_for).collect(),
        config_pending: live.config_pending,
        last_event: stored.last_event,
    }
}

fn job_status((job, units): &(String, String), running: &[&str]) -> JobStatus {
    let runs = running.iter().any(|key| key.starts_with(units));
    JobStatus { job: job.clone(), state: if runs { "running" } else { "waiting" }.to_owned() }
}

fn iteration(progress: &Progress) -> IterationStatus {
    IterationStatus {
        iteration: u64::from(progress.iteration.iteration),
        started_ms: progress.iteration.started_ms,
        stages: progress.stages.iter().map(|of| stage(of, &progress.scorers)).collect(),
        seconds_left: seconds_left(&progress.stages),
    }
}

/// `scorers` stand beside the labels where there are several.
fn stage(stage: &StageProgress, scorers: &[ScorerProgress]) -> StageStatus {
    let several = stage.stage == Stage::Label && scorers.len() > 1;
    let own = scorers.iter().filter(|_| several).map(|of| ScorerStatus {
        scorer: of.scorer.clone(),
        units: of.units,
        closed: of.closed,
    });
    StageStatus {
        stage: stage.stage.label().to_owned(),
        open: stage.open,
        running: stage.running,
        done: stage.done,
        set_aside: stage.set_aside,
        seconds: stage.seconds,
        scorers: own.collect(),
    }
}

/// From what a stage's items took so far. A stage of which nothing is done yet cannot be guessed, and
/// neither can the whole.
fn seconds_left(stages: &[StageProgress]) -> Option<f64> {
    let left = |stage: &StageProgress| {
        let items = stage.items.saturating_sub(stage.items_done);
        match (items, stage.items_done) {
            (0, _) => Some(0.0),
            (_, 0) => None,
            (items, done) => Some(stage.seconds / done as f64 * items as f64),
        }
    };
    stages.iter().map(left).sum()
}

fn lease(worker: &LiveWorker) -> LeaseStatus {
    let mut lease = LeaseStatus {
        lease: worker.lease.unwrap_or(0),
        pid: Some(worker.pid),
        devices: worker.devices.clone(),
        state: worker.state.label().to_owned(),
        resident_mib: Some(worker.resident_mib).filter(|mib| *mib > 0),
        ..LeaseStatus::default()
    };
    if let Some(unit) = &worker.unit {
        lease.stage = Some(unit.stage.label().to_owned());
        lease.unit = Some(unit.key.clone());
        lease.items_done = u64::from(unit.items_done);
        lease.items = u64::from(unit.items);
        lease.step = unit.step.map(|(step, _, _)| step);
        lease.steps = unit.step.map(|(_, steps, _)| steps);
        lease.loss = unit.step.map(|(_, _, loss)| loss).filter(|loss| loss.is_finite());
        lease.tokens_per_s = unit.tokens_per_s();
        lease.seconds_left = unit.seconds_left();
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(stage: Stage, items: u64, items_done: u64, seconds: f64) -> StageProgress {
        StageProgress {
            stage,
            open: 0,
            running: 0,
            done: 0,
            set_aside: 0,
            items,
            items_done,
            tokens: 0,
            seconds,
        }
    }

    #[test]
    fn the_time_left_is_guessed_only_where_every_stage_has_begun() {
        let generate = progress(Stage::Generate, 64, 16, 8.0);
        let label = progress(Stage::Label, 64, 32, 4.0);
        // 48 items at 0.5 s and 32 at 0.125 s.
        assert_eq!(seconds_left(&[generate, label]), Some(24.0 + 4.0));
        let train = progress(Stage::Train, 1, 0, 0.0);
        assert_eq!(seconds_left(&[generate, label, train]), None);
        assert_eq!(seconds_left(&[]), Some(0.0));
    }

    #[test]
    fn several_scorers_each_have_their_share_of_the_labels() {
        let of = |scorer: &str, closed| ScorerProgress { scorer: scorer.into(), units: 4, closed };
        let label = progress(Stage::Label, 64, 32, 4.0);
        assert!(stage(&label, &[of("help", 1)]).scorers.is_empty());
        let both = [of("help", 4), of("watch", 1)];
        let shares: Vec<u64> =
            stage(&label, &both).scorers.iter().map(|share| share.closed).collect();
        assert_eq!(shares, [4, 1]);
        assert!(stage(&progress(Stage::Train, 1, 0, 0.0), &both).scorers.is_empty());
    }

    #[test]
    fn a_job_runs_while_one_of_its_units_does() {
        let job = ("reward/demo".to_owned(), "job/reward/demo/".to_owned());
        assert_eq!(job_status(&job, &["job/reward/demo/train"]).state, "running");
        assert_eq!(job_status(&job, &["job/reward/demo2/train"]).state, "waiting");
    }
}
