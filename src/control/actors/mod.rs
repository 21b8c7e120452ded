//! The actors of the daemon, and the messages between them.
//!
//! ```text
//!  listener ──Order──▶ iteration ──Consider──▶ scheduler ──Open──▶ supervisor ──▶ worker ◀─frames─▶ child
//!                        │  ▲                     │  ▲                              │
//!                        │  └── Nudge ────────────┼──┴─ LeaseOpened, UnitEnded, … ──┤
//!                        └──── Perform ───────────┴───▶ generation, labelling, pairing, training,
//!                                                       evaluation ──Write──▶ store
//! ```
//! All but the store live on the main thread, because a child dies with the thread that spawned it.
//! Memory is a cache: whatever an actor knows is made anew from the database after a start.
//! May not enter: SQL, HTTP.

pub mod attempts;
pub mod evaluation;
pub mod generation;
pub mod iteration;
pub mod labelling;
pub mod pairing;
pub mod scheduler;
pub mod stage;
pub mod store;
pub mod supervisor;
pub mod teller;
pub mod training;
pub mod worker;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};

/// Sends what must not be lost: that a process or a unit ended or is wanted no more. A full mailbox
/// does not refuse it, for nobody would say it again; there are only so many of them as there are
/// processes and units in their hands, which are bounded.
#[expect(
    clippy::disallowed_methods,
    reason = "bounded by the workers and their queues, not by the mailbox"
)]
pub(crate) fn tell<A, M>(to: &Addr<A>, message: M)
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    to.do_send(message);
}
