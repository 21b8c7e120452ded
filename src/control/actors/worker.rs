//! The worker actor: one a process. It knows what is in its hands, gathers answers, and watches.
//!
//! In: units of the scheduler, frames of the link, its own timer. Out: finished units to their
//! stages, deaths to the store, both to the scheduler. A frame is handled to its end (with its
//! transaction) before the next is read. May not enter: which unit comes next, what a unit means.

mod frames;
mod orders;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use rlhfd_domain::{AttemptId, Cause};
use rlhfd_protocol::WORKER_PROTOCOL;
use rlhfd_protocol::worker::{FromWorker, ToWorker};
use rlhfd_store::UnitRow;
use tokio::sync::{mpsc, watch};
use tracing::Span;

use super::attempts::{self, Ending};
use super::scheduler::{LeaseEnded, SchedulerActor, UnitEnded};
use super::stage::{Answer, ItemKeys, StageContext, Stages};
use super::teller::{Tell, Teller};
use crate::live::{LiveBoard, LiveUnit, WorkerState};
use crate::workers::death::Death;
use crate::workers::link::{Link, LinkEvent};
use crate::workers::watch::{Limits, Verdict, Watch};

pub use orders::{Abandon, CancelUnit, Drain, Hand, Handed, LoseDevice};

/// Words that may wait for the teller: two units, a cancel, a drain and the end.
const TELLS: usize = 8;

/// What belongs to every worker of this daemon.
#[derive(Clone)]
pub struct WorkerContext {
    /// Store, places, configuration.
    pub stage: StageContext,
    /// Who prepares and concludes.
    pub stages: Stages,
    /// Who hands units out.
    pub scheduler: Addr<SchedulerActor>,
    /// What goes on.
    pub live: LiveBoard,
}

/// The actor.
pub struct WorkerActor {
    /// Its number within this daemon.
    number: u64,
    pid: u32,
    ctx: WorkerContext,
    link: Link,
    tell: mpsc::Sender<Tell>,
    span: watch::Sender<Span>,
    watch: Watch,
    heartbeat: Duration,
    hands: VecDeque<InHand>,
    /// Why we killed it.
    verdict: Option<(Cause, String)>,
    /// It said itself that it cannot go on: what else is in its hands never began.
    doomed: bool,
    /// It was asked to leave.
    leaving: bool,
    /// Its hello was not one that we can work with.
    refused: bool,
    /// The newest saved step that the unit in front was told of.
    saved: Option<u64>,
    /// Whether someone looks for a training's newest saved state now.
    looking: bool,
    /// What it holds of each GPU, as the scheduler knows it.
    held_mib: Vec<u64>,
}

/// A unit that was sent.
struct InHand {
    unit: Arc<UnitRow>,
    attempt: AttemptId,
    keys: ItemKeys,
    items: u32,
    answers: Vec<Answer>,
    bytes: usize,
    /// Its models are not loaded yet.
    loads: bool,
    /// What the memory plan says that it needs of the device's, before any correction.
    plan_mib: Option<u64>,
}

/// What the supervisor knows of a new process.
pub struct Newborn {
    /// Its number within this daemon.
    pub number: u64,
    /// Its process id.
    pub pid: u32,
    /// UUIDs.
    pub devices: Vec<String>,
    /// Over several: the room of each.
    pub rooms_mib: Vec<u64>,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Deadlines.
    pub limits: Limits,
    /// Threads on the CPU; none: the worker's own choice.
    pub threads: Option<usize>,
}

