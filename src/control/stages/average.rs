//! Average: the next reference, where that is a moving average of the policies that were heads.
//!
//! In: a policy and the average before it. Out: a published folder, then its row of kind `reference`,
//! whose parent is the policy and whose own reference is the average before. May not enter: weights.

use rlhfd_config::{CheckedConfig, Reference};
use rlhfd_domain::CheckpointId;
use rlhfd_domain::checkpoint::{CheckpointKind, reference_name};
use rlhfd_domain::train::ReferenceRule;
use rlhfd_domain::{Stage, WorkKind};
use rlhfd_protocol::worker::Work;
use rlhfd_store::{Average, NewCheckpoint, NewUnit, UnitRow};
use serde::{Deserialize, Serialize};

use super::sums;
use crate::actors::stage::{Conclude, ItemKeys, Prepared, StageContext, StageError, finish};
use crate::handles::{now_ms, with_causes};

/// What an average unit is made of, as its row keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Detail {
    name: String,
    policy: i64,
    before: i64,
    decay: f64,
}

/// Which checkpoint the configuration holds updates to.
#[must_use]
pub fn rule(config: &CheckedConfig) -> ReferenceRule {
    match config.train.reference.which {
        Reference::Fixed => ReferenceRule::Fixed,
        Reference::Previous => ReferenceRule::Every(1),
        Reference::Every => ReferenceRule::Every(config.train.reference.every),
        Reference::Average => ReferenceRule::Average,
    }
}

/// The unit that makes an average: always the same one for the same policy.
#[must_use]
pub fn unit(average: Average, decay: f64) -> NewUnit {
    let name = reference_name(average.iteration);
    let key = format!("average/{name}");
    let (policy, before) = (average.policy.get(), average.before.get());
    let detail = Detail { name, policy, before, decay };
    NewUnit {
        stage: Stage::Train,
        work: WorkKind::Average,
        lane: String::new(),
        key,
        micro_batch: None,
        plan: None,
        policy: Some(average.policy),
        scorer: None,
        detail: serde_json::to_string(&detail).ok(),
    }
}

fn detail(unit: &UnitRow) -> Result<Detail, StageError> {
    let kept = unit.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
    kept.ok_or_else(|| StageError::Input(format!("the unit {} names no policies", unit.key)))
}

/// Which models, and where the average is to stand.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let id = unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let detail = detail(unit)?;
    let work = Work::Average {
        policy: ctx.model(CheckpointId(detail.policy)).await?,
        before: ctx.model(CheckpointId(detail.before)).await?,
        decay: detail.decay,
        out: ctx.places.checkpoints(&run.name).join(&detail.name),
        unit: unit.key.clone(),
    };
    // It goes weight by weight: whatever is loaded may stay.
    Ok(Prepared { work, load: None, items: Vec::new(), keys: ItemKeys::None })
}

/// The folder is held against its manifest, and the row is written.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let id = done.unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let Detail { name, policy, before, .. } = detail(&done.unit)?;
    let folder = ctx.places.checkpoints(&run.name).join(&name);
    let verified = folder.clone();
    let published = actix_rt::task::spawn_blocking(move || sums::verify(&verified))
        .await
        .map_err(|_| StageError::Input("the average could not be read: a defect".into()))?
        .map_err(|error| match error.is_lost() {
            true => StageError::Spoiled(with_causes(&error)),
            false => error.into(),
        })?;
    if published.manifest.unit != done.unit.key {
        let why = format!("{} was made by another unit; move it away", folder.display());
        return Err(StageError::Input(why));
    }
    let new = NewCheckpoint {
        name,
        kind: CheckpointKind::Reference,
        path: ctx.places.relative(&folder),
        sha256: published.sha256,
        bytes: published.bytes,
        parent: Some(CheckpointId(policy)),
        reference: Some(CheckpointId(before)),
    };
    let finish = finish(&done.unit, done.attempt, &done.summary);
    ctx.write_patiently(move |s| s.finish_average(&finish, &new, now_ms())).await?;
    Ok(())
}
