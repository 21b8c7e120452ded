//! What goes on at this moment, for `status`: running units, tokens a second, what is waited for.
//!
//! In: words of the actors. Out: a snapshot that anyone may read without asking an actor. Nothing
//! here is remembered: it is made anew after a start, and no decision reads it. May not enter: SQL.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rlhfd_domain::Stage;
use tokio::sync::watch;

use crate::gpu::DeviceFact;

/// The snapshot.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// What has to happen before the active run goes on, as whole sentences, the run's own first.
    pub waits_for: Vec<String>,
    /// Places that are not well (disk full, failing, read-only), by stage.
    pub faults: BTreeMap<String, String>,
    /// Devices that the daemon may use.
    pub devices: Vec<LiveDevice>,
    /// Worker processes, by their number within this daemon.
    pub workers: BTreeMap<u64, LiveWorker>,
    /// What the daemon itself is at, and waits for without a deadline of its own: by number.
    pub steps: BTreeMap<u64, LiveStep>,
    /// How many of these have begun.
    steps_begun: u64,
    /// Set where the configuration file was read again and differs: it applies from the next
    /// iteration on. A sentence.
    pub config_pending: Option<String>,
}

impl Live {
    /// Steps that have lasted longer than `allowed`, with how long; the longest first.
    #[must_use]
    pub fn overdue(&self, now: Instant, allowed: Duration) -> Vec<(u64, &str, Duration)> {
        let lasted = |step: &LiveStep| now.saturating_duration_since(step.since);
        let all = self.steps.iter().map(|(number, step)| (*number, &*step.what, lasted(step)));
        let mut overdue: Vec<_> = all.filter(|(.., lasted)| *lasted > allowed).collect();
        overdue.sort_by_key(|(.., lasted)| std::cmp::Reverse(*lasted));
        overdue
    }
}

/// Something that the daemon itself does.
#[derive(Debug, Clone)]
pub struct LiveStep {
    /// In few words.
    pub what: String,
    /// When it began, on the monotonic clock.
    pub since: Instant,
}

/// A device that the daemon may use.
#[derive(Debug, Clone, Default)]
pub struct LiveDevice {
    /// As it was last seen.
    pub fact: DeviceFact,
    /// What others use of its memory.
    pub foreign_mib: Option<u64>,
    /// Why it takes no units now; none: it takes them.
    pub hold: Option<String>,
}

/// A worker process.
#[derive(Debug, Clone)]
pub struct LiveWorker {
    /// Its lease's row, once it has one.
    pub lease: Option<i64>,
    /// Its process.
    pub pid: u32,
    /// UUIDs.
    pub devices: Vec<String>,
    /// Where it stands.
    pub state: WorkerState,
    /// As its last heartbeat said.
    pub resident_mib: u64,
    /// The unit that runs.
    pub unit: Option<LiveUnit>,
    /// The key of the unit that comes next.
    pub next: Option<String>,
}

/// Where a worker process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// Started, and not yet answered.
    Starting,
    /// Its models are loaded.
    Loading,
    /// A unit runs.
    Running,
    /// It has nothing to do.
    Idle,
    /// It finishes what it has.
    Ending,
}

impl WorkerState {
    /// The word of the API.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Idle => "idle",
            Self::Ending => "ending",
        }
    }
}

/// A unit that runs.
#[derive(Debug, Clone)]
pub struct LiveUnit {
    /// Its row.
    pub id: i64,
    /// Its natural key.
    pub key: String,
    /// Its stage.
    pub stage: Stage,
    /// When it began, on the monotonic clock.
    pub since: Instant,
    /// Items in all.
    pub items: u32,
    /// Items answered.
    pub items_done: u32,
    /// Tokens computed, as the last heartbeat said.
    pub tokens: u64,
    /// Of a train unit: step, steps, loss.
    pub step: Option<(u64, u64, f64)>,
}

impl LiveUnit {
    /// Seconds since it began.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// Tokens a second so far; none before the first are known.
    #[must_use]
    pub fn tokens_per_s(&self) -> Option<f64> {
        let seconds = self.seconds();
        (self.tokens > 0 && seconds > 0.0).then(|| self.tokens as f64 / seconds)
    }

    /// The share that is done: by steps where it trains, else by items.
    #[must_use]
    pub fn share(&self) -> f64 {
        match self.step {
            Some((step, steps, _)) if steps > 0 => step as f64 / steps as f64,
            _ if self.items > 0 => f64::from(self.items_done) / f64::from(self.items),
            _ => 0.0,
        }
    }

    /// A guess at the seconds left.
    #[must_use]
    pub fn seconds_left(&self) -> Option<f64> {
        let share = self.share();
        (share > 0.0).then(|| self.seconds() * (1.0 - share) / share)
    }
}

/// The writing side; every actor that has something to say holds one.
#[derive(Debug, Clone)]
pub struct LiveBoard(watch::Sender<Live>);

impl LiveBoard {
    /// An empty board.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(Live::default()))
    }

    /// Changes the snapshot.
    pub fn change(&self, change: impl FnOnce(&mut Live)) {
        self.0.send_modify(change);
    }

    /// Changes one worker, if it is still there.
    pub fn worker(&self, number: u64, change: impl FnOnce(&mut LiveWorker)) {
        self.0.send_modify(|live| {
            if let Some(worker) = live.workers.get_mut(&number) {
                change(worker);
            }
        });
    }

    /// Shows a step of the daemon's own until what is given back is dropped: where it never ends, that is
    /// seen.
    #[must_use]
    pub fn step(&self, what: impl Into<String>) -> Step {
        let begun = LiveStep { what: what.into(), since: Instant::now() };
        let mut number = 0;
        self.change(|live| {
            live.steps_begun += 1;
            number = live.steps_begun;
            live.steps.insert(number, begun);
        });
        Step { board: self.clone(), number }
    }

    /// The snapshot as it is now.
    #[must_use]
    pub fn now(&self) -> Live {
        self.0.borrow().clone()
    }
}

/// A step that is under way.
#[derive(Debug)]
pub struct Step {
    board: LiveBoard,
    number: u64,
}

impl Drop for Step {
    fn drop(&mut self) {
        self.board.change(|live| {
            live.steps.remove(&self.number);
        });
    }
}

impl Default for LiveBoard {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_until_it_ends_and_is_overdue_after_what_it_may_take() {
        let board = LiveBoard::new();
        let (first, second) = (board.step("one"), board.step("two"));
        let later = Instant::now() + Duration::from_secs(60);
        let overdue = |allowed| {
            let live = board.now();
            let overdue = live.overdue(later, Duration::from_secs(allowed));
            overdue.into_iter().map(|(_, what, _)| what.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(overdue(90), Vec::<String>::new());
        assert_eq!(overdue(30), ["one", "two"]);
        drop(first);
        assert_eq!(overdue(30), ["two"]);
        drop(second);
        assert!(board.now().steps.is_empty());
    }

    #[test]
    fn a_train_unit_is_measured_by_steps_and_any_other_by_items() {
        let mut unit = LiveUnit {
            id: 1,
            key: "1/train".into(),
            stage: Stage::Train,
            since: Instant::now(),
            items: 0,
            items_done: 0,
            tokens: 0,
            step: None,
        };
        assert_eq!((unit.share(), unit.seconds_left(), unit.tokens_per_s()), (0.0, None, None));
        unit.step = Some((1, 4, 0.5));
        assert_eq!(unit.share(), 0.25);
        unit.step = None;
        (unit.items, unit.items_done) = (8, 4);
        assert_eq!(unit.share(), 0.5);
        assert!(unit.seconds_left().is_some());
    }
}
