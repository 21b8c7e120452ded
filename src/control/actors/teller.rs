//! What a worker is told, in order: one task a process, between its actor and its socket.
//!
//! In: units, in the order in which they were handed. Out: the attempt's row first, then `load`,
//! `run_unit` and items; and the rows of the lease, which lasts as long as the stage stays the
//! same. May not enter: answers.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use rlhfd_domain::{AttemptId, LeaseId, Stage};
use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Item, ModelRef, ToWorker, Work};
use rlhfd_store::{StoreError, UnitRow};
use tokio::sync::mpsc;

use super::attempts::{self, Ending};
use super::scheduler::UnitEnded;
use super::stage::{Prepare, Prepared, StageError};
use super::worker::{Handed, WorkerActor, WorkerContext};
use crate::handles::{AskError, now_ms, with_causes};

/// What is held of a unit's input at most.
const INPUT_BYTES_MAX: usize = 5 << 20;

/// Something to tell.
pub enum Tell {
    /// What the worker said of itself, for the lease's row.
    Name(String),
    /// The next unit, and what the memory plan says that it needs of the device's, before any correction.
    Unit(Arc<UnitRow>, Option<u64>),
    /// This attempt, which has not begun, is not wanted of this worker.
    Cancel(AttemptId),
    /// Leave; see [`ToWorker::Drain`].
    Drain {
        /// Without finishing the unit that runs.
        at_once: bool,
        /// It is killed after that.
        within: Duration,
    },
    /// The process is gone, for this reason.
    Ended(String),
}

/// The task.
pub struct Teller {
    /// The worker's number within this daemon.
    pub number: u64,
    /// Its process id.
    pub pid: u32,
    /// UUIDs.
    pub devices: Vec<String>,
    /// Store, stages, scheduler.
    pub ctx: WorkerContext,
    /// Who gathers the answers.
    pub worker: Addr<WorkerActor>,
    /// The way to the socket.
    pub out: mpsc::Sender<Vec<u8>>,
}

/// The lease as its row has it.
#[derive(Default)]
struct Lease {
    row: Option<(LeaseId, Stage)>,
    worker: String,
    loaded: Vec<ModelRef>,
}

/// The process does not listen any more: its end is on the way.
struct Deaf;

impl Teller {
    /// Runs until the process ended, or nobody tells anything any more.
    pub async fn run(self, mut told: mpsc::Receiver<Tell>, hello: ToWorker) {
        let mut lease = Lease::default();
        let mut deaf = self.say(&hello, &[]).await.is_err();
        while let Some(tell) = told.recv().await {
            match tell {
                Tell::Name(worker) => lease.worker = worker,
                Tell::Cancel(attempt) => {
                    let attempt = attempt.get().cast_unsigned();
                    deaf |= self.say(&ToWorker::Cancel { attempt }, &[]).await.is_err();
                }
                Tell::Drain { at_once, within } => {
                    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                    let drain = ToWorker::Drain { at_once, within_ms };
                    deaf |= self.say(&drain, &[]).await.is_err();
                }
                Tell::Unit(unit, _) if deaf => self.not_handed(&unit),
                Tell::Unit(unit, plan_mib) => {
                    deaf |= self.unit(&mut lease, unit, plan_mib).await.is_err();
                }
                Tell::Ended(reason) => {
                    self.close(&mut lease, reason).await;
                    return;
                }
            }
        }
    }

    fn not_handed(&self, unit: &UnitRow) {
        // Never lost to a full mailbox: the scheduler would wait for this unit for ever. There are
        // at most QUEUE_DEPTH of these a worker.
        super::tell(&self.ctx.scheduler, UnitEnded { number: self.number, unit: unit.id });
    }

    async fn say(&self, message: &ToWorker, payload: &[u8]) -> Result<(), Deaf> {
        match frame::encode(message, payload) {
            Ok(bytes) => self.out.send(bytes).await.map_err(|_| Deaf),
            // Hello, load, unload, cancel and drain are far below a frame's ceiling.
            Err(error) => {
                tracing::error!("a frame cannot be sent: {error}");
                Err(Deaf)
            }
        }
    }

    async fn unit(
        &self,
        lease: &mut Lease,
        unit: Arc<UnitRow>,
        plan_mib: Option<u64>,
    ) -> Result<(), Deaf> {
        let attempt = match self.begin(lease, &unit).await {
            Ok(attempt) => attempt,
            Err(error) => {
                if !is_stale(&error) {
                    tracing::error!(key = %unit.key, "an attempt cannot begin: {}", with_causes(&error));
                }
                self.not_handed(&unit);
                return Ok(());
            }
        };
        let step = self.ctx.live.step(format!("making unit {} ready", unit.key));
        let asked = self.ctx.stages.preparer(&unit).send(Prepare { unit: Arc::clone(&unit) }).await;
        drop(step);
        match asked.unwrap_or(Err(StageError::Ask(AskError::Gone))) {
            Ok(prepared) if has_nothing_to_do(&unit, &prepared) => {
                self.conclude_empty(unit, attempt, prepared).await;
                Ok(())
            }
            Ok(prepared) => self.send(lease, (unit, attempt, plan_mib), prepared).await,
            Err(error) => {
                attempts::failed(&self.ctx.stage, &unit, attempt, error).await;
                self.not_handed(&unit);
                Ok(())
            }
        }
    }

