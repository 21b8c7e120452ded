//! Prompt sets: what is queued and what is fresh, from counters alone.
//!
//! In: nothing but ids. Out: `PromptSet`s and counts; no query here looks at the rows of prompts.
//! May not enter: uploads (their own module), draws (theirs).

use rlhfd_domain::{RunId, SetId, limits};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::open::Reader;
use crate::rows::count;

/// A row of `prompt_sets`, with what a run has taken from it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptSet {
    /// Its row.
    pub id: SetId,
    /// Its name.
    pub name: String,
    /// Share held back for evaluation.
    pub reserve_share: f64,
    /// Sets of a higher priority are drawn first.
    pub priority: i64,
    /// For draws from several sets.
    pub weight: f64,
    /// Published prompts, those held back among them.
    pub prompts: u64,
    /// Prompts held back for evaluation.
    pub reserved: u64,
    /// Drawn by the active run.
    pub drawn: u64,
}

pub(crate) fn fresh(conn: &Connection, run: RunId) -> Result<u64> {
    let fresh: i64 = conn
        .prepare_cached(
            "SELECT (SELECT coalesce(sum(prompts - reserved), 0) FROM prompt_sets)
                  - (SELECT coalesce(sum(drawn), 0) FROM run_sets WHERE run_id = ?1)",
        )?
        .query_row([run.get()], |row| row.get(0))?;
    Ok(count(fresh))
}

impl Reader {
    /// All sets that have published prompts, or an upload that published none, oldest first.
    pub fn prompt_sets(&self, run: Option<RunId>) -> Result<Vec<PromptSet>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT s.id, s.name, s.reserve_share, s.priority, s.weight, s.prompts, s.reserved,
                    coalesce(d.drawn, 0)
             FROM prompt_sets s LEFT JOIN run_sets d ON d.set_id = s.id AND d.run_id = ?1
             WHERE s.prompts > 0 OR EXISTS
                   (SELECT 1 FROM uploads u WHERE u.set_id = s.id AND u.state = 'published')
             ORDER BY s.id LIMIT ?2",
        )?;
        let rows = statement
            .query_map(params![run.map(RunId::get), limits::LIST_ROWS_MAX], |row| {
                Ok(PromptSet {
                    id: SetId(row.get(0)?),
                    name: row.get(1)?,
                    reserve_share: row.get(2)?,
                    priority: row.get(3)?,
                    weight: row.get(4)?,
                    prompts: count(row.get(5)?),
                    reserved: count(row.get(6)?),
                    drawn: count(row.get(7)?),
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// Prompts that the run may still draw.
    pub fn fresh_prompts(&self, run: RunId) -> Result<u64> {
        fresh(&self.conn, run)
    }

    /// When the oldest upload that still has fresh prompts was published, for `wait_max`.
    pub fn waiting_since(&self, run: RunId) -> Result<Option<i64>> {
        let since = self
            .conn
            .prepare_cached(
                "SELECT u.ended_ms FROM uploads u
                 LEFT JOIN draw_cursors c
                   ON c.run_id = ?1 AND c.reserved = 0 AND c.upload_id = u.id
                 WHERE u.published_seq IS NOT NULL AND u.kept > u.reserved
                   AND coalesce(c.exhausted, 0) = 0
                 ORDER BY u.published_seq LIMIT 1",
            )?
            .query_row([run.get()], |row| row.get(0))
            .optional()?;
        Ok(since)
    }
}
