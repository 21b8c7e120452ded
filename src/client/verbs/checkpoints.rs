//! `rlhfctl checkpoints`: what the runs made, or the line from one of them back to its beginning.

use rlhfd_protocol::control::Table;

use crate::connect::{Daemon, escape};
use crate::errors::ClientError;
use crate::render;

/// Asks and prints.
pub async fn run(daemon: &Daemon, lineage: Option<String>, json: bool) -> Result<(), ClientError> {
    let target = match lineage {
        Some(name) => format!("/v1/checkpoints?lineage={}", escape(&name)),
        None => "/v1/checkpoints".to_owned(),
    };
    let table: Table = daemon.get(&target).await?;
    if json {
        return render::json(&table);
    }
    if table.rows.is_empty() {
        return render::line("no checkpoint yet");
    }
    render::result(&table)
}
