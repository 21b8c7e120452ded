//! What the compute thread tells others while it works, and what they tell it.
//!
//! In: ticks of the compute thread; a cancel, or a time to leave, from outside. Out: counters that the heartbeat thread and
//! the progress line read. Atomics only: telling must cost nothing. May not enter: frames, tensors.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::errors::WorkerError;

/// Shared between the compute thread and its watchers.
#[derive(Debug, Default)]
pub struct Watch {
    progress: AtomicU64,
    tokens: AtomicU64,
    items: AtomicU32,
    cancelled: AtomicBool,
    leave_by: OnceLock<Instant>,
}

impl Watch {
    /// A step of the computation is done; `tokens` were computed in it.
    ///
    /// Errors: `Cancelled`, where that was asked for: the caller stops here.
    pub fn tick(&self, tokens: u64) -> Result<(), WorkerError> {
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) { Err(WorkerError::Cancelled) } else { Ok(()) }
    }

    /// One more item was answered.
    pub fn item_done(&self) {
        self.items.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the compute thread ticked since the process began; it only rises.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Tokens of the present unit.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Items of the present unit that were answered.
    #[must_use]
    pub fn items(&self) -> u32 {
        self.items.load(Ordering::Relaxed)
    }

    /// Asks the compute thread to stop at its next tick.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// This process is killed after that instant. The first word stands.
    pub fn leave_by(&self, instant: Instant) {
        let _ = self.leave_by.set(instant);
    }

    /// How long this process still has; none where nobody asked it to leave.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let by = self.leave_by.get()?;
        Some(by.saturating_duration_since(Instant::now()))
    }

    /// A new unit begins: its counts start at 0 and no cancel stands; progress goes on rising.
    pub fn begin_unit(&self) {
        self.tokens.store(0, Ordering::Relaxed);
        self.items.store(0, Ordering::Relaxed);
        self.cancelled.store(false, Ordering::Relaxed);
    }
}
