//! `rlhfctl sql`: one statement that reads, through the daemon's read-only connection.

use rlhfd_protocol::control::{Sql, Table};

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::render;

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Table,
    /// The answer itself.
    Json,
    /// For other programs.
    Csv,
}

impl Form {
    /// A table, or JSON where it was asked for.
    pub fn of_json(json: bool) -> Self {
        if json { Self::Json } else { Self::Table }
    }
}

/// Asks and prints.
pub async fn run(
    daemon: &Daemon,
    statement: String,
    rows_max: Option<u32>,
    form: Form,
) -> Result<(), ClientError> {
    let result: Table = daemon.post("/v1/sql", &Sql { sql: statement, rows_max }).await?;
    match form {
        Form::Table => render::result(&result),
        Form::Json => render::json(&result),
        Form::Csv => render::csv(&result),
    }
}
