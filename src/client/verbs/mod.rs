//! One file a verb, named as its twin in `src/control/verbs/`. Each sends its request and hands the
//! answer to `render`.

mod backup;
mod cancel;
mod checkpoints;
mod doctor;
mod events;
mod gpus;
mod iterations;
mod jobs;
mod pause;
mod pin;
mod preferences;
mod prompts;
mod resume;
mod rollback;
mod runs;
mod sql;
mod start;
pub mod status;
mod train;

pub use events::sentence as event_line;
use rlhfd_protocol::control::{BadLine, Command, Done};

use crate::args::{Args, Verb};
use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::{format, render, wait};

/// Carries out one command line.
pub async fn run(args: Args) -> Result<(), ClientError> {
    let json = args.json;
    let daemon = Daemon::find(args.socket).await?;
    let daemon = &daemon;
    match args.verb {
        Verb::Prompts(verb) => prompts::run(daemon, verb, json).await,
        Verb::Preferences(verb) => preferences::run(daemon, verb, json).await,
        Verb::Status { watch } => status::run(daemon, watch, json).await,
        Verb::Runs => runs::run(daemon, json).await,
        Verb::Iterations { wide } => iterations::run(daemon, wide, json).await,
        Verb::Checkpoints { lineage } => checkpoints::run(daemon, lineage, json).await,
        Verb::Gpus { history } => gpus::run(daemon, history, json).await,
        Verb::Events { follow, since, last } => {
            events::run(daemon, events::Which { follow, since, last }, json).await
        }
        Verb::Start => start::run(daemon, json).await,
        Verb::Pause { reason } => pause::run(daemon, reason, json).await,
        Verb::Resume => resume::run(daemon, json).await,
        Verb::Cancel { iteration, job } => cancel::run(daemon, iteration, job, json).await,
        Verb::Rollback { iteration, reason } => {
            rollback::run(daemon, iteration, reason, json).await
        }
        Verb::Pin { checkpoint } => pin::run(daemon, "pin", checkpoint, json).await,
        Verb::Unpin { checkpoint } => pin::run(daemon, "unpin", checkpoint, json).await,
        Verb::Doctor => doctor::run(daemon, json).await,
        Verb::Backup => backup::run(daemon, json).await,
        Verb::Train(verb) => train::run(daemon, verb, json).await,
        Verb::Jobs => jobs::run(daemon, json).await,
        Verb::Sql { statement, csv, rows_max } => {
            let form = if csv { sql::Form::Csv } else { sql::Form::of_json(json) };
            sql::run(daemon, statement, rows_max, form).await
        }
        Verb::Wait { iteration, job, timeout } => {
            let goal = wait::Goal::new(iteration, job);
            wait::run(daemon, &goal, timeout, json).await
        }
    }
}

/// Sends a command and prints what it did.
async fn command(
    daemon: &Daemon,
    verb: &str,
    command: &Command,
    json: bool,
) -> Result<(), ClientError> {
    let done: Done = daemon.post(&format!("/v1/{verb}"), command).await?;
    if json { render::json(&done) } else { render::line(&done.message) }
}

/// Tells the lines that an upload left out, on standard error.
fn tell_left_out(bad: u64, lines: &[BadLine]) {
    for line in lines {
        render::warn(&format!("line {}: {} (left out)", line.line, line.reason));
    }
    let more = bad.saturating_sub(lines.len() as u64);
    if more > 0 {
        render::warn(&format!("and {} more left out", format::counted(more, "line")));
    }
}
