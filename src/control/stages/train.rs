//! Train: the immutable folder that a trainer works from, and the steps that come back.
//!
//! In: an iteration's preferences with the reference's log-probs, or an uploaded file of
//! conversations or preferences. Out: the training folder, then rows of steps read from the published checkpoint.
//! May not enter: losses, tensors.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rlhfd_config::{CheckedConfig, SavePolicy, TrainSettings, Training};
use rlhfd_domain::checkpoint::{iteration_name, job_checkpoint_name};
use rlhfd_domain::limits::PAIRS_PAGE_ROWS;
use rlhfd_domain::train::{History, Replay};
use rlhfd_domain::{JobKind, UnitId, WorkKind};
use rlhfd_protocol::manifest::FolderKind;
use rlhfd_protocol::worker::{ModelRef, TrainTarget, Work};
use rlhfd_store::{Iteration, Job, Reader, Run, StoreError, UnitRow, UploadKind};

use super::folders::{self, Draft};
use super::report::{self, REPORT};
use super::steps::{STEPS, read_steps};
use super::sums::{self, SumError};
use crate::actors::stage::{Conclude, ItemKeys, Prepared, StageContext, StageError, finish};
use crate::examples;
use crate::handles::{now_ms, with_causes};
use crate::room;

/// Switches resuming off, for the one test that shows that it matters.
const NO_RESUME: &str = "RLHFD_TEST_NO_RESUME";

impl From<SumError> for StageError {
    fn from(error: SumError) -> Self {
        match error {
            SumError::Io { path, source } => Self::Place { path, source },
            other @ (SumError::NoModel { .. } | SumError::Unsound { .. }) => {
                Self::Input(other.to_string())
            }
        }
    }
}

/// Writes the folder, and says where the checkpoint is to stand.
pub async fn prepare(ctx: &StageContext, unit: &Arc<UnitRow>) -> Result<Prepared, StageError> {
    let work = match unit.work {
        WorkKind::TrainSft | WorkKind::TrainReward | WorkKind::TrainPreference => {
            of_job(ctx, unit).await?
        }
        _ => dpo(ctx, unit).await?,
    };
    // The trainer wants all the memory there is.
    Ok(Prepared { work, load: Some(Vec::new()), items: Vec::new(), keys: ItemKeys::None })
}

async fn dpo(ctx: &StageContext, unit: &Arc<UnitRow>) -> Result<Work, StageError> {
    let config = ctx.config_of(unit).await?;
    let (id, run) = (
        unit.run,
        ctx.store
            .read({
                let id = unit.run;
                move |r| r.run(id)
            })
            .await?,
    );
    let Some(number) = unit.iteration else {
        return Err(StageError::Input(format!("the unit {} has no iteration", unit.key)));
    };
    let iteration = ctx.store.read(move |r| r.iteration(id, number)).await?;
    let policy = ctx.model(iteration.policy_in).await?;
    let reference = ctx.model(iteration.reference).await?;
    let initial = ctx.model(run.initial).await?;
    let folder = ctx.places.iteration(&run.name, number);
    let out = ctx.places.checkpoints(&run.name).join(checkpoint_name(&iteration));
    fits(ctx, unit, &run, (&policy, &config.train.settings), &out).await?;
    iteration_folder(ctx, unit, &config, &folder, &policy).await?;
    let target = target(ctx, unit, &run, out, config.train.save, &policy.sha256)?;
    Ok(Work::TrainDpo { policy, reference, initial, folder, target })
}

/// Which iterations' preferences an update trains on.
#[must_use]
pub fn history(config: &CheckedConfig) -> History {
    match config.train.history {
        rlhfd_config::History::All => History::All,
        rlhfd_config::History::Newest => History::Newest,
    }
}

/// Whether what the training is going to write has room; a checkpoint that stands already needs none.
async fn fits(
    ctx: &StageContext,
    unit: &UnitRow,
    run: &Run,
    (base, settings): (&ModelRef, &TrainSettings),
    out: &Path,
) -> Result<(), StageError> {
    if out.is_dir() {
        return Ok(());
    }
    let saved = ctx.places.unit_state(&run.name, unit.id.get());
    room::for_training(ctx, (&base.path, settings), saved).await
}

