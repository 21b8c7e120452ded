//! Units and attempts as rows: what is planned, what is tried, and how to find them.
//!
//! In: plans, ids, keys. Out: `UnitRow`, `AttemptRow`. May not enter: changes of state (`journal`),
//! readiness (`ready`).

use rlhfd_domain::{
    AttemptId, BatchPlan, CheckpointId, JobId, LeaseId, RunId, ScorerId, Stage, UnitId, WorkKind,
    limits,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::Result;
use crate::events::{Level, NewEvent, append};
use crate::open::Reader;
use crate::rows::{count, found, int, limit};

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
    /// Of a train unit: examples of a micro-batch.
    pub micro_batch: Option<u64>,
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
    /// Of a train unit: examples of a micro-batch.
    pub micro_batch: Option<u64>,
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
        micro_batch: match row.get::<_, Option<i64>>(8)? {
            None => row.get::<_, Option<i64>>(10)?.map(count),
            Some(_) => None,
        },
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
    select_by(conn, "", condition, values)
}

/// The same, with a word on the index to use.
pub(crate) fn select_by(
    conn: &Connection,
    index: &str,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<UnitRow>> {
    let text = format!("SELECT {COLUMNS} FROM units u {index} WHERE {condition}");
    let mut statement = conn.prepare_cached(&text)?;
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

pub(crate) fn insert(
    conn: &Connection,
    run: RunId,
    iteration: Option<u32>,
    job: Option<JobId>,
    unit: &NewUnit,
    now_ms: i64,
) -> Result<UnitId> {
    // The initial policy's evaluation has keys of the run, not of an iteration: what was cancelled
    // with an iteration is opened again by the next one, and what was done stands.
    let id: Option<i64> = conn.prepare_cached(
        "INSERT INTO units (run_id, iteration, job_id, stage, work, lane, key, from_item, to_item,
                            batch_items, replanned, policy_id, scorer_id, detail, state, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 'open', ?15)
         ON CONFLICT (run_id, key) DO UPDATE SET
             iteration = excluded.iteration, policy_id = excluded.policy_id,
             scorer_id = excluded.scorer_id, detail = excluded.detail,
             batch_items = excluded.batch_items, replanned = excluded.replanned,
             state = 'open', reason = NULL, deaths = 0, outside_deaths = 0, ended_ms = NULL
         WHERE units.state = 'cancelled' AND units.iteration <> excluded.iteration
         RETURNING id",
    )?
    .query_row(params![
        run.get(),
        iteration,
        job.map(JobId::get),
        unit.stage.label(),
        unit.work.label(),
        unit.lane,
        unit.key,
        unit.plan.map(|plan| int(plan.from)),
        unit.plan.map(|plan| int(plan.to)),
        unit.plan.map(|plan| plan.batch_items).or(unit.micro_batch).map(int),
        unit.plan.is_some_and(|plan| plan.replanned),
        unit.policy.map(CheckpointId::get),
        unit.scorer.map(ScorerId::get),
        unit.detail,
        now_ms,
    ], |row| row.get(0))
    .optional()?;
    let id = match id {
        Some(id) => id,
        None => conn.query_row(
            "SELECT id FROM units WHERE run_id = ?1 AND key = ?2",
            params![run.get(), unit.key],
            |row| row.get(0),
        )?,
    };
    Ok(UnitId(id))
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
