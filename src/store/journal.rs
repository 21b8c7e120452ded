//! The journal: what happens to attempts, and what a unit is after it.
//!
//! In: what happened to an attempt. Out: the unit's row after `domain::unit::next`, with everything
//! that follows from it in the same transaction: the halves of a split, the rows of an item that was
//! set aside, the pause of a run, the event that tells it. Intent is written before effect, outcome
//! after; nothing else is replayed.
//! May not enter: what a unit gives (`generate`, `labels`, `preferences`, `train`, …), scheduling.

use rlhfd_domain::unit::{Blame, next};
use rlhfd_domain::{
    AttemptId, BatchPlan, Cause, Effect, Event, LeaseId, RunId, State, Unit, UnitId, UploadId,
    limits,
};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{Result, StoreError};
use crate::events::Level;
use crate::open::Store;
use crate::rows::{int, message};
use crate::runs::{PausedBy, pause};
use crate::units::{Attempt, Finish, NewUnit, Recovered, UnitRow, get, insert, tell};
use crate::{device_events, leases, publish, set_aside};

impl Store {
    /// Plans units outside an iteration's start, such as a probe. A key that stands already is kept
    /// as it is.
    pub fn add_units(&mut self, run: RunId, units: &[NewUnit], now_ms: i64) -> Result<Vec<UnitId>> {
        self.transact(|conn| {
            units
                .iter()
                .map(|unit| {
                    let known: Option<i64> = conn
                        .query_row(
                            "SELECT id FROM units WHERE run_id = ?1 AND key = ?2",
                            params![run.get(), unit.key],
                            |row| row.get(0),
                        )
                        .optional()?;
                    match known {
                        Some(id) => Ok(UnitId(id)),
                        None => insert(conn, run, None, None, unit, now_ms),
                    }
                })
                .collect()
        })
    }

    /// Begins an attempt at an open unit. `lease` is none where control does the work itself.
    pub fn lease_unit(
        &mut self,
        unit: UnitId,
        lease: Option<LeaseId>,
        now_ms: i64,
    ) -> Result<Attempt> {
        self.transact(|conn| {
            let row = get(conn, unit)?;
            let number: u32 = conn
                .prepare_cached(
                    "SELECT coalesce(max(number), 0) + 1 FROM attempts WHERE unit_id = ?1",
                )?
                .query_row([unit.get()], |row| row.get(0))?;
            conn.prepare_cached(
                "INSERT INTO attempts (unit_id, lease_id, number, started_ms)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![unit.get(), lease.map(LeaseId::get), number, now_ms])?;
            let attempt = AttemptId(conn.last_insert_rowid());
            apply(conn, &row, Event::Leased(attempt), now_ms)?;
            Ok(Attempt { id: attempt, number })
        })
    }

    /// A train unit's attempt saved its state at this step.
    pub fn unit_progressed(&mut self, unit: UnitId, attempt: AttemptId, step: u64) -> Result<()> {
        self.transact(|conn| {
            let row = get(conn, unit)?;
            apply(conn, &row, Event::Progressed(attempt, step), 0)?;
            Ok(())
        })
    }

    /// The attempt's worker died.
    pub fn unit_died(
        &mut self,
        unit: UnitId,
        attempt: AttemptId,
        cause: Cause,
        message: &str,
        now_ms: i64,
    ) -> Result<Effect> {
        let end = End {
            outcome: "died",
            cause: cause.label(),
            counted: Some(cause.is_counted()),
            message,
        };
        self.transact(|conn| conclude(conn, unit, Event::Died(attempt, cause), &end, now_ms))
    }

    /// The worker refused the unit's input as a whole.
    pub fn unit_refused(
        &mut self,
        unit: UnitId,
        attempt: AttemptId,
        message: &str,
        now_ms: i64,
    ) -> Result<Effect> {
        let end = End { outcome: "failed", cause: "input", counted: Some(true), message };
        self.transact(|conn| conclude(conn, unit, Event::Refused(attempt), &end, now_ms))
    }

    /// A write of the worker failed: the place is to blame, not the unit.
    pub fn unit_disk_failed(
        &mut self,
        unit: UnitId,
        attempt: AttemptId,
        message: &str,
        now_ms: i64,
    ) -> Result<Effect> {
        let end = End { outcome: "failed", cause: "disk", counted: Some(false), message };
        self.transact(|conn| conclude(conn, unit, Event::DiskFailed(attempt), &end, now_ms))
    }

    /// The attempt was given back on purpose.
    pub fn unit_returned(
        &mut self,
        unit: UnitId,
        attempt: AttemptId,
        message: &str,
        now_ms: i64,
    ) -> Result<Effect> {
        let end = End { outcome: "cancelled", cause: "returned", counted: Some(false), message };
        self.transact(|conn| conclude(conn, unit, Event::Returned(attempt), &end, now_ms))
    }

    /// Nobody wants the unit any more.
    pub fn cancel_unit(&mut self, unit: UnitId, now_ms: i64) -> Result<()> {
        self.transact(|conn| cancel(conn, unit, now_ms))
    }

    /// At start: whatever was under way when the daemon ended did not finish. A restart counts
    /// against nobody.
    pub fn recover(&mut self, now_ms: i64) -> Result<Recovered> {
        self.transact(|conn| {
            let open: Vec<(i64, i64)> = conn
                .prepare("SELECT unit_id, id FROM attempts WHERE ended_ms IS NULL ORDER BY id")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (unit, attempt) in &open {
                let end = End {
                    outcome: "died",
                    cause: Cause::Restart.label(),
                    counted: Some(false),
                    message: "the daemon was started anew",
                };
                let event = Event::Died(AttemptId(*attempt), Cause::Restart);
                conclude(conn, UnitId(*unit), event, &end, now_ms)?;
            }
            let uploads: Vec<i64> = conn
                .prepare("SELECT id FROM uploads WHERE state = 'open'")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for upload in &uploads {
                publish::fail(conn, UploadId(*upload), now_ms)?;
            }
            let leases = leases::close_all(conn, "restart", now_ms)?;
            Ok(Recovered { units: open.len() as u64, uploads: uploads.len() as u64, leases })
        })
    }
}

/// How an attempt ended without giving what it should.
pub(crate) struct End<'a> {
    pub outcome: &'static str,
    pub cause: &'static str,
    pub counted: Option<bool>,
    pub message: &'a str,
}

