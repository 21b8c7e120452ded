//! The control plane: it decides and remembers, and never computes.
//!
//! In: requests on the socket, answers of workers, what the devices say. Out: rows, events, worker
//! processes with units to do. May not enter: tensors, SQL text (`rlhfd-store` has all of it).

pub mod actors;
pub mod adopt;
pub mod advance;
pub mod check;
pub mod commands;
pub mod daemon;
pub mod doctor;
pub mod examples;
pub mod exit;
pub mod gpu;
pub mod handles;
pub mod health;
pub mod listener;
pub mod live;
pub mod log_watch;
pub mod models;
pub mod notify;
pub mod overdue;
pub mod places;
pub mod platform;
pub mod reload;
pub mod rights;
pub mod room;
pub mod schedule;
pub mod stages;
pub mod verbs;
pub mod watchdog;
pub mod workers;
