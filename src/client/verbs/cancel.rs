//! `rlhfctl cancel`: give up the open iteration (its rows stay), or a training job.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it.
pub async fn run(
    daemon: &Daemon,
    iteration: Option<u64>,
    job: Option<String>,
    json: bool,
) -> Result<(), ClientError> {
    command(daemon, "cancel", &Command { iteration, job, ..Command::default() }, json).await
}