/// The name of what an iteration trains.
#[must_use]
pub fn checkpoint_name(iteration: &Iteration) -> String {
    iteration_name(iteration.iteration)
}

async fn iteration_folder(
    ctx: &StageContext,
    unit: &Arc<UnitRow>,
    config: &CheckedConfig,
    folder: &Path,
    policy: &ModelRef,
) -> Result<(), StageError> {
    let replay = Replay { history: history(config), history_weight: config.train.history_weight };
    let id = unit.id;
    let pairs = ctx.write_patiently(move |s| s.fix_training_set(id, replay, now_ms())).await?;
    if pairs.is_some_and(|(kept, _)| kept == 0) {
        return nothing_to_train(ctx, unit).await;
    }
    let settings = config.train.settings.to_toml(Training::Dpo);
    // Today's, not the iteration's own: whoever looked into a refusal may go on without the check. Both
    // sides of a pair are scored again.
    let rescored = ctx.config.borrow().train.rescore_responses.div_ceil(2);
    let (unit, folder, parent) = (Arc::clone(unit), folder.to_path_buf(), policy.sha256.clone());
    ctx.store
        .read(move |reader| {
            Ok(write_pairs(reader, (&unit, rescored), &folder, (&settings, &parent)))
        })
        .await?
}

/// An iteration without a preference ends as it is: the head stays.
async fn nothing_to_train(ctx: &StageContext, unit: &UnitRow) -> Result<(), StageError> {
    let (run, number) = (unit.run, unit.iteration.unwrap_or_default());
    let why = "no prompt gave a preference; look at the scores, at `unpaired`, and at [pair]";
    ctx.write_patiently(move |s| s.end_without_update(run, number, why, now_ms())).await?;
    Err(StageError::Over(why.into()))
}

fn write_pairs(
    reader: &Reader,
    (unit, rescored): (&UnitRow, u32),
    folder: &Path,
    (settings, parent_sha256): (&str, &str),
) -> Result<(), StageError> {
    let place = |source| StageError::Place { path: folder.to_path_buf(), source };
    let draft = Draft::begin(folder).map_err(place)?;
    let mut out = draft.file("rescore.jsonl").map_err(place)?;
    for stored in reader.stored_pairs(unit.id, rescored)? {
        folders::write_stored(&mut out, &stored).map_err(place)?;
    }
    out.flush().map_err(place)?;
    let mut out = draft.file("pairs.jsonl").map_err(place)?;
    let mut after = None;
    loop {
        let page = reader.training_pairs(unit.id, after, PAIRS_PAGE_ROWS)?;
        let Some(last) = page.last() else { break };
        after = Some(last.position);
        for pair in &page {
            folders::write_pair(&mut out, pair).map_err(place)?;
        }
    }
    out.flush().map_err(place)?;
    write_settings(&draft, settings).map_err(place)?;
    draft.publish(FolderKind::Iteration, &unit.key, parent_sha256)?;
    Ok(())
}

fn write_settings(draft: &Draft, settings: &str) -> io::Result<()> {
    let mut out = draft.file("settings.toml")?;
    out.write_all(settings.as_bytes())?;
    out.flush()
}

