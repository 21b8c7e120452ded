//! Units and attempts: the journal. Intent before effect, outcome after; nothing else is replayed.
//!
//! In: what happened to an attempt. Out: the unit's row after `domain::unit::next`, with everything
//! that follows from it in the same transaction: the halves of a split, the rows of an item that was
//! set aside, the pause of a run, the event that tells it.
//! May not enter: what a unit gives (`generate`, `labels`, `preferences`, `train`, …), scheduling.

use rlhfd_domain::unit::{Blame, next};
use rlhfd_domain::{
    AttemptId, BatchPlan, Cause, CheckpointId, Effect, Event, JobId, LeaseId, RunId, ScorerId,
    Stage, State, Unit, UnitId, WorkKind, limits,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{Result, StoreError};
use crate::events::{Level, NewEvent, append};
use crate::open::{Reader, Store};
use crate::rows::{count, found, int, limit, message};
use crate::runs::{PausedBy, pause};
use crate::{leases, set_aside, uploads};

/// A unit to insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUnit {
    /// The stage that it belongs to.
    pub stage: Stage,
    /// What it does.
    pub work: WorkKind,
    /// Of evaluate: which policy answers. Empty in the main flow.
    pub lane: String,
    /// Its natural key within the run. Where it has a plan, the key ends in `/<from>-<to>`.
    pub key: String,
    /// Its items; none where it is in one piece.
    pub plan: Option<BatchPlan>,
    /// The policy that it uses; none in evaluate: what this iteration trained.
    pub policy: Option<CheckpointId>,
    /// The scorer that it uses.
    pub scorer: Option<ScorerId>,
    /// JSON of control's own.
    pub detail: Option<String>,
}

/// A row of `units`.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitRow {
    /// Its row.
    pub id: UnitId,
    /// Its run.
    pub run: RunId,
    /// Its iteration; none for a training job's unit or a probe.
    pub iteration: Option<u32>,
    /// Its training job.
    pub job: Option<JobId>,
    /// Its stage.
    pub stage: Stage,
    /// What it does.
    pub work: WorkKind,
    /// Of evaluate: which policy answers.
    pub lane: String,
    /// Its natural key within the run.
    pub key: String,
    /// Its items.
    pub plan: Option<BatchPlan>,
    /// The policy that it uses.
    pub policy: Option<CheckpointId>,
    /// The scorer that it uses.
    pub scorer: Option<ScorerId>,
    /// JSON of control's own.
    pub detail: Option<String>,
    /// `open`, `running`, `done`, `set_aside`, `split` or `cancelled`.
    pub state: String,
    /// Counted deaths since the last progress.
    pub deaths: u32,
    /// Deaths from outside.
    pub outside_deaths: u32,
    /// Of a train unit: the last saved step.
    pub last_step: Option<u64>,
    /// Why it was set aside.
    pub reason: Option<String>,
    /// What the finished attempt computed.
    pub tokens: Option<u64>,
    /// How long the finished attempt took.
    pub seconds: Option<f64>,
    /// When it was planned.
    pub created_ms: i64,
    /// When it was closed.
    pub ended_ms: Option<i64>,
}

/// An attempt that began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Its row.
    pub id: AttemptId,
    /// 1, 2, … within the unit.
    pub number: u32,
}

/// A row of `attempts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its row.
    pub id: AttemptId,
    /// Its lease; none where control did the work.
    pub lease: Option<LeaseId>,
    /// 1, 2, … within the unit.
    pub number: u32,
    /// Of a train unit: the first step that it made itself.
    pub first_step: Option<u64>,
    /// When it began.
    pub started_ms: i64,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// `finished`, `died`, `failed` or `cancelled`.
    pub outcome: Option<String>,
    /// What ended it.
    pub cause: Option<String>,
    /// What was said then.
    pub message: Option<String>,
}

/// Which attempt of which unit finished, and what it computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finish {
    /// The unit.
    pub unit: UnitId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Tokens computed.
    pub tokens: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<T> {
    /// It gave this.
    Done(T),
    /// It was refused, and trying again will not help: a word that SQL can group by, and a sentence.
    SetAside(String, String),
}

/// What a start found unfinished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Units that ran when the daemon ended; open again.
    pub units: u64,
    /// Uploads that were open; failed now.
    pub uploads: u64,
    /// Leases that were open; closed now.
    pub leases: u64,
}

