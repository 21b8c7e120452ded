//! The `sql` verb: a person's SELECT, through a connection that can do nothing else.
//!
//! In: one statement and limits. Out: rows, cut at the limits. Three fences, each enough alone against
//! writing: the file is opened read-only, `query_only` is on, and an authorizer lets only reading
//! through. A handler ends what takes too long; lengths are bounded by SQLite's own limits.
//! May not enter: statements of ours.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rlhfd_domain::limits;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};

use crate::error::{Result, StoreError};
use crate::open::Reader;

/// Instructions of SQLite's machine between two looks at the clock: well under a millisecond.
const LOOK_EVERY: i32 = 1_000;

/// A connection for one statement at a time.
#[derive(Debug)]
pub struct SqlReader {
    conn: Connection,
}

/// How much an answer may cost; each is capped by `domain::limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlLimits {
    /// Rows.
    pub rows: u32,
    /// Bytes of all values.
    pub bytes: usize,
    /// Milliseconds.
    pub time_ms: u64,
}

impl SqlLimits {
    /// All that the ceilings allow.
    pub const CEILING: Self = Self {
        rows: limits::SQL_ROWS_MAX,
        bytes: limits::SQL_ANSWER_BYTES_MAX,
        time_ms: limits::SQL_TIME_MS_MAX,
    };
}

/// A value of SQL.
#[derive(Debug, Clone, PartialEq)]
pub enum SqlValue {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT; what is no UTF-8 is replaced.
    Text(String),
    /// BLOB.
    Blob(Vec<u8>),
}

/// What a statement gave.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlAnswer {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<SqlValue>>,
    /// Whether a limit cut the rows.
    pub truncated: bool,
}

/// Why a statement has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// It is not one SELECT.
    #[error("only one SELECT is answered here: {why}")]
    Refused {
        /// What it is instead.
        why: String,
    },
    /// It took too long.
    #[error("the statement took more than {time_ms} ms: add a WHERE or a LIMIT")]
    TooSlow {
        /// The limit.
        time_ms: u64,
    },
    /// It is no SQL that this database understands.
    #[error("SQLite: {message}")]
    Statement {
        /// SQLite's word.
        message: String,
    },
    /// The database is at fault.
    #[error(transparent)]
    Store(StoreError),
}

impl SqlReader {
    /// A connection to the database of a state folder.
    pub fn open(state: &Path) -> Result<Self> {
        let mut conn = Reader::open(state)?.conn;
        conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, limits::SQL_VALUE_BYTES_MAX)?;
        conn.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, limits::SQL_TEXT_BYTES_MAX)?;
        conn.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        conn.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, 100)?;
        conn.set_limit(Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50)?;
        conn.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
        conn.authorizer(Some(allow))?;
        Ok(Self { conn })
    }

    /// Answers one SELECT.
    pub fn query(
        &mut self,
        text: &str,
        asked: SqlLimits,
    ) -> std::result::Result<SqlAnswer, SqlError> {
        let time_ms = asked.time_ms.min(limits::SQL_TIME_MS_MAX);
        let late = Arc::new(AtomicBool::new(false));
        self.watch(time_ms, &late)?;
        let answer = self.rows(text, asked);
        // The handler must not outlive its statement.
        let unwatched = self.conn.progress_handler(0, None::<fn() -> bool>);
        if late.load(Ordering::Relaxed) {
            return Err(SqlError::TooSlow { time_ms });
        }
        unwatched.map_err(sql_error)?;
        answer
    }

    fn watch(&mut self, time_ms: u64, late: &Arc<AtomicBool>) -> std::result::Result<(), SqlError> {
        let late = Arc::clone(late);
        let started = Instant::now();
        let limit = Duration::from_millis(time_ms);
        let handler = move || {
            let over = started.elapsed() > limit;
            if over {
                late.store(true, Ordering::Relaxed);
            }
            over
        };
        self.conn.progress_handler(LOOK_EVERY, Some(handler)).map_err(sql_error)
    }

    fn rows(&self, text: &str, asked: SqlLimits) -> std::result::Result<SqlAnswer, SqlError> {
        let rows_max = usize::try_from(asked.rows.min(limits::SQL_ROWS_MAX)).unwrap_or(usize::MAX);
        let bytes_max = asked.bytes.min(limits::SQL_ANSWER_BYTES_MAX);
        let mut batch = rusqlite::Batch::new(&self.conn, text);
        let refused = |why: &str| SqlError::Refused { why: why.to_owned() };
        // SQLite would stop reading there, and say nothing of the rest.
        if text.contains('\0') {
            return Err(refused("the text holds a NUL"));
        }
        let mut statement =
            batch.next().map_err(sql_error)?.ok_or_else(|| refused("the text is empty"))?;
        if !statement.readonly() || statement.column_count() == 0 {
            return Err(refused("this statement returns no rows"));
        }
        if statement.parameter_count() > 0 {
            return Err(refused("write values in place of the parameters"));
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        if batch.next().map_err(sql_error)?.is_some() {
            return Err(refused("send one statement at a time"));
        }
        let mut answer = SqlAnswer { columns, rows: Vec::new(), truncated: false };
        let mut bytes = 0;
        let mut rows = statement.query([]).map_err(sql_error)?;
        while let Some(row) = rows.next().map_err(sql_error)? {
            if answer.rows.len() >= rows_max {
                answer.truncated = true;
                break;
            }
            let mut values = Vec::with_capacity(answer.columns.len());
            for column in 0..answer.columns.len() {
                let value = row.get_ref(column).map_err(sql_error)?;
                bytes += size(value);
                values.push(owned(value));
            }
            if bytes > bytes_max {
                answer.truncated = true;
                break;
            }
            answer.rows.push(values);
        }
        Ok(answer)
    }
}

/// Reading is allowed, and the pragmas that describe the schema; nothing else is.
fn allow(context: AuthContext<'_>) -> Authorization {
    let good = match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => true,
        AuthAction::Function { function_name } => !matches!(
            function_name.to_ascii_lowercase().as_str(),
            "load_extension" | "fts3_tokenizer" | "edit" | "readfile" | "writefile"
        ),
        AuthAction::Pragma { pragma_name, .. } => matches!(
            pragma_name.to_ascii_lowercase().as_str(),
            "table_info"
                | "table_xinfo"
                | "table_list"
                | "index_list"
                | "index_info"
                | "index_xinfo"
                | "foreign_key_list"
        ),
        _ => false,
    };
    if good { Authorization::Allow } else { Authorization::Deny }
}

fn size(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 8,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
    }
}

fn owned(value: ValueRef<'_>) -> SqlValue {
    match value {
        ValueRef::Null => SqlValue::Null,
        ValueRef::Integer(number) => SqlValue::Integer(number),
        ValueRef::Real(number) => SqlValue::Real(number),
        ValueRef::Text(bytes) => SqlValue::Text(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Blob(bytes) => SqlValue::Blob(bytes.to_vec()),
    }
}

fn sql_error(error: rusqlite::Error) -> SqlError {
    match error.sqlite_error_code() {
        Some(ErrorCode::AuthorizationForStatementDenied) => {
            SqlError::Refused { why: "this reads more than tables, or writes".to_owned() }
        }
        Some(
            ErrorCode::Unknown
            | ErrorCode::TooBig
            | ErrorCode::TypeMismatch
            | ErrorCode::OperationInterrupted
            | ErrorCode::ReadOnly
            | ErrorCode::OutOfMemory,
        )
        | None => SqlError::Statement { message: error.to_string() },
        Some(_) => SqlError::Store(StoreError::from(error)),
    }
}
