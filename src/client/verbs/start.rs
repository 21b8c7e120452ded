//! `rlhfctl start`: start an iteration with the prompts that are there, without waiting for more.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it.
pub async fn run(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    command(daemon, "start", &Command::default(), json).await
}
