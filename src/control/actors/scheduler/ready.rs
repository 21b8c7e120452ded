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
use crate::schedule::{self, DeviceState, ReadyUnit, Spread};
use crate::stages::needs::Planned;
use crate::stages::{needs, probe, score, train};

/// A unit and how many items it computes together.
type Key = (UnitId, Option<u64>);
/// What the memory plan says of units; none where it does not know.
pub(super) type Needs = BTreeMap<Key, Option<Planned>>;

/// A unit whose inputs exist.
pub(super) struct Ready {
    pub(super) unit: Arc<UnitRow>,
    /// Sums of the models that it computes with.
    pub(super) models: Vec<String>,
    /// What it needs by the memory plan.
    pub(super) plan: Option<Planned>,
    /// By what that is corrected.
    factor: f64,
}

impl Ready {
    pub(super) fn key(&self) -> Key {
        key(&self.unit)
    }

    /// What the plan says of a lease with these rooms, before any correction.
    pub(super) fn plan_mib(&self, rooms_mib: &[u64]) -> Option<u64> {
        self.plan.map(|plan| match rooms_mib {
            [] => plan.whole_mib,
            several => plan.demand.planned_mib(several).iter().sum(),
        })
    }

    /// What it needs, corrected by what others of its work measured. Where the plan says that it fits the
    /// roomiest device, no measurement says that it does not: they were made there.
    pub(super) fn needs_mib(&self, roomiest_mib: u64) -> Option<u64> {
        let corrected = self.corrected_mib()?;
        let fits = self.plan.is_some_and(|plan| plan.whole_mib <= roomiest_mib);
        Some(if fits { corrected.min(roomiest_mib) } else { corrected })
    }

    fn corrected_mib(&self) -> Option<u64> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "MiB are far below 2^52, and the factor is above 0"
        )]
        self.plan.map(|plan| (plan.whole_mib as f64 * self.factor).ceil() as u64)
    }

    /// What it needs of several devices. As with one: where the plan says that `devices` could hold it, no
    /// measurement says that they could not.
    pub(super) fn spread(&self, unit: &ReadyUnit, devices: &[DeviceState]) -> Option<Spread> {
        let demand = self.plan?.demand;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the factor is above 0, and at most 4"
        )]
        let factor = (self.factor * 1000.0).ceil() as u64;
        let by = |per_mille| Spread { demand, per_mille };
        let fits = |spread| {
            schedule::ever_fits(devices, &ReadyUnit { spread: Some(spread), ..unit.clone() })
        };
        Some(if fits(by(factor)) || !fits(by(1000)) { by(factor) } else { by(1000) })
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
        let plan = match &known {
            None => None,
            Some(known) => match known.get(&key(&unit)) {
                Some(plan) => *plan,
                // What is wrong with a unit is told when it is prepared; here it is only not known.
                None => planned(ctx, &unit, model.as_ref()).await.unwrap_or(None),
            },
        };
        let models = model.into_iter().map(|model| model.sha256).collect();
        ready.push(Ready { unit, models, plan, factor });
    }
    Ok(ready)
}

/// What a unit needs by the memory plan.
async fn planned(
    ctx: &StageContext,
    unit: &Arc<UnitRow>,
    model: Option<&ModelRef>,
) -> Result<Option<Planned>, StageError> {
    if unit.work == WorkKind::Probe {
        let work = probe::prepare(ctx, unit).await?.work;
        let looked = actix_rt::task::spawn_blocking(move || needs::of_a_probe(&work));
        return Ok(looked.await.unwrap_or(None));
    }
    let folder = match model {
        Some(model) => Some(model.path.clone()),
        None => trained(ctx, unit).await?,
    };
    let Some(folder) = folder else { return Ok(None) };
    let config = ctx.config_of(unit).await?;
    let unit = Arc::clone(unit);
    let looked = actix_rt::task::spawn_blocking(move || needs::on_gpus(&folder, &config, &unit));
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
