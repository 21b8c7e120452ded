//! The reference of an iteration: found at its start, frozen in its row, and what is not known under
//! it of earlier iterations.
//!
//! In: a run, a rule. Out: a checkpoint, or the moving average that has to be made first. All of it
//! follows from the head's line of parents: a checkpoint that the gate rejected, that is not sound (or
//! whose files are removed, which is told) or that a rollback left behind is no part of it. May not enter:
//! weights, when an iteration starts.

use rlhfd_domain::train::{History, ReferenceRule, last_multiple};
use rlhfd_domain::{CheckpointId, RunId};
use rusqlite::{Connection, OptionalExtension, params};

use crate::checkpoints::{self, Checkpoint, NewCheckpoint};
use crate::error::{Result, StoreError};
use crate::events::{Level, NewEvent, append};
use crate::items::reference_of;
use crate::journal::finish;
use crate::open::{Reader, Store};
use crate::rows::{count, message};
use crate::runs::{self, Run};
use crate::units::{Finish, UnitRow, tell};

/// What an iteration that began now would be held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextReference {
    /// This checkpoint.
    Stands(CheckpointId),
    /// A moving average that has to be made first, or one on the way to it.
    Missing(Average),
}

/// A moving average to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Average {
    /// The iteration that trained the policy.
    pub iteration: u32,
    /// The policy.
    pub policy: CheckpointId,
    /// The average up to the policy before it, or the policy that the run began with.
    pub before: CheckpointId,
}

/// The pairs of an earlier iteration whose log-probs under a new reference are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Which iteration collected them.
    pub iteration: u32,
    /// They lie in ordinals from..to of its draw.
    pub from: u64,
    /// The end.
    pub to: u64,
}

/// A policy of a line of parents.
struct InLine {
    id: CheckpointId,
    iteration: u32,
    /// Its files are there.
    sound: bool,
}

