//! `rlhfctl pause`: let running units finish, and begin no others.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it.
pub async fn run(daemon: &Daemon, reason: Option<String>, json: bool) -> Result<(), ClientError> {
    command(daemon, "pause", &Command { reason, ..Command::default() }, json).await
}
