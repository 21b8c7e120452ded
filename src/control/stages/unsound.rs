//! Checkpoints that are not as they were admitted: a worker finds one as it loads it, and once after each start
//! those in use are looked at beside whatever else begins.
//!
//! In: a run. Out: those that are altered or gone are marked, by which the head goes back to a sound ancestor and
//! an iteration that is made with one ends. May not enter: units.

use std::path::PathBuf;

use rlhfd_domain::{CheckpointId, RunId};
use rlhfd_store::{Checkpoint, PausedBy, Run};

use super::sums::{self, SumError};
use crate::actors::stage::{StageContext, StageError};
use crate::handles::{now_ms, with_causes};
use crate::places::Places;

/// How much of a folder is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Names and sizes.
    Sizes,
    /// Every byte.
    Sums,
}

/// Looks once, by every byte, at what each run goes on from. Start-up itself saw names and sizes alone, so that
/// nobody waits for the sums of large models.
pub async fn after_start(ctx: StageContext) {
    let runs = match ctx.store.read(|r| r.runs()).await {
        Ok(runs) => runs,
        Err(error) => {
            return tracing::warn!("checkpoints are not looked at: {}", with_causes(&error));
        }
    };
    for run in runs {
        let id = run.id;
        if let Err(error) = in_use(&ctx, run).await {
            let reason = with_causes(&error);
            tracing::error!("the run pauses: {reason}");
            let pause = move |s: &mut rlhfd_store::Store| {
                s.pause_run(id, PausedBy::Daemon, &reason, now_ms())
            };
            if let Err(error) = ctx.write_patiently(pause).await {
                tracing::error!("it is not paused: {}", with_causes(&error));
            }
        }
    }
}

/// The head is computed with, and so are what waits for its verdict and what it is held to.
async fn in_use(ctx: &StageContext, run: Run) -> Result<(), StageError> {
    let id = run.id;
    let current = ctx.store.read(move |r| r.current_iteration(id)).await?;
    let waiting = current.as_ref().and_then(|iteration| iteration.policy_out);
    let reference = current.as_ref().map(|iteration| iteration.reference);
    let used = [Some(run.head), waiting, reference];
    let rows = standing(ctx, id).await?;
    let rows = rows.into_iter().filter(|row| used.contains(&Some(row.id))).collect();
    mark_of(ctx, rows, Look::Sums).await.map(drop)
}

/// Looks at all sound checkpoints of a run, and marks what is altered or gone. Gives whether something was.
pub async fn mark(ctx: &StageContext, run: RunId, look: Look) -> Result<bool, StageError> {
    mark_of(ctx, standing(ctx, run).await?, look).await
}

/// Those of ours that were sound so far and do not go.
async fn standing(ctx: &StageContext, run: RunId) -> Result<Vec<Checkpoint>, StageError> {
    let rows = ctx.store.read(move |r| {
        let gone = r.removed(run)?;
        let begun = r.removals_begun(run)?;
        let mut rows = r.checkpoints(run)?;
        rows.retain(|row| {
            let goes = gone.contains(&row.id) || begun.iter().any(|one| one.id == row.id);
            row.sound && !goes && Places::is_published(&row.path)
        });
        Ok(rows)
    });
    Ok(rows.await?)
}

async fn mark_of(
    ctx: &StageContext,
    rows: Vec<Checkpoint>,
    look: Look,
) -> Result<bool, StageError> {
    let of = |row: Checkpoint| (row.id, ctx.places.resolve(&row.path), row.sha256);
    let folders: Vec<_> = rows.into_iter().map(of).collect();
    let looked = move || folders.into_iter().filter_map(|row| problem(row, look)).collect();
    let lost: Vec<(CheckpointId, String)> =
        actix_rt::task::spawn_blocking(looked).await.unwrap_or_default();
    for (id, problem) in &lost {
        tracing::error!(checkpoint = id.get(), "not sound: {problem}");
        let (id, problem) = (*id, problem.clone());
        ctx.write_patiently(move |s| s.mark_unsound(id, &problem, now_ms())).await?;
    }
    Ok(!lost.is_empty())
}

/// What is wrong with a folder; none also where it cannot be read now, since it may be whole.
fn problem(
    (id, folder, sha256): (CheckpointId, PathBuf, String),
    look: Look,
) -> Option<(CheckpointId, String)> {
    let found = match look {
        Look::Sizes => sums::sized(&folder),
        Look::Sums => sums::verify(&folder),
    };
    let problem = match found {
        Ok(published) if published.sha256 == sha256 => return None,
        Ok(_) => "its manifest is another".to_owned(),
        Err(error) if error.is_lost() => with_causes(&error),
        Err(SumError::Io { .. } | SumError::NoModel { .. } | SumError::Unsound { .. }) => {
            return None;
        }
    };
    Some((id, problem))
}
