//! The end of an attempt, however it came: written through the unit's own rules.
//!
//! In: an [`Ending`]. Out: rows, and whether the worker broke its word. May not enter: frames.

use std::path::Path;
use std::sync::Arc;

use rlhfd_config::OnDivergence;
use rlhfd_domain::gate::OnFail;
use rlhfd_domain::{AttemptId, Cause, Effect, WorkKind};
use rlhfd_protocol::worker::Summary;
use rlhfd_store::{Level, NewEvent, PausedBy, Store, StoreError, UnitRow, WentWrong};

use super::stage::{Answer, Conclude, ItemKeys, StageContext, StageError};
use super::worker::WorkerContext;
use crate::handles::{AskError, now_ms, with_causes};
use crate::stages::train;
use crate::stages::unsound::{self, Look};

/// How an attempt ended.
#[derive(Debug)]
pub enum Ending {
    /// All answers came.
    Done {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
        /// What the items stand for.
        keys: ItemKeys,
        /// All answers.
        answers: Vec<Answer>,
        /// What the memory plan says that it needs of the device's, before any correction.
        plan_mib: Option<u64>,
        /// What the worker says of the whole.
        summary: Box<Summary>,
    },
    /// The worker died of it, or in it.
    Died {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
        /// Of what.
        cause: Cause,
        /// The first line of what was said.
        message: String,
    },
    /// The input is wrong; trying again does not help.
    Refused {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
        /// Why.
        message: String,
    },
    /// A model of its is not as it was admitted.
    Unsound {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
        /// What differs.
        message: String,
    },
    /// Its training went wrong.
    Diverged {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
        /// How.
        wrong: WentWrong,
    },
    /// A write failed.
    Disk {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
        /// What failed.
        message: String,
    },
    /// It was given back, or never began.
    Returned {
        /// The unit.
        unit: Arc<UnitRow>,
        /// Its attempt.
        attempt: AttemptId,
    },
}

impl Ending {
    /// A death.
    #[must_use]
    pub fn died(unit: Arc<UnitRow>, attempt: AttemptId, cause: Cause, message: String) -> Self {
        Self::Died { unit, attempt, cause, message }
    }

    /// The unit that it is about.
    #[must_use]
    pub fn unit(&self) -> &Arc<UnitRow> {
        match self {
            Self::Done { unit, .. }
            | Self::Died { unit, .. }
            | Self::Refused { unit, .. }
            | Self::Unsound { unit, .. }
            | Self::Diverged { unit, .. }
            | Self::Disk { unit, .. }
            | Self::Returned { unit, .. } => unit,
        }
    }
}

/// Writes an ending. Gives a word where the worker's answers did not fit: then it is to be ended.
pub async fn conclude(ctx: &WorkerContext, ending: Ending) -> Option<String> {
    let stage = &ctx.stage;
    let _step = ctx.live.step(format!("keeping what unit {} gave", ending.unit().key));
    match ending {
        Ending::Done { unit, attempt, keys, answers, plan_mib, summary } => {
            if let Some((planned, peak)) = plan_mib.zip(summary.device_peak_mib) {
                measure(stage, unit.work, planned, peak).await;
            }
            let summary = *summary;
            let done = Conclude { unit: Arc::clone(&unit), attempt, keys, answers, summary };
            let said = ctx.stages.concluder(&unit).send(done).await;
            match said.unwrap_or(Err(StageError::Ask(AskError::Gone))) {
                Ok(()) => None,
                Err(error) => failed(stage, &unit, attempt, error).await,
            }
        }
        Ending::Died { unit, attempt, cause, message } => {
            if unit.work.trains() {
                tell_saved_step(stage, &unit, attempt, None).await;
            }
            let id = unit.id;
            settle(stage, &unit, move |s| s.unit_died(id, attempt, cause, &message, now_ms()))
                .await;
            None
        }
        Ending::Refused { unit, attempt, message } => {
            // A folder that is not there, or cut short, is no input of the unit's own.
            let id = unit.id;
            if !given_back(stage, &unit, attempt, (&message, Look::Sizes)).await {
                settle(stage, &unit, move |s| s.unit_refused(id, attempt, &message, now_ms()))
                    .await;
            }
            None
        }
        Ending::Unsound { unit, attempt, message } => {
            let id = unit.id;
            if !given_back(stage, &unit, attempt, (&message, Look::Sums)).await {
                // Whole when the daemon reads it: the fault is the worker's, or the memory's.
                let cause = Cause::Crashed;
                settle(stage, &unit, move |s| s.unit_died(id, attempt, cause, &message, now_ms()))
                    .await;
            }
            None
        }
        Ending::Diverged { unit, attempt, wrong } => {
            diverged(stage, &unit, attempt, wrong).await;
            None
        }
        Ending::Disk { unit, attempt, message } => {
            stage.health.tell_for(&message, needed(stage, &unit).await);
            let id = unit.id;
            settle(stage, &unit, move |s| s.unit_disk_failed(id, attempt, &message, now_ms()))
                .await;
            None
        }
        Ending::Returned { unit, attempt } => {
            let id = unit.id;
            settle(stage, &unit, move |s| s.unit_returned(id, attempt, "given back", now_ms()))
                .await;
            None
        }
    }
}

