//! `checkpoints`: what the runs made, or the line from one checkpoint back to the initial policy.

use actix_web::{HttpRequest, web};
use rlhfd_store::StoreError;
use serde::Deserialize;

use super::{Shared, asked};
use crate::listener::answer::{encoded, ok_encoded};
use crate::listener::{Answer, Refusal};

/// The query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    run: Option<String>,
    lineage: Option<String>,
}

/// `GET /v1/checkpoints`
pub async fn get(
    shared: web::Data<Shared>,
    request: HttpRequest,
    query: web::Query<Query>,
) -> Answer {
    let Query { run, lineage } = query.into_inner();
    let answer = shared.app.store.read(move |reader| match lineage {
        None => reader.checkpoint_table(run.as_deref()).map(encoded),
        Some(checkpoint) => {
            let run = match run {
                Some(run) => run,
                None => reader.active_run()?.map(|run| run.name).ok_or_else(|| {
                    StoreError::NotFound { what: "checkpoint", name: checkpoint.clone() }
                })?,
            };
            reader.lineage_table(&run, &checkpoint).map(encoded)
        }
    });
    ok_encoded(answer.await.map_err(|error| Refusal::ask(asked(&request), &error))?)
}