    /// Intent before effect: the rows of the lease and of the attempt.
    async fn begin(&self, lease: &mut Lease, unit: &UnitRow) -> Result<AttemptId, StageError> {
        let row = match lease.row {
            Some((row, stage)) if stage == unit.stage => row,
            _ => {
                self.close(lease, "the next stage begins".into()).await;
                let (stage, devices) = (unit.stage, self.devices.clone());
                let (pid, worker) = (self.pid, lease.worker.clone());
                let opened = self.ctx.stage.write_patiently(move |s| {
                    let row = s.open_lease(stage, &devices, now_ms())?;
                    s.lease_hello(row, Some(pid), &worker)?;
                    Ok(row)
                });
                let row = opened.await?.ok_or(StageError::Ask(AskError::Gone))?;
                lease.row = Some((row, unit.stage));
                let number = self.number;
                self.ctx.live.worker(number, |worker| worker.lease = Some(row.get()));
                row
            }
        };
        let id = unit.id;
        let begun =
            self.ctx.stage.write_patiently(move |s| s.lease_unit(id, Some(row), now_ms())).await?;
        begun.map(|attempt| attempt.id).ok_or(StageError::Ask(AskError::Gone))
    }

    async fn send(
        &self,
        lease: &mut Lease,
        (unit, attempt, plan_mib): (Arc<UnitRow>, AttemptId, Option<u64>),
        prepared: Prepared,
    ) -> Result<(), Deaf> {
        let Prepared { work, load, items, keys } = prepared;
        let load = load.filter(|models| *models != lease.loaded);
        let handed = Handed {
            unit: Arc::clone(&unit),
            attempt,
            keys,
            items: u32::try_from(items.len()).unwrap_or(u32::MAX),
            loads: load.as_ref().is_some_and(|models| !models.is_empty()),
            plan_mib,
        };
        let number = attempt.get().cast_unsigned();
        let frames = match encoded(number, work, items) {
            Ok(frames) => frames,
            // Halving the unit makes it fit, or finds the one item that never will.
            Err(message) => {
                let ending = Ending::Refused { unit: Arc::clone(&unit), attempt, message };
                attempts::conclude(&self.ctx, ending).await;
                self.not_handed(&unit);
                return Ok(());
            }
        };
        if self.worker.send(handed).await.is_err() {
            // Its actor is gone, and with it the process: this unit never began.
            attempts::conclude(&self.ctx, Ending::Returned { unit: Arc::clone(&unit), attempt })
                .await;
            self.not_handed(&unit);
            return Err(Deaf);
        }
        if let Some(models) = load {
            lease.loaded.clone_from(&models);
            let message =
                if models.is_empty() { ToWorker::Unload } else { ToWorker::Load { models } };
            self.say(&message, &[]).await?;
        }
        for frame in frames {
            self.out.send(frame).await.map_err(|_| Deaf)?;
        }
        Ok(())
    }

    /// A unit all of whose items are done or set aside already needs no worker.
    async fn conclude_empty(&self, unit: Arc<UnitRow>, attempt: AttemptId, prepared: Prepared) {
        let ending = Ending::Done {
            unit: Arc::clone(&unit),
            attempt,
            keys: prepared.keys,
            answers: Vec::new(),
            plan_mib: None,
            summary: Box::default(),
        };
        attempts::conclude(&self.ctx, ending).await;
        self.not_handed(&unit);
    }

    async fn close(&self, lease: &mut Lease, cause: String) {
        let Some((row, _)) = lease.row.take() else { return };
        let closed =
            self.ctx.stage.write_patiently(move |s| s.close_lease(row, &cause, now_ms())).await;
        if let Err(error) = closed {
            tracing::warn!(lease = row.get(), "a lease's end is not written: {error}");
        }
    }
}

/// A unit's frames, before anyone is told that it comes.
///
/// Errors: an item over a frame's ceiling, or more bytes than are held for a worker; a sentence.
fn encoded(attempt: u64, work: Work, items: Vec<(Item, Vec<u8>)>) -> Result<Vec<Vec<u8>>, String> {
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    let unit = ToWorker::RunUnit { attempt, work: Box::new(work), items: count };
    let mut frames = Vec::with_capacity(items.len() + 1);
    frames.push(frame::encode(&unit, &[]).map_err(|error| error.to_string())?);
    let mut bytes = 0;
    for (index, (item, payload)) in (0..).zip(items) {
        let frame = frame::encode(&ToWorker::Item { attempt, index, item }, &payload)
            .map_err(|error| format!("item {index}: {error}"))?;
        bytes += frame.len();
        // A single item is below a frame's ceiling, and that below this one.
        if bytes > INPUT_BYTES_MAX {
            return Err(format!("its {count} items have more than {INPUT_BYTES_MAX} bytes"));
        }
        frames.push(frame);
    }
    Ok(frames)
}

/// Whether the unit was taken or cancelled since it was planned.
fn is_stale(error: &StageError) -> bool {
    matches!(error, StageError::Ask(AskError::Store(StoreError::Illegal(_))))
}

fn has_nothing_to_do(unit: &UnitRow, prepared: &Prepared) -> bool {
    unit.plan.is_some() && prepared.items.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(bytes: usize) -> (Item, Vec<u8>) {
        (Item::PromptIds { occurrence: 0 }, vec![0; bytes])
    }

    #[test]
    fn a_unit_is_one_frame_and_one_an_item_and_none_where_an_item_is_too_large() {
        let work = || Work::Logprobs {
            model: ModelRef { path: "/m".into(), sha256: "ab".into() },
            batch_items: 1,
        };
        let frames = encoded(1, work(), vec![item(4), item(8)]).unwrap();
        assert_eq!(frames.len(), 3);
        let large = encoded(1, work(), vec![item(4), item(frame::FRAME_BYTES_MAX)]);
        assert!(large.unwrap_err().starts_with("item 1: "));
        let many = (0..6).map(|_| item(frame::FRAME_BYTES_MAX - 1024)).collect();
        assert!(encoded(1, work(), many).unwrap_err().contains("6 items"));
    }
}