/// Gives a unit back where a checkpoint turns out not to be as it was admitted: that is marked, and what is
/// done next follows from it. Gives whether it was.
async fn given_back(
    stage: &StageContext,
    unit: &Arc<UnitRow>,
    attempt: AttemptId,
    (message, look): (&str, Look),
) -> bool {
    match unsound::mark(stage, unit.run, look).await {
        Ok(true) => {
            let (id, message) = (unit.id, message.to_owned());
            settle(stage, unit, move |s| s.unit_returned(id, attempt, &message, now_ms())).await;
            true
        }
        Ok(false) => false,
        // The head has no sound ancestor.
        Err(StageError::Ask(AskError::Store(error))) => {
            pause_for(stage, unit, attempt, &error).await;
            true
        }
        // The daemon is on its way out; the next start finds the attempt open.
        Err(_) => true,
    }
}

/// Corrects the memory plan by what a unit measured.
async fn measure(stage: &StageContext, work: WorkKind, plan_mib: u64, peak_mib: u64) {
    let write = move |s: &mut Store| s.measure_memory(work, plan_mib, peak_mib, now_ms());
    if let Err(error) = stage.write_patiently(write).await {
        tracing::warn!("a measurement of memory is lost: {error}");
    }
}

/// The same training would go wrong once more: its own state goes, and what it belongs to back to its
/// parent.
async fn diverged(stage: &StageContext, unit: &Arc<UnitRow>, attempt: AttemptId, wrong: WentWrong) {
    let on = match stage.config_of(unit).await.map(|config| config.train.on_divergence) {
        Ok(OnDivergence::KeepHead) => OnFail::KeepHead,
        Ok(OnDivergence::Pause) | Err(_) => OnFail::Pause,
    };
    tracing::error!(key = %unit.key, how = wrong.divergence.label(), "a training went wrong");
    let id = unit.id;
    settle(stage, unit, move |s| s.unit_diverged((id, attempt), &wrong, on, now_ms())).await;
    let run = unit.run;
    if let Ok(run) = stage.store.read(move |r| r.run(run)).await {
        train::remove_state(stage, &run, id).await;
    }
}

/// What a training writes is about as large as what it starts from.
async fn needed(stage: &StageContext, unit: &UnitRow) -> u64 {
    if !unit.work.trains() {
        return 0;
    }
    let id = unit.run;
    let head = stage
        .store
        .read(move |r| {
            let head = r.run(id)?.head;
            r.checkpoint(head)
        })
        .await;
    let Ok(head) = head else { return 0 };
    let folder = stage.places.resolve(&head.path);
    actix_rt::task::spawn_blocking(move || weights_bytes(&folder)).await.unwrap_or(0)
}

/// Bytes of a model folder's weights; 0 where they cannot be looked at.
fn weights_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let weights = path.extension().is_some_and(|end| end == "safetensors");
            weights.then(|| std::fs::metadata(&path).map_or(0, |facts| facts.len()))
        })
        .sum()
}