async fn of_job(ctx: &StageContext, unit: &Arc<UnitRow>) -> Result<Work, StageError> {
    let id = unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let job = job_of(ctx, unit).await?;
    let today = ctx.config.borrow().clone();
    let config = today.with_frozen(&job.config).map_err(|error| {
        StageError::Input(format!("the configuration frozen with the job cannot be read: {error}"))
    })?;
    let folder = ctx.places.job(&run.name, job.kind.label(), &job.slug());
    let Some(base) = &job.base else {
        let why = format!("the job of {} has no base yet: a defect", unit.key);
        return Err(StageError::Input(why));
    };
    let base = ModelRef { path: ctx.places.resolve(&base.path), sha256: base.sha256.clone() };
    let section = examples::section(&config, job.kind);
    let name = job_checkpoint_name(job.kind, &job.slug());
    let out = ctx.places.checkpoints(&run.name).join(name);
    fits(ctx, unit, &run, (&base, &section.settings), &out).await?;
    let (settings, save) = (section.settings_toml(), section.save);
    let data = match examples::data_of(job.kind) {
        UploadKind::Conversations => "conversations.jsonl",
        _ => "preferences.jsonl",
    };
    let upload = job.upload.map(|upload| ctx.places.upload_file(upload.get()));
    let (key, place, parent) = (unit.key.clone(), folder.clone(), base.sha256.clone());
    actix_rt::task::spawn_blocking(move || {
        write_data((&place, data), upload.as_deref(), &settings, (&key, &parent))
    })
    .await
    .map_err(|_| StageError::Input("the job's folder could not be written: a defect".into()))??;
    let target = target(ctx, unit, &run, out, save, &base.sha256)?;
    Ok(match job.kind {
        JobKind::Sft => Work::TrainSft { base, folder, target },
        JobKind::Reward => Work::TrainReward { base, folder, target },
        JobKind::Preference => Work::TrainPreference { base, folder, target },
    })
}

/// The job of a training job's unit.
pub async fn job_of(ctx: &StageContext, unit: &UnitRow) -> Result<Job, StageError> {
    let Some(job) = unit.job else {
        return Err(StageError::Input(format!("the unit {} belongs to no job", unit.key)));
    };
    Ok(ctx.store.read(move |r| r.job(job)).await?)
}

/// The job's folder, from the uploaded file; the file goes once the folder stands.
fn write_data(
    (folder, data): (&Path, &str),
    upload: Option<&Path>,
    settings: &str,
    (unit, parent_sha256): (&str, &str),
) -> Result<(), StageError> {
    let place = |source| StageError::Place { path: folder.to_path_buf(), source };
    let arrived = upload.filter(|path| path.is_file());
    let Some(upload) = arrived else {
        // An earlier attempt has written it already.
        sums::verify(folder)?;
        return Ok(());
    };
    let draft = Draft::begin(folder).map_err(place)?;
    let mut lines = File::open(upload)
        .map_err(|source| StageError::Place { path: upload.to_path_buf(), source })?;
    let mut out = draft.file(data).map_err(place)?;
    io::copy(&mut lines, &mut out).map_err(place)?;
    out.flush().map_err(place)?;
    write_settings(&draft, settings).map_err(place)?;
    draft.publish(FolderKind::Job, unit, parent_sha256)?;
    fs::remove_file(upload)
        .map_err(|source| StageError::Place { path: upload.to_path_buf(), source })
}

fn target(
    ctx: &StageContext,
    unit: &UnitRow,
    run: &Run,
    out: PathBuf,
    save: SavePolicy,
    parent_sha256: &str,
) -> Result<TrainTarget, StageError> {
    let state = ctx.places.unit_state(&run.name, unit.id.get());
    for folder in [out.parent(), Some(state.as_path())].into_iter().flatten() {
        rlhfd_store::folder::make(folder)
            .map_err(|source| StageError::Place { path: folder.to_path_buf(), source })?;
    }
    Ok(TrainTarget {
        out,
        unit: unit.key.clone(),
        state,
        resume: std::env::var_os(NO_RESUME).is_none(),
        seed: run.seed,
        micro_batch: unit.micro_batch,
        save_every_steps: save.every_steps,
        save_every_s: save.every_s,
        parent_sha256: parent_sha256.to_owned(),
    })
}

/// The place of the checkpoint that a train unit makes (and its checkpoint unit admits).
pub async fn checkpoint_folder(ctx: &StageContext, unit: &UnitRow) -> Result<PathBuf, StageError> {
    let id = unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let name = match unit.iteration {
        Some(number) => iteration_name(number),
        None => {
            let job = job_of(ctx, unit).await?;
            job_checkpoint_name(job.kind, &job.slug())
        }
    };
    Ok(ctx.places.checkpoints(&run.name).join(name))
}

