//! Steps of the daemon itself that last too long: a folder on a disk that does not answer, an actor that is
//! stuck. They cannot be ended from within, so that they are told: `status`, the service manager and the
//! events show them.
//!
//! In: the live board's steps, the core actors. Out: a fault that stands as long as a step is overdue, an
//! event a step. May not enter: workers, whose clocks are their own (`workers::watch`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rlhfd_config::CheckedConfig;
use rlhfd_store::{Level, NewEvent};
use tokio::sync::watch;

use crate::handles::{StoreHandle, now_ms};
use crate::live::{Live, LiveBoard};
use crate::watchdog::Core;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Between an actor's answer and the next question to it.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The fault's name on the board.
const FAULT: &str = "steps";

/// Looks for ever.
pub async fn keep(
    cores: Vec<Core>,
    live: LiveBoard,
    store: StoreHandle,
    config: watch::Receiver<Arc<CheckedConfig>>,
) {
    for core in cores {
        actix_rt::spawn(ask_again_and_again(core, live.clone()));
    }
    let mut told = BTreeSet::new();
    loop {
        actix_rt::time::sleep(EVERY).await;
        let allowed = Duration::from_secs(config.borrow().scheduler.step_timeout_s);
        let now = live.now();
        let sentences = look(&now, Instant::now(), allowed, &mut told);
        show(&live, &now, &sentences);
        for (_, sentence) in sentences.into_iter().filter(|(new, _)| *new) {
            tracing::error!("{sentence}");
            // The store may be what is stuck: nobody waits for this.
            actix_rt::spawn(keep_event(store.clone(), sentence));
        }
    }
}

async fn ask_again_and_again(core: Core, live: LiveBoard) {
    loop {
        let step = live.step(format!("an answer of the {}", core.name()));
        // False: it ended, and the daemon with it.
        if !core.answers().await {
            return;
        }
        drop(step);
        actix_rt::time::sleep(ASK_EVERY).await;
    }
}

/// A sentence for each step that is overdue, and whether it was not told yet. A state folder that cannot
/// be written is waited for, however long that takes, and told by itself.
fn look(
    live: &Live,
    now: Instant,
    allowed: Duration,
    told: &mut BTreeSet<u64>,
) -> Vec<(bool, String)> {
    if live.faults.contains_key("state") {
        return Vec::new();
    }
    told.retain(|number| live.steps.contains_key(number));
    let overdue = live.overdue(now, allowed).into_iter();
    let tell = |(number, what, lasted): (u64, &str, Duration)| {
        let sentence = format!(
            "{what} has lasted {} s, and goes on: look whether the disks of the state folder and of the \
             models answer; a restart of the daemon loses nothing ([scheduler] step_timeout_s)",
            lasted.as_secs()
        );
        (told.insert(number), sentence)
    };
    overdue.map(tell).collect()
}

fn show(live: &LiveBoard, now: &Live, sentences: &[(bool, String)]) {
    match sentences.first() {
        Some((_, longest)) => live.change(|live| {
            live.faults.insert(FAULT.into(), longest.clone());
        }),
        None if now.faults.contains_key(FAULT) => live.change(|live| {
            live.faults.remove(FAULT);
        }),
        None => {}
    }
}

async fn keep_event(store: StoreHandle, sentence: String) {
    let event = NewEvent { level: Level::Error, ..NewEvent::about("step_overdue", sentence) };
    if let Err(error) = store.write(move |s| s.append_event(&event, now_ms())).await {
        tracing::warn!("an event is lost: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overdue_step_is_told_once_and_never_beside_a_full_disk() {
        let board = LiveBoard::new();
        let step = board.step("the look at the run");
        let later = Instant::now() + Duration::from_secs(100);
        let mut told = BTreeSet::new();
        let mut look = |allowed| {
            let sentences = look(&board.now(), later, Duration::from_secs(allowed), &mut told);
            show(&board, &board.now(), &sentences);
            sentences.iter().filter(|(new, _)| *new).count()
        };
        assert_eq!((look(200), board.now().faults.len()), (0, 0));
        assert_eq!((look(50), look(50)), (1, 0));
        assert!(board.now().faults[FAULT].contains("the look at the run has lasted"));
        board.change(|live| drop(live.faults.insert("state".into(), "full".into())));
        look(50);
        assert!(!board.now().faults.contains_key(FAULT));
        board.change(|live| drop(live.faults.remove("state")));
        look(50);
        drop(step);
        look(50);
        assert!(board.now().faults.is_empty());
    }
}
