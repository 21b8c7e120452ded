//! Checkpoint: the folder that a train unit published is held against its manifest and admitted.
//!
//! In: a folder. Out: the row (or the done job). May not enter: weights.

use rlhfd_domain::checkpoint::{CheckpointKind, job_checkpoint_name};
use rlhfd_protocol::worker::Summary;
use rlhfd_store::{NewCheckpoint, UnitRow};

use super::sums::{self, Published, SumError};
use super::train;
use crate::actors::stage::{Perform, StageContext, StageError, finish};
use crate::handles::{now_ms, with_causes};

/// Admits the checkpoint of an iteration or a training job.
pub async fn perform(ctx: &StageContext, work: &Perform) -> Result<(), StageError> {
    let unit = &work.unit;
    let folder = train::checkpoint_folder(ctx, unit).await?;
    let verified = folder.clone();
    let looked = actix_rt::task::spawn_blocking(move || sums::verify(&verified))
        .await
        .map_err(|_| StageError::Input("the checkpoint could not be read: a defect".into()))?;
    let published = match looked {
        Err(error) if error.is_lost() => return train_again(ctx, work, &error).await,
        looked => looked?,
    };
    let trained = train_key(unit);
    if published.manifest.unit != trained {
        return Err(StageError::Input(format!(
            "{} was made by the unit {}, not by {trained}; move it away and resume",
            folder.display(),
            published.manifest.unit
        )));
    }
    let path = ctx.places.relative(&folder);
    let checkpoint = row(ctx, unit, path, &published).await?;
    let finish = finish(unit, work.attempt, &Summary::default());
    ctx.write_patiently(move |s| s.finish_checkpoint(&finish, &checkpoint, now_ms())).await?;
    forget_state(ctx, unit, &trained).await
}

/// The folder was altered, or went, since the training published it, and no row names it yet: what the
/// training told is taken back, and it goes on from its last saved state to the same folder.
async fn train_again(
    ctx: &StageContext,
    work: &Perform,
    error: &SumError,
) -> Result<(), StageError> {
    let (run, key, why) = (work.unit.run, train_key(&work.unit), with_causes(error));
    tracing::error!(key, "what a training published is not sound: {why}");
    let Some(trained) = ctx.store.read(move |r| r.unit_by_key(run, &key)).await? else {
        return Err(StageError::Input(why));
    };
    let attempt = (work.unit.id, work.attempt);
    ctx.write_patiently(move |s| s.training_spoiled(attempt, trained.id, &why, now_ms())).await?;
    Ok(())
}

/// The key of the train unit that belongs to a checkpoint unit.
#[must_use]
pub fn train_key(unit: &UnitRow) -> String {
    let parent = unit.key.rsplit_once('/').map_or(unit.key.as_str(), |(parent, _)| parent);
    format!("{parent}/train")
}

async fn row(
    ctx: &StageContext,
    unit: &UnitRow,
    path: String,
    published: &Published,
) -> Result<NewCheckpoint, StageError> {
    let id = unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let (sha256, bytes) = (published.sha256.clone(), published.bytes);
    if let Some(number) = unit.iteration {
        let iteration = ctx.store.read(move |r| r.iteration(id, number)).await?;
        return Ok(NewCheckpoint {
            name: train::checkpoint_name(&iteration),
            kind: CheckpointKind::Policy,
            path,
            sha256,
            bytes,
            parent: Some(iteration.policy_in),
            reference: Some(iteration.reference),
        });
    }
    let job = train::job_of(ctx, unit).await?;
    let (initial, base) = (run.initial, run.base);
    let models = ctx.store.read(move |r| Ok([r.checkpoint(initial)?, r.checkpoint(base)?])).await?;
    let parent = models
        .into_iter()
        .find(|row| job.base.as_ref().is_some_and(|model| model.sha256 == row.sha256));
    Ok(NewCheckpoint {
        name: job_checkpoint_name(job.kind, &job.slug()),
        kind: job.kind.makes(),
        path,
        sha256,
        bytes,
        parent: parent.map(|row| row.id),
        reference: None,
    })
}

async fn forget_state(ctx: &StageContext, unit: &UnitRow, trained: &str) -> Result<(), StageError> {
    let (id, key) = (unit.run, trained.to_owned());
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let trained = ctx.store.read(move |r| r.unit_by_key(id, &key)).await?;
    if let Some(trained) = trained {
        train::remove_state(ctx, &run, trained.id).await;
    }
    Ok(())
}