/// Rows of steps from the folder that the worker published.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let Some(published) = done.summary.checkpoint.clone() else {
        return Err(StageError::Answers("a train unit ended without a checkpoint".into()));
    };
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let folder = checkpoint_folder(ctx, &done.unit).await?;
    let sum = published.sha256.clone();
    let read = move || {
        // The rest of it is held against its manifest before its row is written.
        let told = |name: &str| name == STEPS || name == REPORT;
        match sums::verify_some(&folder, told) {
            Err(error) if error.is_lost() => Err(StageError::Spoiled(with_causes(&error))),
            Err(error) => Err(error.into()),
            Ok(found) if found.sha256 != sum => {
                Err(StageError::Spoiled(format!("{} has another manifest", folder.display())))
            }
            Ok(_) => Ok((read_steps(&folder)?, report::read(&folder)?)),
        }
    };
    let read = actix_rt::task::spawn_blocking(read).await;
    let (steps, figures) =
        read.map_err(|_| StageError::Answers("steps.jsonl could not be read".into()))??;
    let dropped = [published.dropped, kept_for_evaluation(ctx, &done.unit).await?].concat();
    if !dropped.is_empty() {
        tell_dropped(ctx, &done.unit, &dropped).await?;
    }
    if !figures.is_empty() {
        let unit = done.unit.id;
        ctx.write_patiently(move |s| s.keep_reports(unit, &figures)).await?;
    }
    let first = published.first_step;
    ctx.write_patiently(move |s| s.finish_train(&finish, &steps, first, now_ms())).await?;
    Ok(())
}

/// What a job's data lost when they were taken in.
async fn kept_for_evaluation(
    ctx: &StageContext,
    unit: &UnitRow,
) -> Result<Vec<(String, u64)>, StageError> {
    if unit.iteration.is_some() {
        return Ok(Vec::new());
    }
    let Some(upload) = job_of(ctx, unit).await?.upload else { return Ok(Vec::new()) };
    let left_out = ctx.store.read(move |r| Ok(r.upload(upload)?.evaluation_prompts)).await?;
    Ok((left_out > 0).then(|| ("evaluation_prompt".to_owned(), left_out)).into_iter().collect())
}

/// Pairs and conversations left out are told, not hidden.
async fn tell_dropped(
    ctx: &StageContext,
    unit: &UnitRow,
    dropped: &[(String, u64)],
) -> Result<(), StageError> {
    let said: Vec<String> = dropped.iter().map(|(why, n)| format!("{n} {why}")).collect();
    let what = if unit.work == WorkKind::TrainSft { "conversations" } else { "pairs" };
    let event = rlhfd_store::NewEvent {
        level: rlhfd_store::Level::Warn,
        kind: format!("{what}_dropped"),
        run: Some(unit.run),
        iteration: unit.iteration,
        unit: Some(unit.id),
        uid: None,
        message: format!("{what} left out of training: {}", said.join(", ")),
        data: None,
    };
    ctx.write_patiently(move |s| s.append_event(&event, now_ms())).await?;
    Ok(())
}

/// Removes a train unit's own state, once its checkpoint's row is durable. What cannot be removed
/// now is swept at the next start.
pub async fn remove_state(ctx: &StageContext, run: &Run, unit: UnitId) {
    let state = ctx.places.unit_state(&run.name, unit.get());
    let removed = actix_rt::task::spawn_blocking(move || match fs::remove_dir_all(&state) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("the state folder of a done unit stays: {error}");
        }
        Ok(()) | Err(_) => {}
    });
    // The blocking pool ends only with the daemon.
    let _ = removed.await;
}

impl StageError {
    /// Whether the store said that there is no such row.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Ask(crate::handles::AskError::Store(StoreError::NotFound { .. })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_becomes_the_jobs_folder_once() {
        let root = tempfile::tempdir().unwrap();
        let upload = root.path().join("7.jsonl");
        let folder = root.path().join("jobs/reward-main");
        fs::write(&upload, "{}\n").unwrap();
        let write = |settings: &str| {
            let made = ("job/reward/main/train", "ab");
            write_data((&folder, "preferences.jsonl"), Some(&upload), settings, made)
        };
        write("epochs = 1\n").unwrap();
        assert!(!upload.exists());
        // The second attempt finds the folder and no upload.
        write("").unwrap();
        fs::remove_file(folder.join("preferences.jsonl")).unwrap();
        write("").unwrap_err();
    }
}
