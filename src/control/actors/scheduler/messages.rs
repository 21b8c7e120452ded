//! What the scheduler is told: leases that open and end, units that end, what is not wanted any more.
//!
//! In: messages of workers, supervisor and orderer. Out: the scheduler's own lists, and another look.
//! May not enter: the plan.

use std::collections::VecDeque;

use actix::prelude::*;
use rlhfd_domain::UnitId;

use super::{Lease, SchedulerActor};
use crate::actors::iteration::IterationActor;
use crate::actors::supervisor::SupervisorActor;
use crate::actors::worker::{Abandon, CancelUnit, Drain, WorkerActor};
use crate::schedule::LeaseState;
use crate::watchdog::Alive;
use crate::workers::death::Death;

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
    /// Over several: the room of each.
    pub rooms_mib: Vec<u64>,
    /// What it holds of the memory of each; none: its worker will say.
    pub device_mib: Option<Vec<u64>>,
}

impl Handler<LeaseOpening> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, opening: LeaseOpening, _: &mut Self::Context) {
        let several = opening.devices.len() > 1;
        for uuid in &opening.devices {
            let others = opening.devices.iter().filter(|other| *other != uuid);
            let others: Vec<&str> = others.map(String::as_str).collect();
            let (seen, reason) = match several {
                false => ("a unit waits".to_owned(), "it is free".to_owned()),
                true => (
                    "a unit waits that no device holds alone".to_owned(),
                    format!("together with {}", others.join(", ")),
                ),
            };
            self.tell_lease(uuid, seen, "open a lease", &reason);
        }
        let lease = Lease {
            devices: opening.devices,
            rooms_mib: opening.rooms_mib,
            worker: None,
            state: LeaseState::Opening,
            queue: VecDeque::new(),
            loaded: Vec::new(),
            killed: false,
            device_mib: opening.device_mib,
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
            let _ =
                supervisor.try_send(crate::actors::supervisor::Greeted { number: opened.number });
        }
        if let Some(lease) = self.leases.get_mut(&opened.number) {
            if self.stopping {
                lease.state = LeaseState::Draining;
            }
            match lease.state {
                LeaseState::Opening | LeaseState::Open => lease.state = LeaseState::Open,
                // Its device was to be left, or the daemon stops, before it said a word.
                LeaseState::Draining => {
                    crate::actors::tell(&opened.worker, Drain { at_once: self.stopping });
                }
            }
            lease.worker = Some(opened.worker);
        }
        self.consider(ctx);
    }
}

/// What a worker holds of its devices' memory; said where it changes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Holds {
    /// The worker's number.
    pub number: u64,
    /// How much of each.
    pub device_mib: Vec<u64>,
}

impl Handler<Holds> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, holds: Holds, _: &mut Self::Context) {
        if let Some(lease) = self.leases.get_mut(&holds.number) {
            lease.device_mib = Some(holds.device_mib);
        }
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
        if let Some(lease) = self.leases.remove(&ended.number) {
            for uuid in &lease.devices {
                let seen = format!("the worker ended by {}", ended.death);
                self.tell_lease(uuid, seen, "close the lease", "its process is gone");
            }
        }
        if let Some(supervisor) = &self.supervisor {
            crate::actors::tell(
                supervisor,
                crate::actors::supervisor::Died { number: ended.number, death: ended.death },
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
                    crate::actors::tell(worker, CancelUnit(*unit));
                }
            }
        }
    }
}

/// The daemon stops: nothing is handed out any more, every worker leaves.
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
                    crate::actors::tell(worker, Abandon);
                } else if first {
                    crate::actors::tell(worker, Drain { at_once: true });
                }
            }
        }
        self.leases.values().filter(|lease| lease.worker.is_some()).count()
    }
}

impl Handler<Alive> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Alive, _: &mut Self::Context) {}
}
