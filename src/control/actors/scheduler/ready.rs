//! Ready units as the scheduler plans with them: their models, and what they need of a GPU's memory.
//!
//! In: rows. Out: [`Ready`] units in the store's order. A need is asked once a unit and batch size, since
//! folders are read for it. May not enter: devices, placement.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rlhfd_domain::{UnitId, WorkKind};
use rlhfd_protocol::worker::ModelRef;
use rlhfd_store::UnitRow;

use super::READY_MAX;
use crate::actors::stage::{StageContext, StageError};
use crate::stages::{needs, score, train};

/// A unit and how many items it computes together.
type Key = (UnitId, Option<u64>);
/// What the memory plan says of units; none where it does not know.
pub(super) type Needs = BTreeMap<Key, Option<u64>>;

/// A unit whose inputs exist.
pub(super) struct Ready {
    pub(super) unit: Arc<UnitRow>,
    /// Sums of the models that it computes with.
    pub(super) models: Vec<String>,
    /// What it needs by the memory plan.
    pub(super) plan_mib: Option<u64>,
    /// By what that is corrected.
    factor: f64,
}

impl Ready {
    pub(super) fn key(&self) -> Key {
        key(&self.unit)
    }

    /// What it needs, corrected by what others of its work measured. Where the plan says that it fits the
    /// roomiest device, no measurement says that it does not: they were made there.
    pub(super) fn needs_mib(&self, roomiest_mib: u64) -> Option<u64> {
        let corrected = self.corrected_mib()?;
        let fits = self.plan_mib.is_some_and(|plan| plan <= roomiest_mib);
        Some(if fits { corrected.min(roomiest_mib) } else { corrected })
    }

    fn corrected_mib(&self) -> Option<u64> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "MiB are far below 2^52, and the factor is above 0"
        )]
        self.plan_mib.map(|plan| (plan as f64 * self.factor).ceil() as u64)
    }
}

fn key(unit: &UnitRow) -> Key {
    (unit.id, unit.plan.map(|plan| plan.batch_items).or(unit.micro_batch))
}

/// Ready units that need a worker; none while the run is paused. Where `known` is given, with what they
/// need of a GPU.
pub(super) async fn ready(
    ctx: &StageContext,
    known: Option<Needs>,
) -> Result<Vec<Ready>, StageError> {
    let units = ctx
        .store
        .read(|r| {
            let Some(run) = r.active_run()?.filter(|run| run.paused.is_none()) else {
                return Ok(Vec::new());
            };
            let units = r.ready_units(run.id, READY_MAX)?.into_iter();
            units
                .filter(|unit| !unit.work.by_control())
                .map(|unit| Ok((r.memory_factor(unit.work)?, unit)))
                .collect()
        })
        .await?;
    let mut ready = Vec::with_capacity(units.len());
    for (factor, unit) in units {
        let unit = Arc::new(unit);
        let model = computes_with(ctx, &unit).await?;
        let plan_mib = match &known {
            None => None,
            Some(known) => match known.get(&key(&unit)) {
                Some(plan) => *plan,
                // What is wrong with a unit is told when it is prepared; here it is only not known.
                None => plan_mib(ctx, &unit, model.as_ref()).await.unwrap_or(None),
            },
        };
        let models = model.into_iter().map(|model| model.sha256).collect();
        ready.push(Ready { unit, models, plan_mib, factor });
    }
    Ok(ready)
}

/// What a unit needs by the memory plan.
async fn plan_mib(
    ctx: &StageContext,
    unit: &Arc<UnitRow>,
    model: Option<&ModelRef>,
) -> Result<Option<u64>, StageError> {
    let folder = match model {
        Some(model) => Some(model.path.clone()),
        None => trained(ctx, unit).await?,
    };
    let Some(folder) = folder else { return Ok(None) };
    let config = ctx.config_of(unit).await?;
    let unit = Arc::clone(unit);
    let looked = actix_rt::task::spawn_blocking(move || needs::on_a_gpu(&folder, &config, &unit));
    Ok(looked.await.unwrap_or(None))
}

/// The model that a unit computes with; none of a training, which loads its own.
async fn computes_with(ctx: &StageContext, unit: &UnitRow) -> Result<Option<ModelRef>, StageError> {
    Ok(match unit.work {
        WorkKind::Generate => Some(ctx.model(ctx.policy_of(unit).await?).await?),
        WorkKind::Logprobs | WorkKind::LogprobsPairs => Some(ctx.reference_of(unit).await?),
        WorkKind::Score | WorkKind::Prefer => match unit.scorer {
            Some(scorer) => Some(score::scorer(ctx, scorer).await?),
            None => None,
        },
        WorkKind::Probe
        | WorkKind::Render
        | WorkKind::Average
        | WorkKind::RenderPairs
        | WorkKind::TrainDpo
        | WorkKind::TrainSft
        | WorkKind::TrainReward
        | WorkKind::TrainPreference
        | WorkKind::Pair
        | WorkKind::Checkpoint
        | WorkKind::Summarise => None,
    })
}

/// The folder of the model that a unit trains; none where it trains none.
async fn trained(ctx: &StageContext, unit: &UnitRow) -> Result<Option<PathBuf>, StageError> {
    Ok(match unit.work {
        WorkKind::TrainDpo => {
            let (run, number) = (unit.run, unit.iteration.unwrap_or_default());
            let iteration = ctx.store.read(move |r| r.iteration(run, number)).await?;
            Some(ctx.model(iteration.policy_in).await?.path)
        }
        WorkKind::TrainSft | WorkKind::TrainReward | WorkKind::TrainPreference => {
            let base = train::job_of(ctx, unit).await?.base;
            base.map(|base| ctx.places.resolve(&base.path))
        }
        _ => None,
    })
}
