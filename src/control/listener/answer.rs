//! Answers: JSON for what went well, one JSON shape for every error.

use std::error::Error;
use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use rlhfd_protocol::control::{ErrorBody, ErrorDetail, Table};
use rlhfd_store::{SqlAnswer, SqlError, SqlValue, StoreError};
use serde::Serialize;
use serde_json::Value;

use crate::handles::AskError;

/// What a verb returns.
pub type Answer = Result<HttpResponse, Refusal>;

/// An error as the peer sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    status: StatusCode,
    detail: Box<ErrorDetail>,
    retry_after_s: Option<u32>,
}

impl Refusal {
    /// A refusal with what, where and how to mend it.
    pub fn new(
        status: u16,
        what: impl Into<String>,
        place: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::with(status, ErrorDetail::new(what, place, mend))
    }

    /// A refusal with a detail that is made already.
    pub fn with(status: u16, detail: ErrorDetail) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, detail: Box::new(detail), retry_after_s: None }
    }

    /// The same, with a word on when to come again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// What an actor or the store said, about the thing at `place`.
    pub fn ask(place: impl Into<String>, error: &AskError) -> Self {
        let place = place.into();
        match error {
            AskError::Busy => {
                Self::new(503, "the daemon is busy", place, "try again in a second").retry_after(1)
            }
            AskError::Gone => {
                Self::new(503, "the daemon is stopping", place, "try again once it is back")
                    .retry_after(5)
            }
            AskError::Store(error) => Self::store(place, error),
            AskError::Refused(sentence) => Self::sentence(409, place, sentence),
        }
    }

    /// What the store said, about the thing at `place`.
    pub fn store(place: impl Into<String>, error: &StoreError) -> Self {
        let status = match error {
            StoreError::NotFound { .. } => 404,
            StoreError::Conflict { .. }
            | StoreError::AlreadyFinished { .. }
            | StoreError::Illegal(_) => 409,
            StoreError::Misfit { .. } => 422,
            StoreError::Busy { .. } => 503,
            StoreError::Disk { .. } => 507,
            _ => 500,
        };
        let refusal = Self::sentence(status, place, &chain(error));
        if status == 503 { refusal.retry_after(1) } else { refusal }
    }

    /// What came of a question in SQL.
    pub fn sql(place: impl Into<String>, error: &SqlError) -> Self {
        let status = match error {
            SqlError::Refused { .. } => 403,
            SqlError::Statement { .. } | SqlError::TooSlow { .. } => 400,
            SqlError::Store(error) => return Self::store(place, error),
        };
        let text = error.to_string();
        let (what, mend) = match error {
            SqlError::TooSlow { .. } => {
                text.split_once(": ").unwrap_or((&text, "add a WHERE or a LIMIT"))
            }
            _ => (text.as_str(), "send one SELECT; the README describes the tables and views"),
        };
        Self::new(status, what, place, mend)
    }

    /// From a sentence of ours whose second half says what to do.
    fn sentence(status: u16, place: impl Into<String>, sentence: &str) -> Self {
        let (what, mend) = sentence
            .split_once("; ")
            .or_else(|| sentence.split_once(": "))
            .filter(|(_, mend)| !mend.trim().is_empty())
            .unwrap_or((
                sentence.trim_end_matches([':', ';', ' ']),
                "`rlhfctl status` and `rlhfctl events` say more",
            ));
        Self::new(status, what, place, mend)
    }

    /// What, where and how to mend it.
    #[must_use]
    pub fn detail(&self) -> &ErrorDetail {
        &self.detail
    }

    /// The same, about another thing.
    #[must_use]
    pub fn at(mut self, place: String) -> Self {
        self.detail.place = place;
        self
    }

    /// Whether the very same bytes would be refused again.
    #[must_use]
    pub fn is_about_content(&self) -> bool {
        self.status == StatusCode::UNPROCESSABLE_ENTITY
    }

    /// The response.
    pub fn into_answer(self) -> HttpResponse {
        self.error_response()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.detail.fmt(f)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after_s {
            answer.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        answer.json(ErrorBody { error: (*self.detail).clone() })
    }
}