/// Ends a finished attempt and its unit. Called first by every `finish_…`, whose rows follow in the
/// same transaction.
pub(crate) fn finish(conn: &Connection, finish: &Finish, now_ms: i64) -> Result<UnitRow> {
    let row = get(conn, finish.unit)?;
    if row.state == State::Done.label() {
        return Err(StoreError::AlreadyFinished { unit: finish.unit });
    }
    apply(conn, &row, Event::Finished(finish.attempt), now_ms)?;
    conn.prepare_cached(
        "UPDATE attempts SET ended_ms = ?2, outcome = 'finished', counted = 0 WHERE id = ?1",
    )?
    .execute(params![finish.attempt.get(), now_ms])?;
    conn.prepare_cached("UPDATE units SET tokens = ?2, seconds = ?3 WHERE id = ?1")?
        .execute(params![finish.unit.get(), int(finish.tokens), finish.seconds])?;
    Ok(row)
}

/// Cancels an open or running unit with its attempt; a closed one stays as it is.
pub(crate) fn cancel(conn: &Connection, unit: UnitId, now_ms: i64) -> Result<()> {
    let row = get(conn, unit)?;
    if row.state != "open" && row.state != "running" {
        return Ok(());
    }
    apply(conn, &row, Event::Cancelled, now_ms)?;
    conn.execute(
        "UPDATE attempts SET ended_ms = ?2, outcome = 'cancelled', cause = 'cancelled', counted = 0
         WHERE unit_id = ?1 AND ended_ms IS NULL",
        params![unit.get(), now_ms],
    )?;
    Ok(())
}

/// Opens a done unit again: its finished attempt gave nothing after all, and counts against nobody.
pub(crate) fn spoil(conn: &Connection, row: &UnitRow, why: &str, now_ms: i64) -> Result<()> {
    apply(conn, row, Event::Spoiled, now_ms)?;
    conn.execute(
        "UPDATE attempts SET outcome = 'failed', cause = 'unsound', counted = 0, message = ?2
         WHERE unit_id = ?1 AND outcome = 'finished'",
        params![row.id.get(), message(why)],
    )?;
    Ok(())
}

/// Ends an attempt that gave nothing, and its unit by its own rules.
pub(crate) fn conclude(
    conn: &Connection,
    unit: UnitId,
    event: Event,
    end: &End<'_>,
    now_ms: i64,
) -> Result<Effect> {
    let row = get(conn, unit)?;
    let effect = apply(conn, &row, event, now_ms)?;
    let counted = end.counted.map(|counted| counted && !matches!(effect, Effect::Smaller(_)));
    conn.execute(
        "UPDATE attempts SET ended_ms = ?2, outcome = ?3, cause = ?4, counted = ?5, message = ?6
         WHERE unit_id = ?1 AND ended_ms IS NULL",
        params![unit.get(), now_ms, end.outcome, end.cause, counted, message(end.message)],
    )?;
    let told =
        format!("unit {}: the attempt {} ({}): {}", row.key, end.outcome, end.cause, end.message);
    tell(conn, &row, Level::Warn, &format!("attempt_{}", end.outcome), told, now_ms)?;
    follow(conn, &row, effect, end.message, now_ms)?;
    Ok(effect)
}

