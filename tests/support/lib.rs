//! What the whole-system tests share: a place of their own, fake models, the daemon as a process,
//! and ways to wait for a fact instead of sleeping.
//!
//! Comes in: the built binaries. Goes out: scenes, dumps and verdicts for the tests. May not enter:
//! anything that the daemon itself would need.

pub mod binaries;
pub mod disk_faults;
pub mod dump;
pub mod fake;
pub mod gpus;
pub mod http;
pub mod link;
pub mod measure;
pub mod models;
pub mod native;
pub mod others;
pub mod random;
pub mod scene;
pub mod wait;
