//! The store actor: the one writer, on a thread of its own, in the order of arrival.
//!
//! In: closures over the write connection. Out: what they return, after their transaction is
//! committed. The handler blocks, which is right here: nothing else lives on this thread. A panic in
//! it ends the daemon (the outcome of a half-done write is only known after opening anew). May not
//! enter: what a write means.

use actix::prelude::*;
use rlhfd_store::Store;

use crate::platform;

/// Writes that may wait. A caller that meets a full mailbox is told so and comes again.
pub const MAILBOX: usize = 64;

/// The actor.
pub struct StoreActor {
    store: Option<Store>,
}

impl StoreActor {
    /// Starts it on an arbiter of its own.
    #[must_use]
    pub fn start_with(store: Store) -> Addr<Self> {
        let arbiter = Arbiter::new();
        arbiter.spawn_fn(platform::mark_core_thread);
        Self::start_in_arbiter(&arbiter.handle(), move |ctx| {
            ctx.set_mailbox_capacity(MAILBOX);
            Self { store: Some(store) }
        })
    }
}

impl Actor for StoreActor {
    type Context = Context<Self>;
}

/// A write: it sends its own answer, so that the message needs no type of it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Write(pub Box<dyn FnOnce(&mut Store) + Send>);

impl Handler<Write> for StoreActor {
    type Result = ();

    fn handle(&mut self, Write(write): Write, _: &mut Self::Context) {
        // After `Close` the closure is dropped, and with it the sender of its answer: the caller
        // learns that the store is gone.
        if let Some(store) = &mut self.store {
            write(store);
        }
    }
}

/// The clean end: every write before it is committed, the side files are taken away. False: a reader
/// was still there, and they stay.
#[derive(Message)]
#[rtype(result = "Result<bool, rlhfd_store::StoreError>")]
pub struct Close;

impl Handler<Close> for StoreActor {
    type Result = Result<bool, rlhfd_store::StoreError>;

    fn handle(&mut self, _: Close, ctx: &mut Self::Context) -> Self::Result {
        ctx.stop();
        self.store.take().map_or(Ok(true), Store::close)
    }
}
