//! `sql`: one statement that reads, on a read-only connection of its own, under the store's authorizer,
//! with ceilings on rows, bytes and time.

use actix_web::{HttpRequest, web};
use rlhfd_domain::limits::SQL_ANSWER_BYTES_MAX;
use rlhfd_protocol::control::Sql;
use rlhfd_store::{SqlError, SqlLimits, SqlReader};

use super::{Shared, asked, place};
use crate::listener::answer::{encoded, ok_encoded};
use crate::listener::{Answer, Refusal, json};

/// `POST /v1/sql`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    let sql: Sql = json(&mut payload).await?;
    let place = place(&shared.sql, "SQL questions", &request)?;
    let control = shared.app.config.borrow().control.clone();
    let rows = u64::from(sql.rows_max.unwrap_or(u32::MAX)).min(control.sql_rows_max);
    let limits = SqlLimits {
        rows: u32::try_from(rows).unwrap_or(u32::MAX),
        bytes: SQL_ANSWER_BYTES_MAX,
        time_ms: control.sql_time_ms,
    };
    let state = shared.app.places.state.clone();
    let answer = actix_web::rt::task::spawn_blocking(move || {
        let _place = place;
        let mut reader = SqlReader::open(&state).map_err(SqlError::Store)?;
        reader.query(&sql.sql, limits).map(encoded)
    });
    match answer.await {
        Ok(Ok(json)) => ok_encoded(json),
        Ok(Err(error)) => Err(Refusal::sql(asked(&request), &error)),
        Err(_) => Err(Refusal::new(
            500,
            "the statement ended its thread",
            asked(&request),
            "the daemon's log says more",
        )),
    }
}
