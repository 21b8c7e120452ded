//! `rlhfctl pin` and `rlhfctl unpin`: whether a checkpoint's files stay, however old they are.

use rlhfd_protocol::control::Command;

use super::command;
use crate::connect::Daemon;
use crate::errors::ClientError;

/// Sends it; `verb` is `pin` or `unpin`.
pub async fn run(
    daemon: &Daemon,
    verb: &str,
    checkpoint: String,
    json: bool,
) -> Result<(), ClientError> {
    let body = Command { checkpoint: Some(checkpoint), ..Command::default() };
    command(daemon, verb, &body, json).await
}
