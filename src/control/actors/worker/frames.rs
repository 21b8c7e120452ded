//! What a worker says: each frame changes what is in its actor's hands, or is a breach of the
//! protocol.
//!
//! In: frames. Out: answers gathered, clocks moved, units let go; or a word about what is wrong. May
//! not enter: rows.

use std::time::Instant;

use actix::prelude::*;
use rlhfd_domain::Cause;
use rlhfd_protocol::WORKER_PROTOCOL;
use rlhfd_protocol::frame::Frame;
use rlhfd_protocol::worker::{FailureKind, FromWorker, ItemResult};
use rlhfd_store::WentWrong;

use super::{InHand, WorkerActor};
use crate::actors::attempts::Ending;
use crate::actors::scheduler::{Holds, LeaseOpened};
use crate::actors::stage::Answer;
use crate::actors::teller::Tell;
use crate::live::WorkerState;

/// What is held of a unit's answers at most; with a frame read, one sent and one waiting the
/// daemon stays below 8 MiB a worker.
const ANSWERS_BYTES_MAX: usize = 5 << 20;

impl WorkerActor {
    /// A frame that ends no unit. Says what is wrong with it.
    pub(super) fn take(&mut self, frame: Frame<FromWorker>) -> Result<(), String> {
        let now = Instant::now();
        let in_hand = !self.hands.is_empty();
        match frame.message {
            FromWorker::Loaded { .. } => {
                // Loads come in the units' order: it is the first that still waits for one.
                if let Some(hand) = self.hands.iter_mut().find(|hand| hand.loads) {
                    hand.loads = false;
                }
                self.watch.loaded(in_hand, now);
                self.show(if in_hand { WorkerState::Running } else { WorkerState::Idle });
                Ok(())
            }
            FromWorker::Heartbeat { attempt, progress, resident_mib, device_mib, done } => {
                self.watch.progressed(progress, now);
                self.tell_held(device_mib);
                self.ctx.live.worker(self.number, |worker| {
                    worker.resident_mib = resident_mib;
                    if let (Some(unit), Some(done), Some(_)) = (&mut worker.unit, done, attempt) {
                        unit.tokens = done.tokens;
                    }
                });
                Ok(())
            }
            FromWorker::Result { attempt, index, result } => {
                let Some(hand) = self.front(attempt) else {
                    return Err(format!("an answer to attempt {attempt}, which does not run"));
                };
                if index >= hand.items {
                    return Err(format!("an answer to item {index} of {}", hand.items));
                }
                hand.bytes += frame.payload.len() + answer_bytes(&result);
                if hand.bytes > ANSWERS_BYTES_MAX {
                    return Err(format!("more than {ANSWERS_BYTES_MAX} bytes of answers"));
                }
                hand.answers.push(Answer { index, result, payload: frame.payload });
                self.ctx.live.worker(self.number, |worker| {
                    if let Some(unit) = &mut worker.unit {
                        unit.items_done = unit.items_done.max(index + 1);
                    }
                });
                Ok(())
            }
            FromWorker::Step { attempt, step, steps, loss } => {
                if self.front(attempt).is_none() {
                    return Err(format!("a step of attempt {attempt}, which does not run"));
                }
                self.ctx.live.worker(self.number, |worker| {
                    if let Some(unit) = &mut worker.unit {
                        unit.step = Some((step, steps, loss));
                    }
                });
                Ok(())
            }
            FromWorker::Hello { .. } => Err("a second hello".into()),
            FromWorker::UnitDone { .. } | FromWorker::UnitFailed { .. } => Ok(()),
        }
    }

    /// Tells what the worker holds of its GPUs, where that changed.
    fn tell_held(&mut self, device_mib: Vec<u64>) {
        if device_mib.is_empty() || device_mib == self.held_mib {
            return;
        }
        let holds = Holds { number: self.number, device_mib: device_mib.clone() };
        // A full mailbox is tried again with the next heartbeat.
        if self.ctx.scheduler.try_send(holds).is_ok() {
            self.held_mib = device_mib;
        }
    }

    pub(super) fn hello(&mut self, frame: &FromWorker, own: &Context<Self>) -> Result<(), String> {
        let FromWorker::Hello { protocol, version, libtorch, device, .. } = frame else {
            return Err("something before its hello".into());
        };
        if *protocol != WORKER_PROTOCOL {
            return Err(format!(
                "it speaks protocol {protocol} and the daemon {WORKER_PROTOCOL}; install both of one version"
            ));
        }
        tracing::info!(pid = self.pid, version, libtorch, device, "a worker is ready");
        self.show(WorkerState::Idle);
        let worker = format!("{version} libtorch {libtorch} {device}");
        let opened = LeaseOpened { number: self.number, worker: own.address() };
        if self.tell.try_send(Tell::Name(worker)).is_err()
            || self.ctx.scheduler.try_send(opened).is_err()
        {
            return Err("the daemon is too busy to take it".into());
        }
        Ok(())
    }

    /// Takes the unit of `attempt` out of hand: it must be the one in front.
    fn let_go(&mut self, attempt: u64) -> Result<InHand, String> {
        if self.front(attempt).is_none() {
            return Err(format!("the end of attempt {attempt}, which does not run"));
        }
        let hand = self.hands.pop_front().ok_or("nothing is in hand")?;
        self.show_front();
        Ok(hand)
    }

    /// The future of a frame that ends a unit; others end at once.
    pub(super) fn ending(&mut self, frame: &FromWorker) -> Result<Option<Ending>, String> {
        match frame {
            FromWorker::UnitDone { attempt, summary } => {
                let hand = self.let_go(*attempt)?;
                Ok(Some(Ending::Done {
                    unit: hand.unit,
                    attempt: hand.attempt,
                    keys: hand.keys,
                    answers: hand.answers,
                    plan_mib: hand.plan_mib,
                    summary: Box::new(summary.clone()),
                }))
            }
            FromWorker::UnitFailed { attempt, kind, message } => {
                let hand = self.let_go(*attempt)?;
                self.doomed |= *kind == FailureKind::Crashed;
                let (unit, attempt, message) = (hand.unit, hand.attempt, message.clone());
                Ok(Some(match kind {
                    FailureKind::OutOfMemory => {
                        Ending::died(unit, attempt, Cause::OutOfMemory, message)
                    }
                    FailureKind::Crashed => Ending::died(unit, attempt, Cause::Crashed, message),
                    FailureKind::Diverged(divergence) => {
                        let wrong = WentWrong { divergence: (*divergence).into(), message };
                        Ending::Diverged { unit, attempt, wrong }
                    }
                    FailureKind::Input => Ending::Refused { unit, attempt, message },
                    FailureKind::Unsound => Ending::Unsound { unit, attempt, message },
                    FailureKind::Disk => Ending::Disk { unit, attempt, message },
                    FailureKind::Cancelled => Ending::Returned { unit, attempt },
                }))
            }
            _ => Ok(None),
        }
    }
}

fn answer_bytes(result: &ItemResult) -> usize {
    std::mem::size_of::<Answer>()
        + match result {
            ItemResult::Response { text, .. } => text.len(),
            ItemResult::Refused { message, .. } | ItemResult::NotCompared { message, .. } => {
                message.len()
            }
            ItemResult::Rendered { .. }
            | ItemResult::RenderedPair { .. }
            | ItemResult::Score { .. }
            | ItemResult::Preference { .. }
            | ItemResult::Logprobs { .. } => 0,
        }
}
