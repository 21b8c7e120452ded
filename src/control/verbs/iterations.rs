//! `iterations`: the view `iteration_history` as it stands.

use actix_web::{HttpRequest, web};
use serde::Deserialize;

use super::{Shared, asked};
use crate::listener::answer::{encoded, ok_encoded};
use crate::listener::{Answer, Refusal};

/// The query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    run: Option<String>,
}

/// `GET /v1/iterations`
pub async fn get(
    shared: web::Data<Shared>,
    request: HttpRequest,
    query: web::Query<Query>,
) -> Answer {
    let run = query.into_inner().run;
    let history =
        shared.app.store.read(move |r| r.history_table(run.as_deref()).map(encoded)).await;
    ok_encoded(history.map_err(|error| Refusal::ask(asked(&request), &error))?)
}
