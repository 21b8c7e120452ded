//! What a worker's actor is told: units to hand over, units to drop, to leave.
//!
//! In: messages of the scheduler and of the teller. Out: words to the teller and the link. May not
//! enter: frames that come.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use rlhfd_domain::{AttemptId, Cause};
use rlhfd_protocol::frame;
use rlhfd_protocol::worker::ToWorker;
use rlhfd_store::UnitRow;

use super::{InHand, WorkerActor};
use crate::actors::scheduler::UnitEnded;
use crate::actors::stage::ItemKeys;
use crate::actors::teller::Tell;
use crate::live::WorkerState;

/// A unit for this worker.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Hand {
    /// The unit.
    pub unit: Arc<UnitRow>,
    /// What the memory plan says that it needs of the device's, before any correction.
    pub plan_mib: Option<u64>,
}

impl Handler<Hand> for WorkerActor {
    type Result = ();

    fn handle(&mut self, hand: Hand, _: &mut Self::Context) {
        let id = hand.unit.id;
        if self.tell.try_send(Tell::Unit(hand.unit, hand.plan_mib)).is_err() {
            // Never more than the queue's depth is handed; were it so, the unit is still open.
            crate::actors::tell(&self.ctx.scheduler, UnitEnded { number: self.number, unit: id });
        }
    }
}

/// The teller is about to send a unit.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Handed {
    /// The unit.
    pub unit: Arc<UnitRow>,
    /// Its attempt.
    pub attempt: AttemptId,
    /// What its items stand for.
    pub keys: ItemKeys,
    /// How many.
    pub items: u32,
    /// Whether models are loaded first.
    pub loads: bool,
    /// What the memory plan says that it needs of the device's, before any correction.
    pub plan_mib: Option<u64>,
}

impl Handler<Handed> for WorkerActor {
    type Result = ();

    fn handle(&mut self, handed: Handed, _: &mut Self::Context) {
        let Handed { unit, attempt, keys, items, loads, plan_mib } = handed;
        self.hands.push_back(InHand {
            unit,
            attempt,
            keys,
            items,
            answers: Vec::new(),
            bytes: 0,
            loads,
            plan_mib,
        });
        if self.hands.len() == 1 {
            self.show_front();
        } else {
            let next = self.hands.get(1).map(|hand| hand.unit.key.clone());
            self.ctx.live.worker(self.number, |worker| worker.next = next);
        }
    }
}

/// Leave: what waits behind the unit that runs is given back, and so is a training, which saves its state
/// where there is time for it. Another unit is finished first.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain {
    /// Another unit stops at its next micro-batch too: the daemon stops, and the next one does it anew.
    pub at_once: bool,
}

/// So long a worker that is to leave at once, and that has nothing to save, is waited for.
const AT_ONCE_WAIT: Duration = Duration::from_secs(5);

impl Handler<Drain> for WorkerActor {
    type Result = ();

    fn handle(&mut self, Drain { at_once }: Drain, ctx: &mut Self::Context) {
        tracing::info!(pid = self.pid, at_once, "a worker is asked to leave");
        self.leaving = true;
        self.show(WorkerState::Ending);
        let within = Duration::from_secs(self.ctx.stage.config.borrow().scheduler.stop_timeout_s);
        for waiting in self.hands.iter().skip(1) {
            // Where this is not heard, the unit is finished as well.
            let _ = self.tell.try_send(Tell::Cancel(waiting.attempt));
        }
        if self.tell.try_send(Tell::Drain { at_once, within }).is_err() {
            self.kill(Cause::Restart, "it does not listen".into());
        }
        let trains = self.hands.iter().any(|hand| hand.unit.work.trains());
        let deadline = match trains {
            true => Some(within),
            false if at_once => Some(within.min(AT_ONCE_WAIT)),
            // What it finishes has deadlines of its own.
            false => self.hands.is_empty().then_some(within),
        };
        if let Some(deadline) = deadline {
            ctx.run_later(deadline, |worker, _| {
                worker.kill(Cause::Restart, "it did not leave in time".into());
            });
        }
    }
}

/// Leave now: the daemon stops and will not wait any longer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Abandon;

impl Handler<Abandon> for WorkerActor {
    type Result = ();

    fn handle(&mut self, _: Abandon, _: &mut Self::Context) {
        self.kill(Cause::Restart, "the daemon stops".into());
    }
}

/// The device is lost: whatever runs there is to be done elsewhere.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LoseDevice(pub String);

impl Handler<LoseDevice> for WorkerActor {
    type Result = ();

    fn handle(&mut self, LoseDevice(why): LoseDevice, _: &mut Self::Context) {
        self.kill(Cause::DeviceLost, why);
    }
}

/// Stop this unit at the next micro-batch: nobody wants it any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CancelUnit(pub rlhfd_domain::UnitId);

impl Handler<CancelUnit> for WorkerActor {
    type Result = ();

    fn handle(&mut self, CancelUnit(unit): CancelUnit, _: &mut Self::Context) {
        let attempts = self.hands.iter().filter(|hand| hand.unit.id == unit);
        for hand in attempts {
            let attempt = hand.attempt.get().cast_unsigned();
            if let Ok(bytes) = frame::encode(&ToWorker::Cancel { attempt }, &[]) {
                // Where the worker does not listen now, the unit ends by itself and its rows are
                // refused by the store.
                let _ = self.link.out.try_send(bytes);
            }
        }
    }
}
