//! Events: what happened, for people and for SQL. Recovery never reads them.
//!
//! In: what to tell. Out: rows in the order in which they were told. May not enter: decisions.

use rlhfd_domain::{EventId, RunId, UnitId, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::Result;
use crate::open::{Reader, Store};
use crate::rows::message;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A state changed.
    Info,
    /// Handled, but look.
    Warn,
    /// Something waits for a person.
    Error,
}

impl Level {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// An event to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// How much it matters.
    pub level: Level,
    /// A word that SQL can group by.
    pub kind: String,
    /// Of which run.
    pub run: Option<RunId>,
    /// Of which iteration.
    pub iteration: Option<u32>,
    /// Of which unit.
    pub unit: Option<UnitId>,
    /// Of the peer whose request it was.
    pub uid: Option<u32>,
    /// A sentence.
    pub message: String,
    /// JSON.
    pub data: Option<String>,
}

impl NewEvent {
    /// An event of level info that concerns a run.
    pub fn of(run: RunId, kind: &str, message: impl Into<String>) -> Self {
        Self { run: Some(run), ..Self::about(kind, message) }
    }

    /// An event of level info that concerns the state folder.
    pub fn about(kind: &str, message: impl Into<String>) -> Self {
        Self {
            level: Level::Info,
            kind: kind.to_owned(),
            run: None,
            iteration: None,
            unit: None,
            uid: None,
            message: message.into(),
            data: None,
        }
    }
}

/// A row of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its row: events are read on from here.
    pub id: EventId,
    /// When.
    pub at_ms: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// A word that SQL can group by.
    pub kind: String,
    /// The run's name.
    pub run: Option<String>,
    /// Of which iteration.
    pub iteration: Option<u32>,
    /// Of which unit.
    pub unit: Option<UnitId>,
    /// Of the peer whose request it was.
    pub uid: Option<u32>,
    /// A sentence.
    pub message: String,
    /// JSON.
    pub data: Option<String>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        id: EventId(row.get(0)?),
        at_ms: row.get(1)?,
        level: row.get(2)?,
        kind: row.get(3)?,
        run: row.get(4)?,
        iteration: row.get(5)?,
        unit: row.get::<_, Option<i64>>(6)?.map(UnitId),
        uid: row.get(7)?,
        message: row.get(8)?,
        data: row.get(9)?,
    })
}

pub(crate) fn append(conn: &Connection, event: &NewEvent, now_ms: i64) -> Result<EventId> {
    conn.prepare_cached(
        "INSERT INTO events (at_ms, level, kind, run_id, iteration, unit_id, uid, message, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        now_ms,
        event.level.label(),
        event.kind,
        event.run.map(RunId::get),
        event.iteration,
        event.unit.map(UnitId::get),
        event.uid,
        message(&event.message),
        event.data,
    ])?;
    Ok(EventId(conn.last_insert_rowid()))
}

impl Reader {
    /// Events after `after`, oldest first, at most `rows` (and never more than a page).
    pub fn events_since(&self, after: EventId, rows: u32) -> Result<Vec<EventRow>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT e.id, e.at_ms, e.level, e.kind, r.name, e.iteration, e.unit_id, e.uid,
                    e.message, e.data
             FROM events e LEFT JOIN runs r ON r.id = e.run_id
             WHERE e.id > ?1 ORDER BY e.id LIMIT ?2",
        )?;
        let rows = statement
            .query_map(params![after.get(), rows.min(limits::EVENTS_PAGE_ROWS)], read)?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// When the oldest event was told; none before the first.
    pub fn oldest_event_ms(&self) -> Result<Option<i64>> {
        let at = self
            .conn
            .prepare_cached("SELECT at_ms FROM events ORDER BY id LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(at)
    }

    /// The newest event; 0 before the first.
    pub fn last_event(&self) -> Result<EventId> {
        let id = self
            .conn
            .prepare_cached("SELECT coalesce(max(id), 0) FROM events")?
            .query_row([], |row| row.get(0))?;
        Ok(EventId(id))
    }
}

impl Store {
    /// Appends an event of its own; those of units and runs are written with their changes.
    pub fn append_event(&mut self, event: &NewEvent, now_ms: i64) -> Result<EventId> {
        self.transact(|conn| append(conn, event, now_ms))
    }
}
