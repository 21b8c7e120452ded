//! `rlhfctl backup`: a copy of the database in the state folder.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it.
pub async fn run(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    command(daemon, "backup", &Command::default(), json).await
}
