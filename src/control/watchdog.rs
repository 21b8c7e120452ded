//! The service manager's watchdog: it hears from the daemon only while every core actor answers.
//!
//! In: ways to ask the core actors, the live board. Out: `WATCHDOG=1` and a status line, a third of
//! the watchdog's interval apart. An actor that is stuck keeps them back, and the service manager
//! starts a fresh process: all state is in the database. May not enter: what the actors do.

use std::time::Duration;

use actix::prelude::*;
use futures_util::future::{LocalBoxFuture, join_all};
use sd_notify::NotifyState;

use crate::handles::StoreHandle;
use crate::live::{Live, LiveBoard};
use crate::notify::Manager;

/// Without a watchdog the status line is still renewed this often.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Answered as soon as an actor takes its next message.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Alive;

/// One that must answer for the daemon to be well.
pub struct Core {
    name: &'static str,
    ask: Box<dyn Fn() -> LocalBoxFuture<'static, bool>>,
}

impl Core {
    /// An actor.
    #[must_use]
    pub fn actor<A>(name: &'static str, actor: &Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Alive>,
    {
        let actor = actor.clone();
        Self::asked(name, move || {
            let answer = actor.send(Alive);
            Box::pin(async move { answer.await.is_ok() })
        })
    }

    /// The store, whose writes have a thread of their own.
    #[must_use]
    pub fn store(store: &StoreHandle) -> Self {
        let store = store.clone();
        Self::asked("store", move || {
            let store = store.clone();
            Box::pin(async move { store.write(|_| Ok(())).await.is_ok() })
        })
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// True once it answers; false where it is gone.
    pub async fn answers(&self) -> bool {
        (self.ask)().await
    }

    fn asked(
        name: &'static str,
        ask: impl Fn() -> LocalBoxFuture<'static, bool> + 'static,
    ) -> Self {
        Self { name, ask: Box::new(ask) }
    }
}

/// Tells the service manager for as long as it is polled, where there is one.
pub async fn keep(cores: Vec<Core>, live: LiveBoard, manager: Manager) {
    if !manager.is_there() {
        return;
    }
    let watched = sd_notify::watchdog_enabled();
    let every = watched.map_or(STATUS_EVERY, |interval| interval / 3);
    loop {
        let silent = silent(&cores, every).await;
        let status = sentence(&live.now());
        let mut states = vec![NotifyState::Status(&status)];
        if silent.is_empty() {
            states.push(NotifyState::Watchdog);
        } else {
            tracing::error!("no answer within {every:?} from: {}", silent.join(", "));
        }
        manager.mention(&states);
        actix_rt::time::sleep(every).await;
    }
}

/// Those that did not answer in time.
async fn silent(cores: &[Core], within: Duration) -> Vec<&'static str> {
    let asked = cores.iter().map(|core| async move {
        let answer = actix_rt::time::timeout(within, core.answers()).await;
        (!matches!(answer, Ok(true))).then_some(core.name)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What `systemctl status` shows: what is ill, else what runs, else what is waited for.
fn sentence(live: &Live) -> String {
    if let Some(fault) = live.faults.values().next() {
        return one_line(fault);
    }
    let running = live.workers.values().filter_map(|worker| worker.unit.as_ref());
    let running: Vec<String> =
        running.map(|unit| format!("{} ({:.0} %)", unit.key, 100.0 * unit.share())).collect();
    match (running.is_empty(), live.waits_for.first()) {
        (false, _) => one_line(&running.join(", ")),
        (true, Some(waits)) => one_line(waits),
        (true, None) => "between two units".to_owned(),
    }
}

/// A status is one line of the protocol.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    fn core(name: &'static str, answers: Option<bool>) -> Core {
        Core::asked(name, move || match answers {
            Some(answer) => Box::pin(future::ready(answer)),
            None => Box::pin(future::pending()),
        })
    }

    #[actix_rt::test]
    async fn who_is_stuck_or_gone_is_named_and_the_others_are_not() {
        let cores = [core("store", Some(true)), core("scheduler", None), core("run", Some(false))];
        assert_eq!(silent(&cores, Duration::from_millis(20)).await, ["scheduler", "run"]);
        assert!(silent(&cores[..1], Duration::from_millis(20)).await.is_empty());
    }

    #[test]
    fn a_fault_comes_first_and_a_status_is_one_line() {
        let mut live = Live::default();
        assert_eq!(sentence(&live), "between two units");
        live.waits_for.push("run main waits for\nprompts".into());
        assert_eq!(sentence(&live), "run main waits for prompts");
        live.faults.insert("state".into(), "the disk is full".into());
        assert_eq!(sentence(&live), "the disk is full");
    }
}
