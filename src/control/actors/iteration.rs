//! The iteration actor: the one orderer. Every event that matters to a run comes here, one look at a
//! time, and what the look decides is a transaction.
//!
//! In: nudges (something ended), commands of people, time. Out: started iterations, performed units
//! of control, commands' effects, and the sentences of what is waited for. May not enter: workers,
//! SQL, HTTP.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::scheduler::{Consider, SchedulerActor, Withdraw};
use super::stage::{StageContext, Stages};
use crate::advance::tidy::Stuck;
use crate::advance::{self, Advanced};
use crate::commands;
use crate::handles::{AskError, Command, Told, with_causes};
use crate::live::LiveBoard;
use crate::models::Models;
use crate::watchdog::Alive;

/// Messages that may wait.
const MAILBOX: usize = 64;
/// A look without an event: time itself may have made something ready.
const TICK: Duration = Duration::from_secs(1);

/// What the orderer works with.
#[derive(Clone)]
pub struct OrderContext {
    /// Store, places, configuration.
    pub stage: StageContext,
    /// Who performs units of control.
    pub stages: Stages,
    /// What goes on.
    pub live: LiveBoard,
    /// Sums of the configuration's model folders.
    pub models: Arc<Models>,
    /// Folders that could not be removed.
    pub stuck: Stuck,
}

/// The actor.
pub struct IterationActor {
    ctx: OrderContext,
    scheduler: Addr<SchedulerActor>,
    busy: bool,
    again: bool,
}

impl IterationActor {
    /// Starts it on this thread.
    #[must_use]
    pub fn start_with(ctx: OrderContext, scheduler: Addr<SchedulerActor>) -> Addr<Self> {
        Self::create(move |own| {
            own.set_mailbox_capacity(MAILBOX);
            Self { ctx, scheduler, busy: false, again: false }
        })
    }

    /// Looks at the run, once; what happens meanwhile makes it look again.
    fn look(&mut self, own: &mut Context<Self>) {
        if self.busy {
            self.again = true;
            return;
        }
        self.busy = true;
        let ctx = self.ctx.clone();
        let looked = async move {
            let _step = ctx.live.step("the look at the run");
            advance::advance(&ctx).await
        };
        own.spawn(looked.into_actor(self).map(|advanced, actor, own| actor.looked(advanced, own)));
    }

    fn looked(&mut self, advanced: Result<Advanced, AskError>, own: &mut Context<Self>) {
        self.busy = false;
        match advanced {
            Ok(advanced) => {
                self.ctx.live.change(|live| live.waits_for = advanced.waits_for);
                if advanced.changed {
                    self.again = true;
                }
                if advanced.ready || advanced.changed {
                    // A full mailbox holds the same word already.
                    let _ = self.scheduler.try_send(Consider);
                }
            }
            Err(error) => {
                let sentence = format!("the run cannot be looked at: {}", with_causes(&error));
                tracing::warn!("{sentence}");
                self.ctx.live.change(|live| live.waits_for = vec![sentence]);
            }
        }
        if std::mem::take(&mut self.again) {
            self.look(own);
        }
    }
}

impl Actor for IterationActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look(ctx);
        ctx.run_interval(TICK, |actor, own| actor.look(own));
    }
}

/// Something ended, or may have become ready.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Nudge;

impl Handler<Nudge> for IterationActor {
    type Result = ();

    fn handle(&mut self, _: Nudge, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

/// A command with the way back.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Order {
    /// What is asked.
    pub command: Command,
    /// Whose request it was.
    pub uid: Option<u32>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Told, AskError>>,
}

impl Handler<Order> for IterationActor {
    type Result = ();

    fn handle(&mut self, order: Order, own: &mut Self::Context) {
        let ctx = self.ctx.clone();
        let Order { command, uid, reply } = order;
        let done = async move {
            let _step = ctx.live.step("a command");
            commands::obey(&ctx, command, uid).await
        };
        own.spawn(done.into_actor(self).map(|obeyed, actor, own| {
            let answer = obeyed.map(|(told, withdrawn)| {
                if !withdrawn.is_empty() {
                    super::tell(&actor.scheduler, Withdraw(withdrawn));
                }
                told
            });
            // Whoever asked may have left; the command stands.
            let _ = reply.send(answer);
            actor.look(own);
        }));
    }
}

impl Handler<Alive> for IterationActor {
    type Result = ();

    fn handle(&mut self, _: Alive, _: &mut Self::Context) {}
}