const COLUMNS: &str = "u.id, u.run_id, u.iteration, u.job_id, u.stage, u.work, u.lane, u.key, \
    u.from_item, u.to_item, u.batch_items, u.replanned, u.policy_id, u.scorer_id, u.detail, \
    u.state, u.deaths, u.outside_deaths, u.last_step, u.reason, u.tokens, u.seconds, \
    u.created_ms, u.ended_ms";

fn plan_of(row: &Row<'_>) -> rusqlite::Result<Option<BatchPlan>> {
    let from: Option<i64> = row.get(8)?;
    let to: Option<i64> = row.get(9)?;
    let batch: Option<i64> = row.get(10)?;
    let replanned = row.get(11)?;
    Ok(match (from, to, batch) {
        (Some(from), Some(to), Some(batch)) => Some(BatchPlan {
            from: count(from),
            to: count(to),
            batch_items: count(batch),
            replanned,
        }),
        (_, _, _) => None,
    })
}

fn read(row: &Row<'_>) -> rusqlite::Result<(UnitRow, String, String)> {
    let unit = UnitRow {
        id: UnitId(row.get(0)?),
        run: RunId(row.get(1)?),
        iteration: row.get(2)?,
        job: row.get::<_, Option<i64>>(3)?.map(JobId),
        stage: Stage::Prompts,
        work: WorkKind::Probe,
        lane: row.get(6)?,
        key: row.get(7)?,
        plan: plan_of(row)?,
        policy: row.get::<_, Option<i64>>(12)?.map(CheckpointId),
        scorer: row.get::<_, Option<i64>>(13)?.map(ScorerId),
        detail: row.get(14)?,
        state: row.get(15)?,
        deaths: row.get(16)?,
        outside_deaths: row.get(17)?,
        last_step: row.get::<_, Option<i64>>(18)?.map(count),
        reason: row.get(19)?,
        tokens: row.get::<_, Option<i64>>(20)?.map(count),
        seconds: row.get(21)?,
        created_ms: row.get(22)?,
        ended_ms: row.get(23)?,
    };
    Ok((unit, row.get(4)?, row.get(5)?))
}

fn whole((unit, stage, work): (UnitRow, String, String)) -> Result<UnitRow> {
    Ok(UnitRow { stage: Stage::parse(&stage)?, work: WorkKind::parse(&work)?, ..unit })
}

/// Units by a condition on `units u`.
pub(crate) fn select(
    conn: &Connection,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<UnitRow>> {
    let mut statement =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM units u WHERE {condition}"))?;
    let rows = statement.query_map(values, read)?;
    rows.map(|row| whole(row?)).collect()
}

pub(crate) fn get(conn: &Connection, unit: UnitId) -> Result<UnitRow> {
    found(select(conn, "u.id = ?1", &[&unit.get()])?.pop(), "unit", unit)
}

impl Reader {
    /// A unit by its row.
    pub fn unit(&self, unit: UnitId) -> Result<UnitRow> {
        get(&self.conn, unit)
    }

    /// A unit by its natural key.
    pub fn unit_by_key(&self, run: RunId, key: &str) -> Result<Option<UnitRow>> {
        Ok(select(&self.conn, "u.run_id = ?1 AND u.key = ?2", &[&run.get(), &key])?.pop())
    }

    /// Units of an iteration in the order of planning, from after `after`.
    pub fn units_of(
        &self,
        run: RunId,
        iteration: u32,
        after: Option<UnitId>,
        rows: u32,
    ) -> Result<Vec<UnitRow>> {
        let after = after.map_or(0, UnitId::get);
        let condition = "u.run_id = ?1 AND u.iteration = ?2 AND u.id > ?3 ORDER BY u.id LIMIT ?4";
        select(&self.conn, condition, &[&run.get(), &iteration, &after, &limit(rows)])
    }

    /// Units of a training job.
    pub fn units_of_job(&self, job: JobId) -> Result<Vec<UnitRow>> {
        select(&self.conn, "u.job_id = ?1 ORDER BY u.id LIMIT 100", &[&job.get()])
    }

    /// The attempts of a unit, oldest first.
    pub fn attempts_of(&self, unit: UnitId) -> Result<Vec<AttemptRow>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id, lease_id, number, first_step, started_ms, ended_ms, outcome, cause, message
             FROM attempts WHERE unit_id = ?1 ORDER BY number LIMIT ?2",
        )?;
        let rows = statement
            .query_map(params![unit.get(), limits::LIST_ROWS_MAX], |row| {
                Ok(AttemptRow {
                    id: AttemptId(row.get(0)?),
                    lease: row.get::<_, Option<i64>>(1)?.map(LeaseId),
                    number: row.get(2)?,
                    first_step: row.get::<_, Option<i64>>(3)?.map(count),
                    started_ms: row.get(4)?,
                    ended_ms: row.get(5)?,
                    outcome: row.get(6)?,
                    cause: row.get(7)?,
                    message: row.get(8)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }
}

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
                uploads::fail(conn, rlhfd_domain::UploadId(*upload), now_ms)?;
            }
            let leases = leases::close_all(conn, "restart", now_ms)?;
            Ok(Recovered { units: open.len() as u64, uploads: uploads.len() as u64, leases })
        })
    }
}

