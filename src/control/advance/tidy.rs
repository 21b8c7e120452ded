//! Between two iterations, and whenever there is no room: what nobody needs any more goes.
//!
//! In: the configuration, the run. Out: files of old checkpoints and old training inputs removed, log-probs
//! under what is gone, old texts and events deleted, a piece a look. A checkpoint is marked before its folder goes and after, so that a
//! crash in between is made good by the next start (`adopt`). May not enter: which ones may go
//! (`rlhfd_domain::retention`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rlhfd_config::{ArmPolicy, CheckedConfig};
use rlhfd_store::{Checkpoint, Kept, Level, NewEvent, Run};

use crate::actors::iteration::OrderContext;
use crate::handles::{AskError, now_ms};
use crate::places::Places;
use crate::stages::average;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Folders of this daemon that could not be removed: told once, passed over until the next start.
pub type Stuck = Arc<Mutex<BTreeSet<String>>>;

/// Removes one folder that the active run does not need, also while an iteration is open. False: there
/// is none.
pub(super) async fn make_room(ctx: &OrderContext) -> Result<bool, AskError> {
    let config = ctx.stage.config.borrow().clone();
    let Some(run) = ctx.stage.store.read(|r| r.active_run()).await? else { return Ok(false) };
    Ok(checkpoints(ctx, &config, &run).await? || inputs(ctx, &config, &run).await?)
}

