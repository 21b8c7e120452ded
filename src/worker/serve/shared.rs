//! What the threads of a serving worker share: the socket's writing side, the running attempt.
//!
//! In: frames to send; cancels. Out: whole frames on the socket, one at a time. May not enter: units'
//! work.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rlhfd_protocol::frame::{self, FrameError};
use rlhfd_protocol::worker::{Done, FromWorker};

use crate::verifying::Known;
use crate::watch::Watch;

/// The writing side of the socket.
pub(super) struct Wire {
    stream: Mutex<UnixStream>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: Mutex::new(stream) }
    }

    /// Writes one frame whole, by one call, whoever else writes.
    pub(super) fn send(&self, message: &FromWorker, payload: &[u8]) -> Result<(), FrameError> {
        let bytes = frame::encode(message, payload)?;
        Ok(locked(&self.stream).write_all(&bytes)?)
    }

    /// The same; a socket that is gone ends the process.
    pub(super) fn send_or_end(&self, message: &FromWorker, payload: &[u8]) {
        if let Err(error) = self.send(message, payload) {
            tracing::debug!("the daemon is gone: {error}");
            end_process(0);
        }
    }
}

/// Which attempt runs, and which are to be cancelled.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) watch: Watch,
    /// Checkpoints that were held against their manifests.
    pub(super) known: Known,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    cancelled: HashSet<u64>,
    draining: Draining,
}

/// What the daemon said of leaving.
#[derive(Clone, Copy, Default, PartialEq)]
enum Draining {
    #[default]
    No,
    /// Trainings stop, everything else is finished.
    Trainings,
    /// Nothing is finished that has not ended yet.
    Everything,
}

impl Draining {
    fn stops(self, trains: bool) -> bool {
        match self {
            Self::No => false,
            Self::Trainings => trains,
            Self::Everything => true,
        }
    }
}

#[derive(Clone, Copy)]
struct Running {
    attempt: u64,
    trains: bool,
}

/// Cancels kept for attempts that have not begun; a daemon has two in hand at most.
const CANCELS_MAX: usize = 1024;

impl Shared {
    /// An attempt begins. A cancel that came before it stands.
    pub(super) fn begin(&self, attempt: u64, trains: bool) {
        let mut state = locked(&self.state);
        self.watch.begin_unit();
        if state.cancelled.remove(&attempt) || state.draining.stops(trains) {
            self.watch.cancel();
        }
        state.running = Some(Running { attempt, trains });
    }

    /// The running attempt is over.
    pub(super) fn end(&self) {
        locked(&self.state).running = None;
    }

    pub(super) fn cancel(&self, attempt: u64) {
        let mut state = locked(&self.state);
        if state.running.is_some_and(|running| running.attempt == attempt) {
            self.watch.cancel();
        } else if state.cancelled.len() < CANCELS_MAX {
            state.cancelled.insert(attempt);
        }
    }

    /// A training stops at its next micro-batch, and everything else too where `at_once`. After
    /// `within` the process is killed.
    pub(super) fn drain(&self, at_once: bool, within: Duration) {
        let mut state = locked(&self.state);
        self.watch.leave_by(Instant::now() + within);
        state.draining = if at_once { Draining::Everything } else { Draining::Trainings };
        if state.running.is_some_and(|running| state.draining.stops(running.trains)) {
            self.watch.cancel();
        }
    }

    pub(super) fn running(&self) -> (Option<u64>, Option<Done>) {
        let attempt = locked(&self.state).running.map(|running| running.attempt);
        let done = attempt.map(|_| Done { items: self.watch.items(), tokens: self.watch.tokens() });
        (attempt, done)
    }
}

/// A lock whose data is whole at every instant, so that a panic of another holder does not matter.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process at once. libtorch's exit handlers are not run: they would tear down what the
/// compute thread still uses.
pub(super) fn end_process(code: i32) -> ! {
    unsafe extern "C" {
        fn _exit(code: i32) -> !;
    }
    // SAFETY: `_exit` of the C library takes any code and does not return; frames are written
    // whole by single calls without a buffer of ours, so nothing is lost.
    unsafe { _exit(code) }
}
