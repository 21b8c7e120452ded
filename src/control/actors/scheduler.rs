//! The scheduler actor: it carries out the pure plan of `crate::schedule`.
//!
//! In: ready units (asked of the store), leases that open, end and fall short of work, devices. Out:
//! units to workers, leases to the supervisor. May not enter: decisions (`schedule::plan`), rows.

mod devices;
mod messages;
mod timeline;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use actix::prelude::*;
use rlhfd_domain::{UnitId, WorkKind};
use rlhfd_store::UnitRow;

use super::iteration::{IterationActor, Nudge};
use super::stage::StageContext;
use super::supervisor::{OpenLease, SupervisorActor};
use super::worker::{Drain, Hand, LoseDevice, WorkerActor};
use crate::gpu::{self, GpuProbe};
use crate::handles::with_causes;
use crate::live::LiveBoard;
use crate::schedule::{self, DeviceState, LeaseState, Placement, Priority, ReadyUnit};
use devices::Tracked;

pub use devices::{Heard, uses_cuda};
pub use messages::{
    Consider, Holds, LeaseEnded, LeaseOpened, LeaseOpening, Meet, Stop, UnitEnded, Withdraw,
};

/// Ready units looked at in one plan.
const READY_MAX: u32 = 64;
/// Messages that may wait.
const MAILBOX: usize = 256;

/// The actor.
pub struct SchedulerActor {
    ctx: StageContext,
    live: LiveBoard,
    probe: Arc<dyn GpuProbe>,
    supervisor: Option<Addr<SupervisorActor>>,
    iteration: Option<Addr<IterationActor>>,
    devices: Vec<Tracked>,
    /// What the configuration named at the last look.
    wanted: Option<Vec<String>>,
    /// What the driver said of itself at the last look.
    driver: Option<String>,
    leases: BTreeMap<u64, Lease>,
    passed: BTreeMap<UnitId, u32>,
    looking: bool,
    again: bool,
    stopping: bool,
}

struct Lease {
    devices: Vec<String>,
    worker: Option<Addr<WorkerActor>>,
    state: LeaseState,
    /// Unit, and whether nothing may queue behind it.
    queue: VecDeque<(UnitId, bool)>,
    loaded: Vec<String>,
    /// Whether it was killed because a device is lost.
    killed: bool,
    /// What its worker holds of its devices' memory, where it says so.
    device_mib: Option<u64>,
}

impl SchedulerActor {
    /// Starts it on this thread.
    #[must_use]
    pub fn start_with(ctx: StageContext, live: LiveBoard, probe: Arc<dyn GpuProbe>) -> Addr<Self> {
        Self::create(move |own| {
            own.set_mailbox_capacity(MAILBOX);
            Self {
                ctx,
                live,
                probe,
                supervisor: None,
                iteration: None,
                devices: Vec::new(),
                wanted: None,
                driver: None,
                leases: BTreeMap::new(),
                passed: BTreeMap::new(),
                looking: false,
                again: false,
                stopping: false,
            }
        })
    }

    fn nudge(&self) {
        if let Some(iteration) = &self.iteration {
            // A full mailbox holds a nudge already.
            let _ = iteration.try_send(Nudge);
        }
    }

    /// Asks for ready units, then plans. One question at a time: what happens meanwhile asks again.
    fn consider(&mut self, own: &mut Context<Self>) {
        if self.stopping || self.devices.is_empty() || !self.ctx.health.is_well() {
            return;
        }
        if self.looking {
            self.again = true;
            return;
        }
        self.looking = true;
        let ctx = self.ctx.clone();
        let asked = async move { ready(&ctx).await };
        own.spawn(asked.into_actor(self).map(|ready, scheduler, own| {
            scheduler.looking = false;
            match ready {
                Ok(ready) => scheduler.carry_out(ready),
                Err(error) => {
                    tracing::warn!("ready units cannot be asked for: {}", with_causes(&error))
                }
            }
            if std::mem::take(&mut scheduler.again) {
                scheduler.consider(own);
            }
        }));
    }

    fn carry_out(&mut self, ready: Vec<(Arc<UnitRow>, Vec<String>)>) {
        let held: Vec<UnitId> =
            self.leases.values().flat_map(|lease| lease.queue.iter().map(|(id, _)| *id)).collect();
        let ready: Vec<_> =
            ready.into_iter().filter(|(unit, _)| !held.contains(&unit.id)).collect();
        let units: Vec<ReadyUnit> = ready
            .iter()
            .enumerate()
            .map(|(place, (unit, models))| self.as_ready(place, unit, models))
            .collect();
        let placements = schedule::plan(&self.device_states(), &self.lease_states(), &units);
        for placement in placements {
            match placement {
                Placement::Hand { unit, lease } => {
                    let found = ready.iter().find(|(row, _)| row.id.get() == unit);
                    if let Some((row, models)) = found {
                        self.hand(lease.cast_unsigned(), row, models);
                    }
                }
                Placement::Open { devices } => self.open(devices, units.len()),
                Placement::Drain { lease } => self.drain(lease.cast_unsigned()),
                Placement::End { lease } => self.end(lease.cast_unsigned()),
            }
        }
        let held: Vec<UnitId> =
            self.leases.values().flat_map(|lease| lease.queue.iter().map(|(id, _)| *id)).collect();
        let waiting: Vec<UnitId> =
            ready.iter().map(|(unit, _)| unit.id).filter(|id| !held.contains(id)).collect();
        self.passed.retain(|id, _| waiting.contains(id));
        for id in waiting {
            *self.passed.entry(id).or_default() += 1;
        }
    }