impl WorkerActor {
    /// Starts the actor over a link that `drive` opens towards it.
    pub fn start_with(
        ctx: WorkerContext,
        born: Newborn,
        drive: impl FnOnce(&watch::Receiver<Span>, Recipient<LinkEvent>) -> Link + 'static,
    ) -> Addr<Self> {
        Self::create(move |own| {
            let (span, spans) = watch::channel(Span::none());
            let link = drive(&spans, own.address().recipient());
            let (tell, told) = mpsc::channel(TELLS);
            let teller = Teller {
                number: born.number,
                pid: born.pid,
                devices: born.devices,
                ctx: ctx.clone(),
                worker: own.address(),
                out: link.out.clone(),
            };
            actix_rt::spawn(teller.run(
                told,
                ToWorker::Hello {
                    protocol: WORKER_PROTOCOL,
                    device: born.device.to_owned(),
                    rooms_mib: born.rooms_mib,
                    threads: born.threads,
                    heartbeat_ms: u64::try_from(born.limits.heartbeat.as_millis()).unwrap_or(1000),
                },
            ));
            Self {
                number: born.number,
                pid: born.pid,
                ctx,
                link,
                tell,
                span,
                watch: Watch::new(born.limits, Instant::now()),
                heartbeat: born.limits.heartbeat,
                hands: VecDeque::new(),
                verdict: None,
                doomed: false,
                leaving: false,
                refused: false,
                saved: None,
                looking: false,
                held_mib: Vec::new(),
            }
        })
    }

    /// Kills the process; its end comes as the link's last event.
    fn kill(&mut self, cause: Cause, why: String) {
        tracing::warn!(pid = self.pid, cause = cause.label(), "a worker is ended: {why}");
        self.verdict.get_or_insert((cause, why));
        // A full channel holds a kill already.
        let _ = self.link.kill.try_send(());
    }

    fn look(&mut self) {
        let verdict = self.watch.look(Instant::now());
        if self.verdict.is_some() {
            return;
        }
        match verdict {
            Verdict::Well => {}
            Verdict::Silent => self.kill(Cause::Silent, "nothing was heard of it".into()),
            Verdict::Stalled => {
                self.kill(Cause::Stalled, "its heartbeats come and it computes nothing".into());
            }
        }
    }

    /// Tells the unit of a training that runs which step it could go on from.
    fn look_for_saves(&mut self, own: &mut Context<Self>) {
        let trains = self.hands.front().filter(|hand| hand.unit.work.trains() && !self.looking);
        let Some((unit, attempt)) = trains.map(|hand| (Arc::clone(&hand.unit), hand.attempt))
        else {
            return;
        };
        self.looking = true;
        let (ctx, known) = (self.ctx.stage.clone(), self.saved);
        let looked = async move { attempts::tell_saved_step(&ctx, &unit, attempt, known).await };
        own.spawn(looked.into_actor(self).map(|saved, worker: &mut Self, _| {
            worker.looking = false;
            worker.saved = worker.saved.max(saved);
        }));
    }

    fn front(&mut self, attempt: u64) -> Option<&mut InHand> {
        self.hands.front_mut().filter(|hand| hand.attempt.get() == attempt.cast_signed())
    }

    fn show(&self, state: WorkerState) {
        self.ctx.live.worker(self.number, |worker| {
            if worker.state != WorkerState::Ending {
                worker.state = state;
            }
        });
    }

    /// The unit in front is the one that runs now.
    fn show_front(&mut self) {
        let unit = self.hands.front().map(|hand| LiveUnit {
            id: hand.unit.id.get(),
            key: hand.unit.key.clone(),
            stage: hand.unit.stage,
            since: Instant::now(),
            items: hand.items,
            items_done: 0,
            tokens: 0,
            step: None,
        });
        let span = self.hands.front().map_or_else(Span::none, |hand| {
            let unit = &hand.unit;
            tracing::info_span!("unit", stage = unit.stage.label(), key = %unit.key, pid = self.pid)
        });
        self.span.send_replace(span);
        self.saved = None;
        let next = self.hands.get(1).map(|hand| hand.unit.key.clone());
        let state = if unit.is_some() { WorkerState::Running } else { WorkerState::Idle };
        self.ctx.live.worker(self.number, |worker| {
            worker.unit = unit;
            worker.next = next;
        });
        self.show(state);
        let now = Instant::now();
        match self.hands.front() {
            None => self.watch.idle(now),
            Some(hand) if hand.loads => {
                self.watch.loading(now);
                self.show(WorkerState::Loading);
            }
            Some(_) => self.watch.begun(now),
        }
    }

