//! Start-up: what an earlier daemon left is put in order before anything new begins.
//!
//! In: the store, the state folder, both ours alone. Out: units open again, half-written things
//! removed, checkpoint rows and folders in accord: a row without a sound folder falls back to its
//! parent, a folder without a row is adopted where it belongs to an open unit, else it is moved to
//! `orphans/`. Every step may be cut off and done again. It blocks: nothing else runs yet. May not
//! enter: actors.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rlhfd_domain::{CheckpointId, RunId, UploadId, WorkKind};
use rlhfd_store::{Checkpoint, Finish, Level, NewEvent, Run, Store, StoreError, UnitRow};

use crate::advance::tidy;
use crate::handles::{now_ms, with_causes};
use crate::health;
use crate::places::Places;
use crate::stages::report;
use crate::stages::steps::read_steps;
use crate::stages::sums::{self, Published, SumError};

/// Why the state could not be put in order.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder.
    #[error("{path} cannot be put in order; look at its owner, its mode and the disk")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Puts the state folder in order.
///
/// Errors: the database's, and folders that cannot be read or moved.
pub fn adopt(store: &mut Store, places: &Places) -> Result<(), AdoptError> {
    let recovered = store.recover(now_ms())?;
    if recovered.units + recovered.uploads + recovered.leases > 0 {
        tracing::info!(
            units = recovered.units,
            uploads = recovered.uploads,
            leases = recovered.leases,
            "what was under way when the daemon ended is open again"
        );
    }
    while store.sweep_uploads()? {}
    sweep_upload_files(store, places)?;
    remove(&places.state.join(".trial"))?;
    let runs = store.runs()?;
    sync_names(places, &runs)?;
    for run in runs {
        for folder in ["iterations", "jobs", "checkpoints"] {
            sweep_half_written(&places.run(&run.name).join(folder))?;
        }
        let going = end_removals(store, places, &run)?;
        let checkpoints = store.checkpoints(run.id)?;
        let staying = checkpoints.iter().filter(|row| !going.contains(&row.id));
        check_rows(store, places, staying)?;
        check_folders(store, places, &run, &checkpoints)?;
        sweep_unit_states(store, places, &run)?;
    }
    Ok(())
}

