//! `rlhfctl resume`: go on after a pause.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it.
pub async fn run(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    command(daemon, "resume", &Command::default(), json).await
}
