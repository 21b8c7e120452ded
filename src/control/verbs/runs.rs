//! `runs`: the runs of the state folder.

use actix_web::{HttpRequest, web};
use rlhfd_domain::CheckpointId;
use rlhfd_protocol::control::{Run, Runs};
use rlhfd_store::{Checkpoint, Reader, Result};

use super::{Shared, asked};
use crate::listener::answer::ok;
use crate::listener::{Answer, Refusal};

/// `GET /v1/runs`
pub async fn get(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let runs = shared.app.store.read(read).await;
    ok(&Runs { runs: runs.map_err(|error| Refusal::ask(asked(&request), &error))? })
}

fn read(reader: &Reader) -> Result<Vec<Run>> {
    let checkpoint = |id: CheckpointId| -> Result<Checkpoint> { reader.checkpoint(id) };
    let mut runs = Vec::new();
    for run in reader.runs()? {
        runs.push(Run {
            policy: checkpoint(run.initial)?.path,
            reference: checkpoint(run.reference)?.path,
            head: checkpoint(run.head)?.name,
            iterations: u64::from(reader.iterations_so_far(run.id)?.0),
            name: run.name,
            active: run.active,
            seed: run.seed,
            paused: run.paused.map(|paused| paused.reason),
            created_ms: run.created_ms,
        });
    }
    Ok(runs)
}
