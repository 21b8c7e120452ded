//! Worker processes: how they are found, started, spoken to, and how their deaths are read.
//!
//! In: what a lease needs. Out: a process with a frame socket, its frames, and in the end a typed
//! death. May not enter: SQL, stages, decisions about what to do after a death (`actors::worker`
//! and `rlhfd_domain` hold those).

pub mod child;
pub mod codec;
pub mod death;
pub mod libtorch;
pub mod link;
pub mod logs;
pub mod watch;
