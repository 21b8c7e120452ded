//! The scheduler actor: it carries out the pure plan of `crate::schedule`.
//!
//! In: ready units (asked of the store), leases that open, end and fall short of work, devices. Out:
//! units to workers, leases to the supervisor. May not enter: decisions (`schedule::plan`), rows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use rlhfd_config::{CheckedConfig, UseDevices};
use rlhfd_domain::device::{DeviceKind, DeviceSeen, Mib};
use rlhfd_domain::{UnitId, WorkKind};
use rlhfd_store::UnitRow;

use super::iteration::{IterationActor, Nudge};
use super::stage::StageContext;
use super::supervisor::{OpenLease, SupervisorActor};
use super::worker::{Abandon, CancelUnit, Drain, Hand, WorkerActor};
use crate::gpu::{self, DeviceFact, GpuProbe};
use crate::handles::{now_ms, with_causes};
use crate::live::LiveBoard;
use crate::schedule::{self, DeviceState, LeaseState, Placement, Priority, ReadyUnit};
use crate::workers::death::Death;

/// Ready units looked at in one plan.
const READY_MAX: u32 = 64;
/// Messages that may wait.
const MAILBOX: usize = 256;
/// Between two looks at the devices.
const LOOK: Duration = Duration::from_secs(5);

/// The actor.
pub struct SchedulerActor {
    ctx: StageContext,
    live: LiveBoard,
    probe: Arc<dyn GpuProbe>,
    supervisor: Option<Addr<SupervisorActor>>,
    iteration: Option<Addr<IterationActor>>,
    devices: Vec<DeviceFact>,
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
                Placement::Open { devices } => self.open(devices),
                Placement::Drain { lease } => self.drain(lease.cast_unsigned()),
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
        self.devices
            .iter()
            .map(|device| DeviceState {
                uuid: device.uuid.clone(),
                memory_free_mib: None,
                usable: device.fault.is_none(),
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

    fn open(&mut self, devices: Vec<String>) {
        let Some(supervisor) = &self.supervisor else { return };
        let cuda = devices.iter().any(|uuid| uuid != gpu::CPU);
        // The supervisor answers by `LeaseOpening`; until then the devices are held.
        let _ = supervisor.try_send(OpenLease { devices, cuda });
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

    fn look_at_devices(&mut self, own: &mut Context<Self>) {
        let probe = Arc::clone(&self.probe);
        let looked = actix_rt::task::spawn_blocking(move || probe.look());
        own.spawn(looked.into_actor(self).map(|looked, scheduler, own| {
            if let Ok(inventory) = looked {
                scheduler.take_inventory(&inventory, own);
            }
        }));
    }

    fn take_inventory(&mut self, inventory: &gpu::Inventory, own: &mut Context<Self>) {
        let wanted = match &self.ctx.config.borrow().devices.use_devices {
            UseDevices::Auto => Vec::new(),
            UseDevices::Named(names) => names.clone(),
        };
        let devices = match gpu::choose(&wanted, inventory) {
            Ok(devices) => devices,
            Err(missing) => {
                let sentence = format!(
                    "[devices] use names {}, which is not there; put it back, or change the \
                     configuration",
                    missing.join(", ")
                );
                self.live.change(|live| {
                    live.faults.insert("devices".into(), sentence);
                    live.devices.clear();
                });
                self.devices.clear();
                return;
            }
        };
        let changed = uuids(&devices) != uuids(&self.devices);
        self.devices = devices;
        let shown = self.devices.clone();
        self.live.change(|live| {
            live.faults.remove("devices");
            live.devices = shown;
        });
        if changed {
            self.record();
            self.consider(own);
        }
    }

    fn record(&self) {
        let seen: Vec<DeviceSeen> = self
            .devices
            .iter()
            .map(|device| DeviceSeen {
                uuid: device.uuid.clone(),
                kind: if device.is_cuda() { DeviceKind::Cuda } else { DeviceKind::Cpu },
                name: device.name.clone(),
                memory: device.memory_mib.map(Mib),
            })
            .collect();
        let ctx = self.ctx.clone();
        actix_rt::spawn(async move {
            let recorded = ctx.write_patiently(move |s| s.record_devices(&seen, now_ms())).await;
            if let Err(error) = recorded {
                tracing::warn!("devices are not recorded: {error}");
            }
        });
    }
}

fn uuids(devices: &[DeviceFact]) -> Vec<(&str, bool)> {
    devices.iter().map(|device| (device.uuid.as_str(), device.fault.is_none())).collect()
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
        WorkKind::Logprobs => {
            let run = unit.run;
            let run = ctx.store.read(move |r| r.run(run)).await?;
            Ok(vec![ctx.model(run.reference).await?.sha256])
        }
        WorkKind::Score => match unit.scorer {
            Some(scorer) => Ok(vec![crate::stages::score::scorer(ctx, scorer).await?.sha256]),
            None => Ok(Vec::new()),
        },
        WorkKind::Probe
        | WorkKind::Render
        | WorkKind::TrainDpo
        | WorkKind::TrainReward
        | WorkKind::Pair
        | WorkKind::Checkpoint
        | WorkKind::Summarise => Ok(Vec::new()),
    }
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look_at_devices(ctx);
        ctx.run_interval(LOOK, |scheduler, own| {
            scheduler.look_at_devices(own);
            // A nudge that met a full mailbox is made up for here.
            scheduler.consider(own);
        });
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

/// The others that it speaks to; they are made after it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Meet {
    /// Who starts processes.
    pub supervisor: Addr<SupervisorActor>,
    /// Who is told that something ended.
    pub iteration: Addr<IterationActor>,
}

impl Handler<Meet> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, meet: Meet, _: &mut Self::Context) {
        self.supervisor = Some(meet.supervisor);
        self.iteration = Some(meet.iteration);
    }
}

