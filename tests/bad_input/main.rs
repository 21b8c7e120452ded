//! Bad input, as a table: each case goes through the real binaries, says what was wrong, where and
//! how to mend it, and leaves the state as it was.
//!
//! Comes in: files, options, requests and folders that are wrong in one way each. Goes out: exit
//! codes, statuses and words. May not enter: a case that only checks that something failed.

mod client;
mod files;
mod front;
mod models;
mod names;
mod socket;
mod startup;
mod worker;
