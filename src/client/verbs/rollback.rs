//! `rlhfctl rollback`: go on from what an earlier iteration trained.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it.
pub async fn run(
    daemon: &Daemon,
    iteration: u32,
    reason: Option<String>,
    json: bool,
) -> Result<(), ClientError> {
    let iteration = Some(u64::from(iteration));
    command(daemon, "rollback", &Command { iteration, reason, ..Command::default() }, json).await
}