/// A daemon that was killed may have made folders whose names no sync has covered.
fn sync_names(places: &Places, runs: &[Run]) -> Result<(), AdoptError> {
    let of_runs = runs.iter().map(|run| places.run(&run.name));
    let folders = [places.state.clone(), places.state.join("runs")].into_iter().chain(of_runs);
    for folder in folders.filter(|folder| folder.is_dir()) {
        rlhfd_store::folder::sync(&folder).map_err(at(&folder))?;
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AdoptError {
    move |source| AdoptError::Io { path: path.to_path_buf(), source }
}

/// Names in a folder; none where there is no such folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, AdoptError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(at(folder)(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at(folder))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn remove(path: &Path) -> Result<(), AdoptError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Files of uploads that never became visible.
fn sweep_upload_files(store: &Store, places: &Places) -> Result<(), AdoptError> {
    for name in names(&places.uploads())? {
        let id = name.strip_suffix(".jsonl").and_then(|id| id.parse().ok());
        let published = match id.map(|id| store.upload(UploadId(id))) {
            Some(Ok(upload)) => upload.state == "published",
            Some(Err(StoreError::NotFound { .. })) | None => false,
            Some(Err(error)) => return Err(error.into()),
        };
        if !published {
            remove(&places.uploads().join(name))?;
        }
    }
    Ok(())
}

/// Folders in the making begin with a dot; only a unit that runs writes one, and none runs now.
fn sweep_half_written(folder: &Path) -> Result<(), AdoptError> {
    for name in names(folder)?.into_iter().filter(|name| name.starts_with('.')) {
        match remove(&folder.join(&name)) {
            Ok(()) => tracing::info!(folder = name, "half-written, removed"),
            // What is left of a checkpoint that nobody needs any more is no reason not to start.
            Err(error) if name.ends_with(".removed") => tracing::warn!("{}", with_causes(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removals that were cut off. Gives those whose folders do not go: they stay begun, and hold up nothing.
fn end_removals(
    store: &mut Store,
    places: &Places,
    run: &Run,
) -> Result<Vec<CheckpointId>, AdoptError> {
    let mut left = Vec::new();
    for checkpoint in store.removals_begun(run.id)? {
        match tidy::remove_folder(places, &run.name, &checkpoint) {
            Ok(()) => store.end_removal(checkpoint.id, now_ms())?,
            Err((path, error)) => {
                tracing::warn!("{} cannot be removed: {error}", path.display());
                left.push(checkpoint.id);
            }
        }
    }
    Ok(left)
}

/// Rows whose folder is not as it was, by names and sizes: what can be looked at for all of them before anybody
/// is served. The sums of those in use are computed afterwards, and by the worker that loads one
/// (`stages::unsound`).
fn check_rows<'a>(
    store: &mut Store,
    places: &Places,
    checkpoints: impl Iterator<Item = &'a Checkpoint>,
) -> Result<(), AdoptError> {
    for row in checkpoints {
        if !Places::is_published(&row.path) {
            // The user's own model: its sum is compared when the run is opened.
            continue;
        }
        let folder = places.resolve(&row.path);
        // One that was found altered is sound again by every byte of it.
        let found = if row.sound { sums::sized(&folder) } else { sums::verify(&folder) };
        let problem = match found {
            Ok(published) if published.sha256 == row.sha256 => None,
            // What cannot be read now may be whole.
            Err(SumError::Io { path, source }) if health::may_pass(&source) => {
                return Err(at(&path)(source));
            }
            Ok(_) => Some("its manifest is another".to_owned()),
            Err(error) => Some(said(&error)),
        };
        match problem {
            None if !row.sound => store.mark_sound(row.id, now_ms())?,
            Some(problem) if row.sound => {
                tracing::error!(checkpoint = row.name, "not sound: {problem}");
                store.mark_unsound(row.id, &problem, now_ms())?;
            }
            None | Some(_) => {}
        }
    }
    Ok(())
}

fn said(error: &SumError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Folders that no row names.
fn check_folders(
    store: &mut Store,
    places: &Places,
    run: &Run,
    checkpoints: &[Checkpoint],
) -> Result<(), AdoptError> {
    let parent = places.checkpoints(&run.name);
    // A worker may have died before it made its folder's name durable; a row relies on it.
    match rlhfd_store::folder::sync(&parent) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&parent)(error)),
        Ok(()) | Err(_) => {}
    }
    // Behind a dot stands at most what could not be removed.
    for name in names(&parent)?.into_iter().filter(|name| !name.starts_with('.')) {
        let folder = parent.join(&name);
        let path = places.relative(&folder);
        if checkpoints.iter().any(|row| row.path == path) {
            continue;
        }
        match belongs(store, run.id, &folder)? {
            Belongs::Awaited => {}
            Belongs::To(unit, published) => take_in(store, &unit, &folder, &published)?,
            Belongs::Nowhere(why) => orphan(store, places, run, &folder, &why)?,
        }
    }
    Ok(())
}

enum Belongs {
    /// Its train unit is done: the checkpoint unit admits it; or its own unit is still to do that.
    Awaited,
    /// It was published, and its unit does not know it yet.
    To(Box<UnitRow>, Published),
    /// It fits no open unit.
    Nowhere(String),
}

fn belongs(store: &Store, run: RunId, folder: &Path) -> Result<Belongs, AdoptError> {
    let published = match sums::verify(folder) {
        Ok(published) => published,
        Err(error) => return Ok(Belongs::Nowhere(said(&error))),
    };
    let key = &published.manifest.unit;
    Ok(match store.unit_by_key(run, key)? {
        // Its unit runs again and takes the folder as it stands.
        Some(unit) if unit.work == WorkKind::Average && unit.state == "open" => Belongs::Awaited,
        Some(unit) if !unit.work.trains() => Belongs::Nowhere(format!("{key} trains nothing")),
        Some(unit) if unit.state == "open" => Belongs::To(Box::new(unit), published),
        Some(unit) if unit.state == "done" && is_awaited(store, &unit)? => Belongs::Awaited,
        Some(unit) => Belongs::Nowhere(format!("its unit {key} is {}", unit.state)),
        None => Belongs::Nowhere(format!("no unit has the key {key}")),
    })
}

/// Whether the checkpoint unit that follows a train unit is still open.
fn is_awaited(store: &Store, trained: &UnitRow) -> Result<bool, AdoptError> {
    let key = match trained.key.strip_suffix("train") {
        Some(parent) => format!("{parent}checkpoint"),
        None => return Ok(false),
    };
    let unit = store.unit_by_key(trained.run, &key)?;
    Ok(unit.is_some_and(|unit| unit.state == "open"))
}

/// The worker's answer was lost, its work was not: the unit is done by the folder, steps and all.
fn take_in(
    store: &mut Store,
    unit: &UnitRow,
    folder: &Path,
    published: &Published,
) -> Result<(), AdoptError> {
    let told = read_steps(folder).and_then(|steps| Ok((steps, report::read(folder)?)));
    let (steps, figures) = match told {
        Ok(told) => told,
        // The unit runs again, and its worker finds the folder.
        Err(error) => {
            tracing::warn!(key = %unit.key, "a checkpoint is not adopted: {error}");
            return Ok(());
        }
    };
    let attempt = store.lease_unit(unit.id, None, now_ms())?;
    let finish = Finish { unit: unit.id, attempt: attempt.id, tokens: 0, seconds: 0.0 };
    store.keep_reports(unit.id, &figures)?;
    // This attempt made no step itself.
    let first = published.manifest.steps + 1;
    store.finish_train(&finish, &steps, first, now_ms())?;
    let text = format!("the checkpoint of {} was found published and is adopted", unit.key);
    tracing::info!("{text}");
    let event = NewEvent {
        iteration: unit.iteration,
        unit: Some(unit.id),
        ..NewEvent::of(unit.run, "checkpoint_adopted", text)
    };
    store.append_event(&event, now_ms())?;
    Ok(())
}

/// Nothing is thrown away: a restored backup must not cost newer checkpoints.
fn orphan(
    store: &mut Store,
    places: &Places,
    run: &Run,
    folder: &Path,
    why: &str,
) -> Result<(), AdoptError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let target = places.orphans().join(format!("{}-{name}-{}", run.name, now_ms()));
    fs::rename(folder, &target).map_err(at(folder))?;
    // The new name first: a power cut in between may leave both, and never none.
    for parent in [target.parent(), folder.parent()].into_iter().flatten() {
        rlhfd_store::folder::sync(parent).map_err(at(parent))?;
    }
    let text = format!("{name} is moved to {}: {why}", places.relative(&target));
    tracing::warn!("{text}");
    let event = NewEvent { level: Level::Warn, ..NewEvent::of(run.id, "folder_orphaned", text) };
    store.append_event(&event, now_ms())?;
    Ok(())
}

/// States of train units that are closed, and whose checkpoint's row is durable.
fn sweep_unit_states(store: &Store, places: &Places, run: &Run) -> Result<(), AdoptError> {
    let parent = places.run(&run.name).join("state");
    for name in names(&parent)? {
        let unit = match name.parse().map(|id| store.unit(rlhfd_domain::UnitId(id))) {
            Ok(Ok(unit)) => Some(unit),
            Ok(Err(StoreError::NotFound { .. })) | Err(_) => None,
            Ok(Err(error)) => return Err(error.into()),
        };
        let wanted = match &unit {
            Some(unit) => unit.state == "open" || is_awaited(store, unit)?,
            None => false,
        };
        if !wanted {
            remove(&parent.join(name))?;
        }
    }
    Ok(())
}