    /// What becomes of all that is in hand when the process is gone.
    fn orphans(&mut self, death: Death) -> Vec<Ending> {
        let (cause, why) = self
            .verdict
            .clone()
            .unwrap_or_else(|| (death.cause(), format!("the worker ended by {death}")));
        // One that left when it was asked to began nothing that it did not finish.
        let doomed = self.doomed || (self.leaving && death == Death::Exit(0));
        self.hands
            .drain(..)
            .enumerate()
            .map(|(place, hand)| {
                if place == 0 && !doomed {
                    Ending::died(hand.unit, hand.attempt, cause, why.clone())
                } else {
                    Ending::Returned { unit: hand.unit, attempt: hand.attempt }
                }
            })
            .collect()
    }
}

impl Actor for WorkerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.heartbeat, |worker, own| {
            worker.look();
            worker.look_for_saves(own);
        });
    }
}

impl Handler<LinkEvent> for WorkerActor {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, event: LinkEvent, ctx: &mut Self::Context) -> Self::Result {
        let frame = match event {
            LinkEvent::Frame(frame) => frame,
            LinkEvent::Ended { death, garbage } => return self.end(death, garbage),
        };
        let first = self.watch.is_starting();
        self.watch.heard(Instant::now());
        if matches!(frame.message, FromWorker::Step { .. }) {
            self.look_for_saves(ctx);
        }
        if self.verdict.is_some() {
            // It is being killed: what it says is worth nothing any more.
            return now_ready();
        }
        let outcome = if first {
            self.hello(&frame.message, ctx).map(|()| None)
        } else {
            self.ending(&frame.message).and_then(|ending| match ending {
                Some(ending) => Ok(Some(ending)),
                None => self.take(frame).map(|()| None),
            })
        };
        match outcome {
            Ok(None) => now_ready(),
            Ok(Some(ending)) => self.conclude(ending),
            Err(why) => {
                self.refused |= first;
                self.kill(Cause::Protocol, why);
                now_ready()
            }
        }
    }
}

fn now_ready() -> AtomicResponse<WorkerActor, ()> {
    AtomicResponse::new(Box::pin(actix::fut::ready(())))
}

impl WorkerActor {
    /// Writes the end of a unit, then says so.
    fn conclude(&mut self, ending: Ending) -> AtomicResponse<Self, ()> {
        let ctx = self.ctx.clone();
        let (number, unit) = (self.number, ending.unit().id);
        let concluded = async move { attempts::conclude(&ctx, ending).await };
        AtomicResponse::new(Box::pin(concluded.into_actor(self).map(
            move |broken, worker: &mut Self, _| {
                if let Some(why) = broken {
                    worker.kill(Cause::Protocol, why);
                }
                super::tell(&worker.ctx.scheduler, UnitEnded { number, unit });
            },
        )))
    }

    fn end(&mut self, death: Death, garbage: Option<String>) -> AtomicResponse<Self, ()> {
        if let Some(garbage) = garbage {
            self.verdict.get_or_insert((Cause::Protocol, garbage));
        }
        let reason =
            self.verdict.as_ref().map_or_else(|| death.to_string(), |(_, why)| why.clone());
        tracing::info!(pid = self.pid, "a worker ended: {reason}");
        let (ctx, number, endings) = (self.ctx.clone(), self.number, self.orphans(death));
        // One that never took a unit leaves no attempt behind: then the event tells of it.
        let never_served = self.watch.is_starting() || self.refused;
        let told = never_served
            .then(|| format!("a worker (process {}) did not serve: {reason}", self.pid));
        let tell = self.tell.clone();
        let all = async move {
            for ending in endings {
                let unit = ending.unit().id;
                attempts::conclude(&ctx, ending).await;
                super::tell(&ctx.scheduler, UnitEnded { number, unit });
            }
            if let Some(message) = told {
                attempts::tell(&ctx.stage, "worker_refused", message).await;
            }
            // The teller closes the lease's row; it is the one that knows it.
            let _ = tell.send(Tell::Ended(reason)).await;
        };
        AtomicResponse::new(Box::pin(all.into_actor(self).map(
            move |(), worker: &mut Self, own| {
                worker.ctx.live.change(|live| {
                    live.workers.remove(&number);
                });
                super::tell(&worker.ctx.scheduler, LeaseEnded { number, death });
                own.stop();
            },
        )))
    }
}