/// The line of parents from a policy on, newest first, up to iteration `last`, without what the gate
/// rejected; it ends before the run's initial policy, which has no number.
fn line(conn: &Connection, run: &Run, from: CheckpointId, last: u32) -> Result<Vec<InLine>> {
    let mut statement = conn.prepare_cached(
        "WITH RECURSIVE line(id, parent_id, iteration, rejected, sound, depth) AS (
            SELECT c.id, c.parent_id, c.iteration, c.rejected, c.sound, 0
            FROM checkpoints c WHERE c.id = ?1
            UNION ALL
            SELECT c.id, c.parent_id, c.iteration, c.rejected, c.sound, line.depth + 1
            FROM line JOIN checkpoints c ON c.id = line.parent_id WHERE line.id <> ?2)
         SELECT id, iteration, sound FROM line
         WHERE id <> ?2 AND rejected = 0 AND iteration <= ?3 ORDER BY depth",
    )?;
    let rows = statement.query_map(params![from.get(), run.initial.get(), last], |row| {
        Ok(InLine { id: CheckpointId(row.get(0)?), iteration: row.get(1)?, sound: row.get(2)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The last iteration whose policy may be what iteration `number` is held to; none where the reference
/// never moves.
fn last(rule: ReferenceRule, number: u32) -> Option<u32> {
    match rule {
        ReferenceRule::Fixed => None,
        ReferenceRule::Every(every) => Some(last_multiple(number, every)),
        ReferenceRule::Average => Some(u32::MAX),
    }
}

/// What iteration `number` is held to.
pub(crate) fn of(
    conn: &Connection,
    run: &Run,
    rule: ReferenceRule,
    number: u32,
) -> Result<NextReference> {
    let Some(last) = last(rule, number) else { return Ok(NextReference::Stands(run.reference)) };
    let mut sound = line(conn, run, run.head, last)?.into_iter().filter(|policy| policy.sound);
    if rule != ReferenceRule::Average {
        return Ok(NextReference::Stands(sound.next().map_or(run.initial, |policy| policy.id)));
    }
    let mut missing = None;
    for policy in sound {
        match average_of(conn, policy.id)? {
            Some(before) => return Ok(stands_or_follows(before, missing)),
            None => missing = Some((policy.id, policy.iteration)),
        }
    }
    Ok(stands_or_follows(run.initial, missing))
}

/// The oldest average that is missing is made first.
fn stands_or_follows(before: CheckpointId, missing: Option<(CheckpointId, u32)>) -> NextReference {
    match missing {
        None => NextReference::Stands(before),
        Some((policy, iteration)) => NextReference::Missing(Average { iteration, policy, before }),
    }
}

/// The moving average up to a policy.
///
/// Errors: `Conflict` where its folder is not sound.
fn average_of(conn: &Connection, policy: CheckpointId) -> Result<Option<CheckpointId>> {
    let id: Option<i64> = conn
        .prepare_cached("SELECT id FROM checkpoints WHERE kind = 'reference' AND parent_id = ?1")?
        .query_row([policy.get()], |row| row.get(0))
        .optional()?;
    let Some(id) = id.map(CheckpointId) else { return Ok(None) };
    let Checkpoint { sound, name, path, .. } = checkpoints::get(conn, id)?;
    if sound {
        return Ok(Some(id));
    }
    let why =
        format!("is not sound, and the next iteration is held to it: restore its folder {path}");
    Err(StoreError::Conflict { what: "checkpoint", name, why })
}

/// Of the pairs that an update trains on beside its own: where log-probs under its reference are
/// missing. Those of an iteration that had the same reference were asked for then, unless they went with
/// its files, which somebody brought back.
pub(crate) fn replayed(
    conn: &Connection,
    (run, iteration, reference): (RunId, u32, CheckpointId),
    history: History,
) -> Result<Vec<Replayed>> {
    if history == History::Newest {
        return Ok(Vec::new());
    }
    let mut statement = conn.prepare_cached(
        "SELECT f.iteration, min(f.ordinal), max(f.ordinal) + 1
         FROM iterations i JOIN preferences f ON f.run_id = i.run_id AND f.iteration = i.iteration
         WHERE i.run_id = ?1 AND i.iteration < ?2 AND i.cancelled_ms IS NULL
           AND (i.reference_id <> ?3
                OR (SELECT logprobs_swept IS NOT NULL FROM checkpoints WHERE id = ?3))
           AND (NOT EXISTS (SELECT 1 FROM reference_logprobs k
                    WHERE k.response_id = f.chosen_id AND k.reference_id = ?3)
                OR NOT EXISTS (SELECT 1 FROM reference_logprobs k
                    WHERE k.response_id = f.rejected_id AND k.reference_id = ?3))
         GROUP BY f.iteration ORDER BY f.iteration",
    )?;
    let rows = statement.query_map(params![run.get(), iteration, reference.get()], |row| {
        Ok(Replayed { iteration: row.get(0)?, from: count(row.get(1)?), to: count(row.get(2)?) })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Tells of each policy that iteration `number` would be held to, were its files there: once for what stands
/// in its place.
pub(crate) fn tell_passed_over(
    conn: &Connection,
    run: &Run,
    (rule, number): (ReferenceRule, u32),
    instead: CheckpointId,
    now_ms: i64,
) -> Result<()> {
    let Some(last) = last(rule, number) else { return Ok(()) };
    let instead = checkpoints::get(conn, instead)?.name;
    let so = format!("{instead} is the reference in its place");
    tell_missing(conn, run, line(conn, run, run.head, last)?, &so, now_ms)
}

/// Tells of each policy that a new moving average leaves out.
fn tell_left_out(conn: &Connection, run: &Run, new: &NewCheckpoint, now_ms: i64) -> Result<()> {
    let Some(policy) = new.parent else { return Ok(()) };
    let Some(before) = checkpoints::get(conn, policy)?.parent else { return Ok(()) };
    let so = format!("{} is made without it", new.name);
    tell_missing(conn, run, line(conn, run, before, u32::MAX)?, &so, now_ms)
}

/// Those of a line before the first that is sound.
fn tell_missing(
    conn: &Connection,
    run: &Run,
    line: Vec<InLine>,
    so: &str,
    now_ms: i64,
) -> Result<()> {
    for policy in line.into_iter().take_while(|policy| !policy.sound) {
        let Checkpoint { name, path, .. } = checkpoints::get(conn, policy.id)?;
        let text = format!(
            "the files of checkpoint {name} are not there, and {so}; where that is not wanted, bring its \
             folder {path} back and start the daemon again"
        );
        append_once(conn, run.id, &text, now_ms)?;
    }
    Ok(())
}

fn append_once(conn: &Connection, run: RunId, text: &str, now_ms: i64) -> Result<()> {
    let event = NewEvent { level: Level::Warn, ..NewEvent::of(run, "reference_passed_over", text) };
    let told: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM events WHERE kind = ?1 AND run_id = ?2 AND message = ?3)",
        )?
        .query_row(params![event.kind, run.get(), message(text)], |row| row.get(0))?;
    if !told {
        append(conn, &event, now_ms)?;
    }
    Ok(())
}

impl Reader {
    /// What an iteration that began now would be held to.
    ///
    /// Errors: `Conflict` where an average that stands is not sound.
    pub fn next_reference(&self, run: RunId, rule: ReferenceRule) -> Result<NextReference> {
        let (number, _) = self.iterations_so_far(run)?;
        of(&self.conn, &runs::get(&self.conn, run)?, rule, number + 1)
    }

    /// The reference that a unit's log-probs are taken under: its iteration's.
    pub fn reference_of(&self, unit: &UnitRow) -> Result<CheckpointId> {
        reference_of(&self.conn, unit)
    }
}

impl Store {
    /// A finished unit that made a moving average: its row.
    pub fn finish_average(
        &mut self,
        end: &Finish,
        new: &NewCheckpoint,
        now_ms: i64,
    ) -> Result<CheckpointId> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let id = checkpoints::insert(conn, unit.run, None, unit.id, new, now_ms)?;
            tell_left_out(conn, &runs::get(conn, unit.run)?, new, now_ms)?;
            let text = format!("reference {} stands at {}", new.name, new.path);
            tell(conn, &unit, Level::Info, "reference", text, now_ms)?;
            Ok(id)
        })
    }
}