/// How an attempt ended without giving what it should.
struct End<'a> {
    outcome: &'static str,
    cause: &'static str,
    counted: Option<bool>,
    message: &'a str,
}

pub(crate) fn insert(
    conn: &Connection,
    run: RunId,
    iteration: Option<u32>,
    job: Option<JobId>,
    unit: &NewUnit,
    now_ms: i64,
) -> Result<UnitId> {
    conn.prepare_cached(
        "INSERT INTO units (run_id, iteration, job_id, stage, work, lane, key, from_item, to_item,
                            batch_items, replanned, policy_id, scorer_id, detail, state, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 'open', ?15)",
    )?
    .execute(params![
        run.get(),
        iteration,
        job.map(JobId::get),
        unit.stage.label(),
        unit.work.label(),
        unit.lane,
        unit.key,
        unit.plan.map(|plan| int(plan.from)),
        unit.plan.map(|plan| int(plan.to)),
        unit.plan.map(|plan| int(plan.batch_items)),
        unit.plan.is_some_and(|plan| plan.replanned),
        unit.policy.map(CheckpointId::get),
        unit.scorer.map(ScorerId::get),
        unit.detail,
        now_ms,
    ])?;
    Ok(UnitId(conn.last_insert_rowid()))
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
    conn.execute(
        "UPDATE attempts SET ended_ms = ?2, outcome = 'cancelled', cause = 'cancelled', counted = 0
         WHERE unit_id = ?1 AND ended_ms IS NULL",
        params![unit.get(), now_ms],
    )?;
    apply(conn, &row, Event::Cancelled, now_ms)?;
    Ok(())
}

fn conclude(
    conn: &Connection,
    unit: UnitId,
    event: Event,
    end: &End<'_>,
    now_ms: i64,
) -> Result<Effect> {
    let row = get(conn, unit)?;
    let effect = apply(conn, &row, event, now_ms)?;
    conn.execute(
        "UPDATE attempts SET ended_ms = ?2, outcome = ?3, cause = ?4, counted = ?5, message = ?6
         WHERE unit_id = ?1 AND ended_ms IS NULL",
        params![unit.get(), now_ms, end.outcome, end.cause, end.counted, message(end.message)],
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
        state,
        deaths: row.deaths,
        outside_deaths: row.outside_deaths,
        last_step: row.last_step,
    };
    let after = next(unit, event)?;
    let ended = after.unit.state.is_closed().then_some(now_ms);
    conn.prepare_cached(
        "UPDATE units SET state = ?2, deaths = ?3, outside_deaths = ?4, last_step = ?5,
                          ended_ms = ?6 WHERE id = ?1",
    )?
    .execute(params![
        row.id.get(),
        after.unit.state.label(),
        after.unit.deaths,
        after.unit.outside_deaths,
        after.unit.last_step.map(int),
        ended,
    ])?;
    Ok(after.effect)
}

/// What follows from an event beside the unit's own row.
fn follow(conn: &Connection, row: &UnitRow, effect: Effect, why: &str, now_ms: i64) -> Result<()> {
    match effect {
        Effect::Nothing | Effect::PlaceFailed => Ok(()),
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

pub(crate) fn tell(
    conn: &Connection,
    row: &UnitRow,
    level: Level,
    kind: &str,
    text: String,
    now_ms: i64,
) -> Result<()> {
    let event = NewEvent {
        level,
        iteration: row.iteration,
        unit: Some(row.id),
        ..NewEvent::of(row.run, kind, text)
    };
    append(conn, &event, now_ms)?;
    Ok(())
}
