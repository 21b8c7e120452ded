//! The control plane: it decides and remembers, and never computes.
//!
//! In: requests on the socket, answers of workers, what the devices say. Out: rows, events, worker
//! processes with units to do. May not enter: tensors, SQL text (`rlhfd-store` has all of it).

pub mod exit;
pub mod gpu;
pub mod places;
pub mod platform;
pub mod schedule;
pub mod workers;