/// The unit's row after an event, by the one function that decides it.
fn apply(conn: &Connection, row: &UnitRow, event: Event, now_ms: i64) -> Result<Effect> {
    let running: Option<i64> = conn
        .prepare_cached("SELECT id FROM attempts WHERE unit_id = ?1 AND ended_ms IS NULL LIMIT 1")?
        .query_row([row.id.get()], |row| row.get(0))
        .optional()?;
    let state = match (row.state.as_str(), running) {
        ("open", _) => State::Open,
        ("running", Some(attempt)) => State::Running(AttemptId(attempt)),
        ("done", _) => State::Done,
        ("set_aside", _) => State::SetAside,
        ("split", _) => State::Split,
        ("cancelled", _) => State::Cancelled,
        (other, _) => {
            return Err(StoreError::Misfit {
                unit: row.id,
                why: format!("it is {other}, and no attempt of it is"),
            });
        }
    };
    let unit = Unit {
        id: row.id,
        work: row.work,
        plan: row.plan,
        micro_batch: row.micro_batch,
        state,
        deaths: row.deaths,
        outside_deaths: row.outside_deaths,
        last_step: row.last_step,
    };
    let after = next(unit, event)?;
    let ended = after.unit.state.is_closed().then_some(now_ms);
    conn.prepare_cached(
        "UPDATE units SET state = ?2, deaths = ?3, outside_deaths = ?4, last_step = ?5,
                          ended_ms = ?6, batch_items = ?7, replanned = ?8 WHERE id = ?1",
    )?
    .execute(params![
        row.id.get(),
        after.unit.state.label(),
        after.unit.deaths,
        after.unit.outside_deaths,
        after.unit.last_step.map(int),
        ended,
        after.unit.plan.map(|plan| plan.batch_items).or(after.unit.micro_batch).map(int),
        after.unit.plan.is_some_and(|plan| plan.replanned),
    ])?;
    Ok(after.effect)
}

/// What follows from an event beside the unit's own row.
fn follow(conn: &Connection, row: &UnitRow, effect: Effect, why: &str, now_ms: i64) -> Result<()> {
    match effect {
        Effect::Nothing | Effect::PlaceFailed => Ok(()),
        Effect::Smaller(together) => {
            device_events::out_of_memory(conn, row.id, together, why, now_ms)?;
            let told = format!(
                "unit {} ran out of memory: it is tried again with {together} at once",
                row.key
            );
            tell(conn, row, Level::Warn, "unit_smaller", told, now_ms)
        }
        Effect::Split(left, right) => {
            for half in [left, right] {
                let unit = half_of(row, half);
                let id = insert(conn, row.run, row.iteration, row.job, &unit, now_ms)?;
                conn.execute(
                    "UPDATE units SET split_from = ?2 WHERE id = ?1",
                    params![id.get(), row.id.get()],
                )?;
            }
            let told = format!("unit {} is split at item {}", row.key, right.from);
            tell(conn, row, Level::Warn, "unit_split", told, now_ms)
        }
        Effect::SetAside(blame) => {
            let reason = reason(blame, why);
            conn.execute(
                "UPDATE units SET reason = ?2 WHERE id = ?1",
                params![row.id.get(), reason],
            )?;
            set_aside::items_of(conn, row, blame.label())?;
            let told = format!("unit {} is set aside: {reason}", row.key);
            tell(conn, row, Level::Error, "unit_set_aside", told, now_ms)
        }
        Effect::Pause(blame) => {
            let told = format!("unit {}: {}", row.key, reason(blame, why));
            pause(conn, row.run, PausedBy::Daemon, &told, now_ms)
        }
    }
}

fn half_of(row: &UnitRow, half: BatchPlan) -> NewUnit {
    let stem = row.key.rsplit_once('/').map_or(row.key.as_str(), |(stem, _)| stem);
    NewUnit {
        stage: row.stage,
        work: row.work,
        lane: row.lane.clone(),
        key: format!("{stem}/{}-{}", half.from, half.to),
        plan: Some(half),
        micro_batch: None,
        policy: row.policy,
        scorer: row.scorer,
        detail: row.detail.clone(),
    }
}

fn reason(blame: Blame, why: &str) -> String {
    let rule = match blame {
        Blame::Deaths(_) => format!("{} counted deaths", limits::COUNTED_DEATHS_MAX),
        Blame::OutsideDeaths(_) => format!("{} deaths from outside", limits::OUTSIDE_DEATHS_MAX),
        Blame::Refused => "its input was refused".to_owned(),
    };
    message(&format!("{}: {rule}, the last: {why}", blame.label()))
}