    fn as_ready(&self, place: usize, unit: &UnitRow, models: &[String]) -> ReadyUnit {
        ReadyUnit {
            id: unit.id.get(),
            models: models.to_vec(),
            // The store's order is the flow's; its place says all.
            priority: Priority {
                class: 0,
                ordinal: i64::try_from(place).unwrap_or(i64::MAX),
                unit: unit.id.get(),
            },
            memory_mib: None,
            alone: unit.work.trains(),
            passed: self.passed.get(&unit.id).copied().unwrap_or(0),
        }
    }

    fn device_states(&self) -> Vec<DeviceState> {
        let reserve = self.ctx.config.borrow().devices.reserve_mib;
        self.devices
            .iter()
            .map(|device| DeviceState {
                uuid: device.fact.uuid.clone(),
                memory_free_mib: device.memory_for_us_mib(reserve),
                duty: device.standing.duty(),
            })
            .collect()
    }

    fn lease_states(&self) -> Vec<schedule::Lease> {
        self.leases
            .iter()
            .map(|(number, lease)| schedule::Lease {
                id: number.cast_signed(),
                devices: lease.devices.clone(),
                loaded: lease.loaded.clone(),
                queued: lease.queue.len(),
                alone: lease.queue.iter().any(|(_, alone)| *alone),
                state: lease.state,
            })
            .collect()
    }

    fn hand(&mut self, number: u64, unit: &Arc<UnitRow>, models: &[String]) {
        let Some(lease) = self.leases.get_mut(&number) else { return };
        let Some(worker) = &lease.worker else { return };
        // A refused unit is still open: the next plan hands it.
        if worker.try_send(Hand(Arc::clone(unit))).is_ok() {
            lease.queue.push_back((unit.id, unit.work.trains()));
            if !models.is_empty() || unit.work.trains() {
                lease.loaded = models.to_vec();
            }
        }
    }

    fn open(&mut self, devices: Vec<String>, waiting: usize) {
        let Some(supervisor) = &self.supervisor else { return };
        for uuid in &devices {
            self.tell_lease(uuid, format!("{waiting} units wait"), "open a lease", "it is free");
        }
        let cuda = devices.iter().any(|uuid| uuid != gpu::CPU);
        // The supervisor answers by `LeaseOpening`; until then the devices are held.
        let _ = supervisor.try_send(OpenLease { devices, cuda });
    }

    /// Its device is lost: nothing that it says is worth waiting for.
    fn end(&mut self, number: u64) {
        let Some(lease) = self.leases.get_mut(&number) else { return };
        lease.state = LeaseState::Draining;
        // Killed once: a process that hangs in the driver takes its time.
        if let (Some(worker), false) = (&lease.worker, std::mem::replace(&mut lease.killed, true)) {
            let devices = lease.devices.join(", ");
            super::tell(worker, LoseDevice(format!("its device {devices} is lost")));
        }
    }

    fn drain(&mut self, number: u64) {
        if let Some(lease) = self.leases.get_mut(&number)
            && lease.state != LeaseState::Draining
        {
            lease.state = LeaseState::Draining;
            if let Some(worker) = &lease.worker {
                super::tell(worker, Drain);
            }
        }
    }
}

/// Ready units that need a worker, with the sums of their models. None while the run is paused.
async fn ready(
    ctx: &StageContext,
) -> Result<Vec<(Arc<UnitRow>, Vec<String>)>, super::stage::StageError> {
    let units = ctx
        .store
        .read(|r| {
            let Some(run) = r.active_run()?.filter(|run| run.paused.is_none()) else {
                return Ok(Vec::new());
            };
            r.ready_units(run.id, READY_MAX)
        })
        .await?;
    let mut ready = Vec::with_capacity(units.len());
    for unit in units {
        if !unit.work.by_control() {
            let models = models(ctx, &unit).await?;
            ready.push((Arc::new(unit), models));
        }
    }
    Ok(ready)
}

/// Sums of the models that a unit computes with.
async fn models(
    ctx: &StageContext,
    unit: &UnitRow,
) -> Result<Vec<String>, super::stage::StageError> {
    match unit.work {
        WorkKind::Generate => {
            let policy = ctx.policy_of(unit).await?;
            Ok(vec![ctx.model(policy).await?.sha256])
        }
        WorkKind::Logprobs | WorkKind::LogprobsPairs => {
            Ok(vec![ctx.reference_of(unit).await?.sha256])
        }
        WorkKind::Score | WorkKind::Prefer => match unit.scorer {
            Some(scorer) => Ok(vec![crate::stages::score::scorer(ctx, scorer).await?.sha256]),
            None => Ok(Vec::new()),
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
        | WorkKind::Summarise => Ok(Vec::new()),
    }
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.keep_looking(ctx);
        let mut health = self.ctx.health.watch();
        let own = ctx.address();
        actix_rt::spawn(async move {
            while health.changed().await.is_ok() {
                if health.borrow().is_none() && own.send(Consider).await.is_err() {
                    return;
                }
            }
        });
    }
}
