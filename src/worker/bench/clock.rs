//! What a piece of work took: seconds, seconds of CPU time, and memory at most.
//!
//! In: the work. Out: its result with a [`Took`]. CPU time is what a machine that does other things
//! beside it can be compared by. May not enter: GPU memory, which tch does not tell.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use crate::device::peak_mib;
use crate::errors::WorkerError;

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Took {
    pub seconds: f64,
    /// Of all threads together.
    pub cpu_s: f64,
    /// Resident on the host at most since it began, MiB.
    pub peak_mib: u64,
}

/// Runs `work` once.
///
/// # Errors
/// The work's.
pub fn timed<T>(work: impl FnOnce() -> Result<T, WorkerError>) -> Result<(T, Took), WorkerError> {
    // Sets the kernel's mark back to what is resident now; where that is not allowed, the mark stays
    // that of the whole process.
    let _allowed = std::fs::write("/proc/self/clear_refs", "5");
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let result = work()?;
    let (seconds, cpu_s) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    Ok((result, Took { seconds, cpu_s, peak_mib: peak_mib() }))
}

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "a process lives far below 2^52 seconds")]
    let whole = now.tv_sec as f64;
    #[expect(clippy::cast_precision_loss, reason = "below a thousand million")]
    let part = now.tv_nsec as f64;
    whole + part / 1e9
}
