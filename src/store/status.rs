//! What `status` shows, from counters and from the units of what is under way; no large table is
//! counted or scanned.
//!
//! In: a run. Out: `RunStatus`. May not enter: what the run waits for (control's to say).

use rlhfd_domain::{AttemptId, JobId, LeaseId, RunId, Stage, UnitId, WorkKind};
use rusqlite::{Connection, params};

use crate::error::Result;
use crate::iterations::{self, Iteration};
use crate::open::Reader;
use crate::prompts;
use crate::rows::count;
use crate::runs::{self, Run};

/// A run at a glance.
#[derive(Debug, Clone, PartialEq)]
pub struct RunStatus {
    /// The run.
    pub run: Run,
    /// Prompts that it may still draw.
    pub fresh: u64,
    /// Iterations that ended without being cancelled.
    pub iterations_done: u32,
    /// What is under way.
    pub iteration: Option<Progress>,
    /// Attempts that are on, of iterations and jobs.
    pub running: Vec<RunningUnit>,
}

/// How far an iteration is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The iteration.
    pub iteration: Iteration,
    /// All seven stages, in order.
    pub stages: Vec<StageProgress>,
    /// The labels of each scorer: every one of them covers all prompts.
    pub scorers: Vec<ScorerProgress>,
}

/// How far one scorer's labels are, counted from its units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScorerProgress {
    /// Its name.
    pub scorer: String,
    /// Its units, split ones counted by their halves.
    pub units: u64,
    /// Units that are done or set aside.
    pub closed: u64,
}

/// How far a stage is, counted from its units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageProgress {
    /// The stage.
    pub stage: Stage,
    /// Units that wait.
    pub open: u64,
    /// Units that run.
    pub running: u64,
    /// Units that are done.
    pub done: u64,
    /// Units that were set aside.
    pub set_aside: u64,
    /// Items of all its units; work in one piece counts as one.
    pub items: u64,
    /// Items of closed units.
    pub items_done: u64,
    /// Tokens computed by finished units.
    pub tokens: u64,
    /// Seconds that finished units took.
    pub seconds: f64,
}

/// An attempt that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningUnit {
    /// The unit.
    pub unit: UnitId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// The unit's iteration.
    pub iteration: Option<u32>,
    /// The unit's job.
    pub job: Option<JobId>,
    /// The unit's stage.
    pub stage: Stage,
    /// The unit's work.
    pub work: WorkKind,
    /// The unit's key.
    pub key: String,
    /// Its items; work in one piece counts as one.
    pub items: u64,
    /// Since when.
    pub started_ms: i64,
}

impl Reader {
    /// A run at a glance.
    pub fn status(&self, run: RunId) -> Result<RunStatus> {
        let conn = &self.conn;
        let iteration = match iterations::current(conn, run)? {
            Some(iteration) => {
                let stages = stages(conn, run, iteration.iteration)?;
                let scorers = scorers(conn, run, iteration.iteration)?;
                Some(Progress { iteration, stages, scorers })
            }
            None => None,
        };
        Ok(RunStatus {
            run: runs::get(conn, run)?,
            fresh: prompts::fresh(conn, run)?,
            iterations_done: self.iterations_so_far(run)?.1,
            iteration,
            running: running(conn, run)?,
        })
    }

    /// How far the stages of an iteration are, all seven in order.
    pub fn stages(&self, run: RunId, iteration: u32) -> Result<Vec<StageProgress>> {
        stages(&self.conn, run, iteration)
    }
}

fn stages(conn: &Connection, run: RunId, iteration: u32) -> Result<Vec<StageProgress>> {
    let mut statement = conn.prepare_cached(
        "SELECT stage, sum(state = 'open'), sum(state = 'running'), sum(state = 'done'),
                sum(state = 'set_aside'),
                sum(CASE WHEN state <> 'split' THEN coalesce(to_item - from_item, 1) ELSE 0 END),
                sum(CASE WHEN state IN ('done', 'set_aside', 'cancelled')
                    THEN coalesce(to_item - from_item, 1) ELSE 0 END),
                sum(coalesce(tokens, 0)), sum(coalesce(seconds, 0.0))
         FROM units WHERE run_id = ?1 AND iteration = ?2 GROUP BY stage",
    )?;
    let mut all: Vec<StageProgress> = Stage::ALL.into_iter().map(empty).collect();
    let mut rows = statement.query(params![run.get(), iteration])?;
    while let Some(row) = rows.next()? {
        let word: String = row.get(0)?;
        let stage = Stage::parse(&word)?;
        let found = StageProgress {
            stage,
            open: count(row.get(1)?),
            running: count(row.get(2)?),
            done: count(row.get(3)?),
            set_aside: count(row.get(4)?),
            items: count(row.get(5)?),
            items_done: count(row.get(6)?),
            tokens: count(row.get(7)?),
            seconds: row.get(8)?,
        };
        if let Some(slot) = all.iter_mut().find(|slot| slot.stage == stage) {
            *slot = found;
        }
    }
    Ok(all)
}

fn scorers(conn: &Connection, run: RunId, iteration: u32) -> Result<Vec<ScorerProgress>> {
    let mut statement = conn.prepare_cached(
        "SELECT s.name, l.units, l.closed FROM (
             SELECT scorer_id, sum(state IN ('open', 'running', 'done', 'set_aside')) AS units,
                    sum(state IN ('done', 'set_aside')) AS closed
             FROM units WHERE run_id = ?1 AND iteration = ?2 AND stage = 'label'
             GROUP BY scorer_id) l JOIN scorers s ON s.id = l.scorer_id ORDER BY s.name",
    )?;
    let rows = statement.query_map(params![run.get(), iteration], |row| {
        Ok(ScorerProgress {
            scorer: row.get(0)?,
            units: count(row.get(1)?),
            closed: count(row.get(2)?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn empty(stage: Stage) -> StageProgress {
    StageProgress {
        stage,
        open: 0,
        running: 0,
        done: 0,
        set_aside: 0,
        items: 0,
        items_done: 0,
        tokens: 0,
        seconds: 0.0,
    }
}

fn running(conn: &Connection, run: RunId) -> Result<Vec<RunningUnit>> {
    let mut statement = conn.prepare_cached(
        "SELECT u.id, a.id, a.lease_id, u.iteration, u.job_id, u.stage, u.work, u.key,
                coalesce(u.to_item - u.from_item, 1), a.started_ms
         FROM attempts a INDEXED BY attempts_open CROSS JOIN units u ON u.id = a.unit_id
         WHERE a.ended_ms IS NULL AND u.run_id = ?1 ORDER BY a.id LIMIT 1000",
    )?;
    let mut found = Vec::new();
    let mut rows = statement.query([run.get()])?;
    while let Some(row) = rows.next()? {
        let (stage, work): (String, String) = (row.get(5)?, row.get(6)?);
        found.push(RunningUnit {
            unit: UnitId(row.get(0)?),
            attempt: AttemptId(row.get(1)?),
            lease: row.get::<_, Option<i64>>(2)?.map(LeaseId),
            iteration: row.get(3)?,
            job: row.get::<_, Option<i64>>(4)?.map(JobId),
            stage: Stage::parse(&stage)?,
            work: WorkKind::parse(&work)?,
            key: row.get(7)?,
            items: count(row.get(8)?),
            started_ms: row.get(9)?,
        });
    }
    Ok(found)
}