/// What a stage's error means for the attempt. Gives a word where the worker is to blame.
pub async fn failed(
    stage: &StageContext,
    unit: &Arc<UnitRow>,
    attempt: AttemptId,
    error: StageError,
) -> Option<String> {
    let id = unit.id;
    match error {
        StageError::Answers(why) => {
            let message = why.clone();
            settle(stage, unit, move |s| {
                s.unit_died(id, attempt, Cause::Protocol, &message, now_ms())
            })
            .await;
            Some(why)
        }
        StageError::Ask(AskError::Store(StoreError::Misfit { why, .. })) => {
            let message = why.clone();
            settle(stage, unit, move |s| {
                s.unit_died(id, attempt, Cause::Protocol, &message, now_ms())
            })
            .await;
            Some(why)
        }
        StageError::Input(message) => {
            settle(stage, unit, move |s| s.unit_refused(id, attempt, &message, now_ms())).await;
            None
        }
        StageError::Spoiled(message) => {
            settle(stage, unit, move |s| s.unit_disk_failed(id, attempt, &message, now_ms())).await;
            None
        }
        StageError::Place { path, source } => {
            let message = format!("{}: {source}", path.display());
            stage.health.tell(&message);
            settle(stage, unit, move |s| s.unit_disk_failed(id, attempt, &message, now_ms())).await;
            None
        }
        // The unit was cancelled meanwhile: its rows are not wanted.
        StageError::Over(_) | StageError::Ask(AskError::Store(StoreError::Illegal(_))) => None,
        StageError::Ask(AskError::Store(error)) => {
            pause_for(stage, unit, attempt, &error).await;
            None
        }
        // The daemon is on its way out; the next start finds the attempt open.
        StageError::Ask(AskError::Busy | AskError::Gone | AskError::Refused(_)) => None,
    }
}

/// A broken law, or a defect of ours: nothing more is done with this run until a person looked.
async fn pause_for(
    stage: &StageContext,
    unit: &Arc<UnitRow>,
    attempt: AttemptId,
    error: &StoreError,
) {
    let error = with_causes(error);
    tracing::error!(key = %unit.key, "the run pauses: {error}");
    let (id, run) = (unit.id, unit.run);
    let reason = format!("unit {}: {error}", unit.key);
    settle(stage, unit, move |s| {
        s.pause_run(run, PausedBy::Daemon, &reason, now_ms())?;
        s.unit_returned(id, attempt, &reason, now_ms())
    })
    .await;
}

/// A write that ends an attempt. A unit that was cancelled meanwhile takes no more events.
async fn settle<W>(stage: &StageContext, unit: &Arc<UnitRow>, write: W)
where
    W: Fn(&mut Store) -> Result<Effect, StoreError> + Send + Sync + 'static,
{
    match stage.write_patiently(write).await {
        Ok(Some(Effect::Pause(blame))) => {
            tracing::error!(key = %unit.key, reason = blame.label(), "the run pauses");
        }
        Ok(_) | Err(StageError::Ask(AskError::Store(StoreError::Illegal(_)))) => {}
        Err(error) => {
            tracing::error!(key = %unit.key, "the end of an attempt is lost: {}", with_causes(&error))
        }
    }
}

/// Appends an event that belongs to no unit.
pub async fn tell(stage: &StageContext, kind: &'static str, message: String) {
    let event = NewEvent { level: Level::Warn, ..NewEvent::about(kind, message) };
    if let Err(error) = stage.write_patiently(move |s| s.append_event(&event, now_ms())).await {
        tracing::warn!("an event is lost: {error}");
    }
}

/// Tells the unit which step it can go on from, where that is newer than `known`, so that deaths with
/// progress in between do not add up. Gives the newest saved step.
pub async fn tell_saved_step(
    stage: &StageContext,
    unit: &Arc<UnitRow>,
    attempt: AttemptId,
    known: Option<u64>,
) -> Option<u64> {
    let run = unit.run;
    let run = stage.store.read(move |r| r.run(run)).await.ok()?;
    let state = stage.places.unit_state(&run.name, unit.id.get());
    let step = actix_rt::task::spawn_blocking(move || saved_step(&state)).await.ok()??;
    if known.is_some_and(|known| step <= known) {
        return known;
    }
    let id = unit.id;
    let told = stage.write_patiently(move |s| s.unit_progressed(id, attempt, step)).await;
    match told {
        // It ended meanwhile: then nobody needs the step any more.
        Ok(_) | Err(StageError::Ask(AskError::Store(StoreError::Illegal(_)))) => {}
        Err(error) => {
            tracing::warn!(key = %unit.key, step, "a saved step is not told: {}", with_causes(&error));
        }
    }
    Some(step)
}

/// The newest saved state of a train unit: its folder holds `step-NNNNNNNN`, each whole or absent.
#[must_use]
pub fn saved_step(state: &Path) -> Option<u64> {
    std::fs::read_dir(state)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_state_counts_and_one_in_the_making_does_not() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(saved_step(state.path()), None);
        for name in ["step-00000002", "step-00000010", ".step-00000012.partial"] {
            std::fs::create_dir(state.path().join(name)).unwrap();
        }
        assert_eq!(saved_step(state.path()), Some(10));
    }
}