/// Look whether something can be placed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Consider;

impl Handler<Consider> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Consider, ctx: &mut Self::Context) {
        self.consider(ctx);
    }
}

/// A process was started (or will be, after a back-off): its devices are held.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LeaseOpening {
    /// Its number within this daemon.
    pub number: u64,
    /// UUIDs.
    pub devices: Vec<String>,
}

impl Handler<LeaseOpening> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, opening: LeaseOpening, _: &mut Self::Context) {
        let lease = Lease {
            devices: opening.devices,
            worker: None,
            state: LeaseState::Opening,
            queue: VecDeque::new(),
            loaded: Vec::new(),
        };
        self.leases.insert(opening.number, lease);
    }
}

/// A worker said hello.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LeaseOpened {
    /// Its number.
    pub number: u64,
    /// Where units go.
    pub worker: Addr<WorkerActor>,
}

impl Handler<LeaseOpened> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, opened: LeaseOpened, ctx: &mut Self::Context) {
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.try_send(super::supervisor::Greeted { number: opened.number });
        }
        if let Some(lease) = self.leases.get_mut(&opened.number) {
            lease.worker = Some(opened.worker);
            if lease.state == LeaseState::Opening {
                lease.state = LeaseState::Open;
            }
        }
        self.consider(ctx);
    }
}

/// A unit is out of a worker's hands, in whatever way.
#[derive(Message)]
#[rtype(result = "()")]
pub struct UnitEnded {
    /// The worker's number.
    pub number: u64,
    /// The unit.
    pub unit: UnitId,
}

impl Handler<UnitEnded> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, ended: UnitEnded, ctx: &mut Self::Context) {
        if let Some(lease) = self.leases.get_mut(&ended.number) {
            lease.queue.retain(|(id, _)| *id != ended.unit);
        }
        self.nudge();
        self.consider(ctx);
    }
}

/// A process is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LeaseEnded {
    /// Its number.
    pub number: u64,
    /// How it ended.
    pub death: Death,
}

impl Handler<LeaseEnded> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, ended: LeaseEnded, ctx: &mut Self::Context) {
        self.leases.remove(&ended.number);
        if let Some(supervisor) = &self.supervisor {
            super::tell(
                supervisor,
                super::supervisor::Died { number: ended.number, death: ended.death },
            );
        }
        self.nudge();
        self.consider(ctx);
    }
}

/// These units are not wanted any more: whoever has one stops it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Withdraw(pub Vec<UnitId>);

impl Handler<Withdraw> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, Withdraw(units): Withdraw, _: &mut Self::Context) {
        for lease in self.leases.values() {
            for (unit, _) in lease.queue.iter().filter(|(unit, _)| units.contains(unit)) {
                if let Some(worker) = &lease.worker {
                    super::tell(worker, CancelUnit(*unit));
                }
            }
        }
    }
}

/// The daemon stops: nothing is handed out any more, every worker drains.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Stop {
    /// Do not wait for anything.
    pub now: bool,
}

impl Handler<Stop> for SchedulerActor {
    type Result = usize;

    fn handle(&mut self, stop: Stop, _: &mut Self::Context) -> usize {
        let first = !std::mem::replace(&mut self.stopping, true);
        for lease in self.leases.values() {
            if let Some(worker) = &lease.worker {
                if stop.now {
                    super::tell(worker, Abandon);
                } else if first {
                    super::tell(worker, Drain);
                }
            }
        }
        self.leases.values().filter(|lease| lease.worker.is_some()).count()
    }
}

/// The kind of devices in use, for the sizes of units.
#[must_use]
pub fn uses_cuda(live: &LiveBoard, config: &CheckedConfig) -> bool {
    match &config.devices.use_devices {
        UseDevices::Named(names) => names.iter().any(|name| name != gpu::CPU),
        UseDevices::Auto => live.now().devices.iter().any(DeviceFact::is_cuda),
    }
}