impl actix_web::Responder for Refusal {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        self.error_response()
    }
}

/// A JSON answer.
pub fn ok<T: Serialize>(value: &T) -> Answer {
    Ok(HttpResponse::Ok().json(value))
}

/// A result as the bytes of its JSON. Of a large one that takes a while: where it was read, and not on the
/// thread that all connections share.
pub fn encoded(answer: SqlAnswer) -> Vec<u8> {
    // Names, numbers and texts: it cannot fail.
    serde_json::to_vec(&table(answer)).unwrap_or_default()
}

/// An answer of such bytes.
pub fn ok_encoded(json: Vec<u8>) -> Answer {
    Ok(HttpResponse::Ok().content_type(header::ContentType::json()).body(json))
}

fn table(answer: SqlAnswer) -> Table {
    let rows = answer.rows.into_iter().map(|row| row.into_iter().map(value).collect()).collect();
    Table { columns: answer.columns, rows, truncated: answer.truncated }
}

fn value(value: SqlValue) -> Value {
    match value {
        SqlValue::Null => Value::Null,
        SqlValue::Integer(n) => n.into(),
        // JSON has no infinities; a number that is none becomes null.
        SqlValue::Real(x) => x.into(),
        SqlValue::Text(text) => text.into(),
        SqlValue::Blob(bytes) => hex(&bytes).into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An error with its causes, the outermost first.
fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let word = error.to_string();
        if !text.contains(&word) {
            text.push_str(&format!(" ({word})"));
        }
        cause = error.source();
    }
    text
}

/// A query that cannot be read is answered in our shape.
pub(super) fn query_config() -> web::QueryConfig {
    web::QueryConfig::default().error_handler(|error, request| {
        let what = match &error {
            actix_web::error::QueryPayloadError::Deserialize(e) => e.to_string(),
            other => other.to_string(),
        };
        let query: String = request.query_string().chars().take(200).collect();
        let mend = "the table in `GET /v1` names the keys of each query";
        Refusal::new(400, format!("the query cannot be read: {what}"), query, mend).into()
    })
}

/// So is a path.
pub(super) fn path_config() -> web::PathConfig {
    web::PathConfig::default().error_handler(|error, request| {
        let path: String = request.path().chars().take(200).collect();
        let mend = "`GET /v1` lists what there is";
        Refusal::new(400, format!("the path cannot be read: {error}"), path, mend).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_daemon_says_when_to_come_again() {
        let answer = Refusal::ask("POST /v1/start", &AskError::Busy).into_answer();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers().get(header::RETRY_AFTER).unwrap(), "1");
    }

    #[test]
    fn a_sentence_of_an_actor_becomes_what_and_mend() {
        let said = AskError::Refused("no run is open; name a policy in [run]".to_owned());
        let refusal = Refusal::ask("POST /v1/start", &said);
        assert_eq!(refusal.status, StatusCode::CONFLICT);
        assert_eq!(refusal.detail.what, "no run is open");
        assert_eq!(refusal.detail.mend, "name a policy in [run]");
        let said = AskError::Refused("the run main is not open yet: ".to_owned());
        let refusal = Refusal::ask("POST /v1/start", &said);
        assert_eq!(refusal.detail.what, "the run main is not open yet");
        assert!(!refusal.detail.mend.is_empty());
    }

    #[test]
    fn values_become_json() {
        let row = [
            SqlValue::Null,
            SqlValue::Integer(-1),
            SqlValue::Real(0.5),
            SqlValue::Real(f64::INFINITY),
            SqlValue::Text("é".into()),
            SqlValue::Blob(vec![0, 255]),
        ];
        let values: Vec<Value> = row.into_iter().map(value).collect();
        let expected = serde_json::json!([null, -1, 0.5, null, "é", "00ff"]);
        assert_eq!(Value::Array(values), expected);
    }
}
