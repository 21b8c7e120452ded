//! The fake worker: one file a matter.
//!
//! `serve` holds the socket and the threads, `compute` the answers, `train` the checkpoints and
//! `faults` what goes wrong, by a plan that outlives the process.

mod answers;
pub mod compute;
pub mod faults;
mod serve;
mod train;
mod verify;

pub use serve::serve;
pub use train::hex;
