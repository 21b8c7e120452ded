//! `rlhfctl iterations`: the view `iteration_history`, as many of its columns as a terminal takes.

use rlhfd_protocol::control::Table;
use serde_json::Value;

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::{format, render};

/// The columns of the short table. `--wide`, `--json` and `sql` give all of them.
const SHOWN: [&str; 12] = [
    "run",
    "iteration",
    "status",
    "policy_out",
    "prompts",
    "preferences",
    "ties",
    "set_aside",
    "score_mean",
    "loss_last",
    "eval_score_mean",
    "eval_win_rate",
];

/// Asks and prints.
pub async fn run(daemon: &Daemon, wide: bool, json: bool) -> Result<(), ClientError> {
    let history: Table = daemon.get("/v1/iterations").await?;
    if json {
        return render::json(&history);
    }
    if history.rows.is_empty() {
        return render::line("no iteration yet: `rlhfctl status` says what it waits for");
    }
    if wide {
        return render::result(&history);
    }
    let shown: Vec<(&str, usize)> =
        SHOWN.into_iter().filter_map(|name| Some((name, history.column(name)?))).collect();
    let headers: Vec<&str> = shown.iter().map(|(name, _)| *name).collect();
    let text = |row: &[Value], i: usize| format::value(row.get(i).unwrap_or(&Value::Null));
    let rows: Vec<Vec<String>> =
        history.rows.iter().map(|row| shown.iter().map(|(_, i)| text(row, *i)).collect()).collect();
    render::table(&headers, &rows, "")?;
    render::note_cut(&history);
    Ok(())
}
