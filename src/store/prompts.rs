//! Prompt sets: what is queued and what is fresh, from counters alone.
//!
//! In: ids; a set's priority and weight. Out: `PromptSet`s and counts; no query here looks at the rows
//! of prompts. May not enter: uploads (their own module), draws (theirs).

use rlhfd_domain::{Name, RunId, SetId, limits};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{Result, StoreError};
use crate::events::{NewEvent, append};
use crate::open::{Reader, Store};
use crate::rows::{count, found};

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
    /// Among sets of the same priority a draw is shared in proportion to it.
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

/// Gives a set another priority or weight, from the next draw on; none: as it is.
///
/// Errors: `Conflict` where the weight is no number above 0; `Missing` where there is no such set.
pub(crate) fn order_set(
    conn: &Connection,
    name: &Name,
    priority: Option<i64>,
    weight: Option<f64>,
) -> Result<()> {
    if weight.is_some_and(|weight| !(weight > 0.0 && weight.is_finite())) {
        let (what, name) = ("prompt set", name.to_string());
        let why = "needs a weight above 0".to_owned();
        return Err(StoreError::Conflict { what, name, why });
    }
    let changed = conn.execute(
        "UPDATE prompt_sets SET priority = coalesce(?2, priority), weight = coalesce(?3, weight)
         WHERE name = ?1",
        params![name.as_str(), priority, weight],
    )?;
    found((changed > 0).then_some(()), "prompt set", name)
}

impl Store {
    /// Gives a set another priority or weight, from the next draw on; none: as it is.
    ///
    /// Errors: `Conflict` where the weight is no number above 0; `Missing` where there is no such set.
    pub fn order_prompt_set(
        &mut self,
        name: &Name,
        (priority, weight): (Option<i64>, Option<f64>),
        uid: Option<u32>,
        now_ms: i64,
    ) -> Result<PromptSet> {
        self.transact(|conn| {
            order_set(conn, name, priority, weight)?;
            let set = sets(conn, None, Some(name))?.into_iter().next();
            let set = found(set, "prompt set", name)?;
            let text =
                format!("prompt set {name}: priority {}, weight {}", set.priority, set.weight);
            let event = NewEvent { uid, ..NewEvent::about("prompt_set_changed", text) };
            append(conn, &event, now_ms)?;
            Ok(set)
        })
    }
}

/// Sets that have published prompts, or an upload that published none, oldest first; with a name that
/// one alone, whatever it holds.
fn sets(conn: &Connection, run: Option<RunId>, name: Option<&Name>) -> Result<Vec<PromptSet>> {
    let mut statement = conn.prepare_cached(
        "SELECT s.id, s.name, s.reserve_share, s.priority, s.weight, s.prompts, s.reserved,
                coalesce(d.drawn, 0)
         FROM prompt_sets s LEFT JOIN run_sets d ON d.set_id = s.id AND d.run_id = ?1
         WHERE s.name = ?3 OR ?3 IS NULL AND (s.prompts > 0 OR EXISTS
               (SELECT 1 FROM uploads u WHERE u.set_id = s.id AND u.state = 'published'))
         ORDER BY s.id LIMIT ?2",
    )?;
    let wanted = params![run.map(RunId::get), limits::LIST_ROWS_MAX, name.map(Name::as_str)];
    let rows = statement
        .query_map(wanted, |row| {
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

impl Reader {
    /// All sets that have published prompts, or an upload that published none, oldest first.
    pub fn prompt_sets(&self, run: Option<RunId>) -> Result<Vec<PromptSet>> {
        sets(&self.conn, run, None)
    }

    /// Prompts that the run may still draw.
    pub fn fresh_prompts(&self, run: RunId) -> Result<u64> {
        fresh(&self.conn, run)
    }

    /// Prompts that the run has used and may use again, if that is asked for.
    pub fn used_prompts(&self, run: RunId) -> Result<u64> {
        let used = self
            .conn
            .prepare_cached("SELECT coalesce(sum(drawn), 0) FROM run_sets WHERE run_id = ?1")?
            .query_row([run.get()], |row| row.get(0))?;
        Ok(count(used))
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
