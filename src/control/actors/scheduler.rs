//! The scheduler actor: it carries out the pure plan of `crate::schedule`.
//!
//! In: ready units (asked of the store), leases that open, end and fall short of work, devices. Out:
//! units to workers, leases to the supervisor. May not enter: decisions (`schedule::plan`), rows.

mod devices;
mod messages;
mod ready;
mod timeline;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use actix::prelude::*;
use rlhfd_domain::UnitId;
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
use ready::{Needs, Ready};

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
    /// While the driver is asked: how many looks were due since.
    unanswered: Option<u32>,
    leases: BTreeMap<u64, Lease>,
    passed: BTreeMap<UnitId, u32>,
    /// What ready units need of a GPU's memory, as far as it was asked.
    needs: Needs,
    looking: bool,
    again: bool,
    stopping: bool,
}

struct Lease {
    /// In the order of a model's blocks.
    devices: Vec<String>,
    /// Over several: the room of each, by which its worker splits models.
    rooms_mib: Vec<u64>,
    worker: Option<Addr<WorkerActor>>,
    state: LeaseState,
    /// Unit, and whether nothing may queue behind it.
    queue: VecDeque<(UnitId, bool)>,
    loaded: Vec<String>,
    /// Whether it was killed because a device is lost.
    killed: bool,
    /// What its worker holds of each device's memory, where it says so.
    device_mib: Option<Vec<u64>>,
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
                unanswered: None,
                leases: BTreeMap::new(),
                passed: BTreeMap::new(),
                needs: Needs::new(),
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
        // On the CPU memory is not planned: its free part is the whole machine's.
        let on_gpus = self.devices.iter().any(|device| device.fact.is_cuda());
        let known = on_gpus.then(|| std::mem::take(&mut self.needs));
        let live = self.live.clone();
        let asked = async move {
            let _step = live.step("the look for units that are ready");
            ready::ready(&ctx, known).await
        };
        own.spawn(asked.into_actor(self).map(|ready, scheduler, own| {
            scheduler.looking = false;
            match ready {
                // Asked before the daemon began to stop: nothing is opened or handed out any more.
                Ok(_) if scheduler.stopping => {}
                Ok(ready) => {
                    let need = |ready: &Ready| (ready.key(), ready.plan);
                    scheduler.needs = ready.iter().map(need).collect();
                    scheduler.carry_out(ready);
                }
                Err(error) => {
                    tracing::warn!("ready units cannot be asked for: {}", with_causes(&error))
                }
            }
            if std::mem::take(&mut scheduler.again) {
                scheduler.consider(own);
            }
        }));
    }

    fn carry_out(&mut self, ready: Vec<Ready>) {
        let held: Vec<UnitId> =
            self.leases.values().flat_map(|lease| lease.queue.iter().map(|(id, _)| *id)).collect();
        let ready: Vec<_> =
            ready.into_iter().filter(|ready| !held.contains(&ready.unit.id)).collect();
        let devices = self.device_states();
        let ready_units = ready.iter().enumerate();
        let units: Vec<ReadyUnit> =
            ready_units.map(|(place, ready)| self.as_ready(place, ready, &devices)).collect();
        self.tell_too_large(&devices, &units, &ready);
        let placements = schedule::plan(&devices, &self.lease_states(), &units);
        for placement in placements {
            self.place(placement, &ready);
        }
        let held: Vec<UnitId> =
            self.leases.values().flat_map(|lease| lease.queue.iter().map(|(id, _)| *id)).collect();
        let waiting: Vec<UnitId> =
            ready.iter().map(|ready| ready.unit.id).filter(|id| !held.contains(id)).collect();
        self.passed.retain(|id, _| waiting.contains(id));
        for id in waiting {
            *self.passed.entry(id).or_default() += 1;
        }
    }

    fn as_ready(&self, place: usize, ready: &Ready, devices: &[DeviceState]) -> ReadyUnit {
        let unit: &UnitRow = &ready.unit;
        let alone = ReadyUnit {
            id: unit.id.get(),
            models: ready.models.clone(),
            // The store's order is the flow's; its place says all.
            priority: Priority {
                class: 0,
                ordinal: i64::try_from(place).unwrap_or(i64::MAX),
                unit: unit.id.get(),
            },
            memory_mib: self.needs_mib(ready),
            spread: None,
            alone: unit.work.trains(),
            passed: self.passed.get(&unit.id).copied().unwrap_or(0),
        };
        ReadyUnit { spread: ready.spread(&alone, devices), ..alone }
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
                rooms_mib: lease.rooms_mib.clone(),
                loaded: lease.loaded.clone(),
                queued: lease.queue.len(),
                alone: lease.queue.iter().any(|(_, alone)| *alone),
                state: lease.state,
            })
            .collect()
    }

    fn hand(&mut self, number: u64, ready: &Ready) {
        let (unit, models) = (&ready.unit, &ready.models);
        let Some(lease) = self.leases.get_mut(&number) else { return };
        let Some(worker) = &lease.worker else { return };
        // A refused unit is still open: the next plan hands it.
        let hand = Hand { unit: Arc::clone(unit), plan_mib: ready.plan_mib(&lease.rooms_mib) };
        if worker.try_send(hand).is_ok() {
            lease.queue.push_back((unit.id, unit.work.trains()));
            if !models.is_empty() || unit.work.trains() {
                lease.loaded.clone_from(models);
            }
        }
    }

    /// Leases on what is gone or to be left, also where nothing can be begun or asked for now.
    fn settle_leases(&mut self) {
        for placement in schedule::plan(&self.device_states(), &self.lease_states(), &[]) {
            self.place(placement, &[]);
        }
    }

    fn place(&mut self, placement: Placement, ready: &[Ready]) {
        match placement {
            Placement::Hand { unit, lease } => {
                if let Some(found) = ready.iter().find(|ready| ready.unit.id.get() == unit) {
                    self.hand(lease.cast_unsigned(), found);
                }
            }
            Placement::Open { devices, rooms_mib } => self.open(devices, rooms_mib),
            Placement::Drain { lease } => self.drain(lease.cast_unsigned()),
            Placement::End { lease } => self.end(lease.cast_unsigned()),
        }
    }

    /// What a unit needs of a device's memory; none where it is not known.
    fn needs_mib(&self, ready: &Ready) -> Option<u64> {
        let reserve = self.ctx.config.borrow().devices.reserve_mib;
        let all = self.devices.iter().filter_map(|device| device.fact.memory_mib);
        ready.needs_mib(all.max().unwrap_or(0).saturating_sub(reserve))
    }

    /// A unit that no device could ever hold, nor several together, waits, and is told.
    fn tell_too_large(&self, devices: &[DeviceState], units: &[ReadyUnit], ready: &[Ready]) {
        let most = devices.iter().map(|device| device.memory_free_mib).max().flatten();
        let unplaceable = units.iter().filter(|unit| !schedule::ever_fits(devices, unit));
        let largest = unplaceable.max_by_key(|unit| unit.memory_mib);
        let too_large = largest.and_then(|unit| {
            let (most, needs) = (most?, unit.memory_mib?);
            let row = ready.iter().find(|ready| ready.unit.id.get() == unit.id)?;
            let several = match devices.len() {
                0 | 1 => "",
                _ => ", and all of them together have no room for its parts",
            };
            Some(format!(
                "unit {} needs about {needs} MiB of a GPU, and at most {most} are free for us{several}: a \
                 larger GPU, or smaller batches (`rlhfd check` tells which)",
                row.unit.key
            ))
        });
        self.live.change(|live| match too_large {
            Some(sentence) => drop(live.faults.insert("memory".into(), sentence)),
            None => drop(live.faults.remove("memory")),
        });
    }

    fn open(&self, devices: Vec<String>, rooms_mib: Vec<u64>) {
        let Some(supervisor) = &self.supervisor else { return };
        let cuda = devices.iter().any(|uuid| uuid != gpu::CPU);
        // The supervisor answers by `LeaseOpening`; until then the devices are held.
        let _ = supervisor.try_send(OpenLease { devices, rooms_mib, cuda });
    }

    /// Its device is lost: nothing that it says is worth waiting for.
    fn end(&mut self, number: u64) {
        let Some(lease) = self.leases.get_mut(&number) else { return };
        lease.state = LeaseState::Draining;
        // Killed once: a process that hangs in the driver takes its time.
        if let Some(worker) = &lease.worker
            && !std::mem::replace(&mut lease.killed, true)
        {
            let devices = lease.devices.join(", ");
            let why = match lease.devices.len() {
                0 | 1 => format!("its device {devices} is lost"),
                _ => format!("one of its devices {devices} is lost"),
            };
            super::tell(worker, LoseDevice(why));
        }
    }

    fn drain(&mut self, number: u64) {
        if let Some(lease) = self.leases.get_mut(&number)
            && lease.state != LeaseState::Draining
        {
            lease.state = LeaseState::Draining;
            if let Some(worker) = &lease.worker {
                super::tell(worker, Drain { at_once: false });
            }
        }
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
