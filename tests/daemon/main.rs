//! The daemon with the fake worker: whole runs, crashes, faults, commands and readers.
//!
//! Comes in: the built binaries. Goes out: verdicts from SQL and from the socket. May not enter:
//! libtorch; sleeping in the hope that something has happened.

mod altered;
mod arms;
mod chain;
mod client;
mod commands;
mod crashes;
mod disk;
mod diverged;
mod faults;
mod folders;
mod gate;
mod gpus;
mod jobs;
mod labels;
mod memory;
mod offline;
mod overdue;
mod peers;
mod preferring;
mod readers;
mod references;
mod retention;
mod service;
mod story;
mod whole_run;