/// Does one piece of it. False: there is nothing to do.
pub(super) async fn tidy(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<bool, AskError> {
    Ok(checkpoints(ctx, config, run).await?
        || inputs(ctx, config, run).await?
        || rows(ctx, config, run).await?)
}

async fn checkpoints(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<bool, AskError> {
    let (id, kept) = (run.id, kept(config));
    let store = &ctx.stage.store;
    let (wanted, passed) = (kept.clone(), stuck(ctx));
    let Some(old) = store.read(move |r| r.next_removal(id, &wanted, &passed)).await? else {
        return Ok(false);
    };
    let checkpoint = old.id;
    if !store.write(move |s| s.begin_removal(checkpoint, &kept, now_ms())).await? {
        return Ok(false);
    }
    let (places, name) = (ctx.stage.places.clone(), run.name.clone());
    let removed = actix_rt::task::spawn_blocking(move || remove_folder(&places, &name, &old)).await;
    if let Err((path, error)) = removed.map_err(|_| AskError::Gone)? {
        return pass_over(ctx, run, &path, &error).await;
    }
    store.write(move |s| s.end_removal(checkpoint, now_ms())).await?;
    Ok(true)
}

fn stuck(ctx: &OrderContext) -> BTreeSet<String> {
    ctx.stuck.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A folder that does not go holds up nothing else. It is told once; there may be others: look again.
async fn pass_over(
    ctx: &OrderContext,
    run: &Run,
    folder: &Path,
    error: &io::Error,
) -> Result<bool, AskError> {
    let path = ctx.stage.places.relative(folder);
    let text = format!(
        "{path} cannot be removed ({error}): look at its owner and mode; it is tried again when the \
         daemon starts"
    );
    tracing::warn!("{text}");
    ctx.stuck.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
    let event = NewEvent { level: Level::Warn, ..NewEvent::of(run.id, "folder_stuck", text) };
    ctx.stage.store.write(move |s| s.append_event(&event, now_ms())).await?;
    Ok(true)
}

/// How many checkpoints stay, and which the configuration needs.
fn kept(config: &CheckedConfig) -> Kept {
    let named = config.generate.arms.iter().filter_map(|arm| match &arm.policy {
        ArmPolicy::Named(name) => Some(name.clone()),
        ArmPolicy::Current | ArmPolicy::Previous | ArmPolicy::Initial => None,
    });
    Kept {
        newest: config.store.keep_checkpoints,
        named: named.collect(),
        reference: average::rule(config),
    }
}

/// Removes the files of a checkpoint that is marked: out of sight first, under a name that the next start
/// sweeps. What is gone already is well; a folder that is not below the run's own is never touched.
///
/// Errors: the folder, and what the system said.
pub(crate) fn remove_folder(
    places: &Places,
    run: &str,
    checkpoint: &Checkpoint,
) -> Result<(), (PathBuf, io::Error)> {
    let folder = places.resolve(&checkpoint.path);
    if folder.parent() != Some(places.checkpoints(run).as_path()) {
        return Ok(());
    }
    remove_aside(&folder).map_err(|error| (folder, error))
}

fn remove_aside(folder: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
    let aside = parent.join(format!(".{}.removed", name.to_string_lossy()));
    let missing_is_well = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    // Left by a removal that was cut off: the name must be free.
    missing_is_well(fs::remove_dir_all(&aside))?;
    missing_is_well(fs::rename(folder, &aside))?;
    missing_is_well(rlhfd_store::folder::sync(parent))?;
    missing_is_well(fs::remove_dir_all(&aside))
}

/// Training inputs of ended iterations: the pairs that they were made from stay.
async fn inputs(ctx: &OrderContext, config: &CheckedConfig, run: &Run) -> Result<bool, AskError> {
    let keep = u32::try_from(config.store.keep_checkpoints).unwrap_or(u32::MAX);
    if keep == 0 {
        return Ok(false);
    }
    let id = run.id;
    let newest = ctx.stage.store.read(move |r| r.newest_ended(id)).await?;
    let (places, name, passed) = (ctx.stage.places.clone(), run.name.clone(), stuck(ctx));
    let removed = actix_rt::task::spawn_blocking(move || {
        let is_stuck = |number| passed.contains(&places.relative(&places.iteration(&name, number)));
        let standing = input_numbers(&places.run(&name).join("iterations"));
        let oldest = standing.into_iter().find(|number| !is_stuck(*number));
        let oldest = oldest.filter(|oldest| *oldest <= newest.saturating_sub(keep))?;
        let folder = places.iteration(&name, oldest);
        Some(remove_aside(&folder).map_err(|error| (folder, error)))
    });
    match removed.await.map_err(|_| AskError::Gone)? {
        None => Ok(false),
        Some(Ok(())) => Ok(true),
        Some(Err((path, error))) => pass_over(ctx, run, &path, &error).await,
    }
}

/// Numbers of iterations whose folders stand. A folder that is named otherwise is none of ours.
fn input_numbers(folder: &Path) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number = |name: String| name.parse().ok().filter(|number| name == format!("{number:04}"));
    names.filter_map(number).collect()
}

/// Log-probs, texts and events.
async fn rows(ctx: &OrderContext, config: &CheckedConfig, run: &Run) -> Result<bool, AskError> {
    let (id, store) = (run.id, &ctx.stage.store);
    if store.read(move |r| r.has_old_logprobs(id)).await?
        && store.write(move |s| s.sweep_logprobs(id)).await?
    {
        return Ok(true);
    }
    let keep = u32::try_from(config.store.keep_responses).unwrap_or(u32::MAX);
    if keep > 0 {
        let newest = store.read(move |r| r.newest_ended(id)).await?;
        let to = newest.saturating_sub(keep);
        if to > run.texts_swept_to && store.write(move |s| s.sweep_texts(id, to)).await? {
            return Ok(true);
        }
    }
    let days = i64::try_from(config.store.keep_events_days).unwrap_or(i64::MAX / DAY_MS);
    if days == 0 {
        return Ok(false);
    }
    let before = now_ms().saturating_sub(days.saturating_mul(DAY_MS));
    let oldest = store.read(move |r| r.oldest_event_ms()).await?;
    Ok(oldest.is_some_and(|oldest| oldest < before)
        && store.write(move |s| s.sweep_events(before)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_are_named_as_ours_are_inputs() {
        let root = tempfile::tempdir().unwrap();
        for name in ["1", "01", "0002", "00003", "x", "12345", ".0004.removed"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        assert_eq!(input_numbers(root.path()), BTreeSet::from([2, 12_345]));
    }

    #[test]
    fn a_removal_that_was_cut_off_anywhere_is_made_good() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("iteration-0001");
        let aside = root.path().join(".iteration-0001.removed");
        let make = |folder: &Path| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("model.safetensors"), "x").unwrap();
        };
        // Before it began, renamed, half removed, removed; and a folder beside an older half.
        let moments: [&[&Path]; 4] = [&[&folder], &[&aside], &[], &[&folder, &aside]];
        for standing in moments {
            standing.iter().for_each(|folder| make(folder));
            remove_aside(&folder).unwrap();
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "{standing:?}");
        }
    }
}
