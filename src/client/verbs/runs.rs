//! `rlhfctl runs`: the runs of the state folder.

use rlhfd_protocol::control::Runs;

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::{format, render};

/// Asks and prints.
pub async fn run(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    let runs: Runs = daemon.get("/v1/runs").await?;
    if json {
        return render::json(&runs);
    }
    let rows: Vec<Vec<String>> = runs
        .runs
        .iter()
        .map(|run| {
            vec![
                run.name.clone(),
                match (&run.paused, run.active) {
                    (Some(reason), _) => format!("paused: {reason}"),
                    (None, true) => "active".to_owned(),
                    (None, false) => "–".to_owned(),
                },
                run.iterations.to_string(),
                run.head.clone(),
                run.seed.to_string(),
                run.policy.clone(),
                format::time(run.created_ms),
            ]
        })
        .collect();
    render::table(
        &["run", "state", "iterations", "head", "seed", "policy", "made (UTC)"],
        &rows,
        "no run yet: the daemon makes one when its configuration names a policy",
    )
}
