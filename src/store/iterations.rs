//! Iterations: what is frozen at the start, and how one ends.
//!
//! In: a configuration, limits, and a plan of units. Out: rows of `iterations`, `draws`, `units` and
//! `iteration_totals`, all in one transaction. States are counted from units, never stored.
//! May not enter: when to start one.

use rlhfd_domain::train::{History, ReferenceRule};
use rlhfd_domain::{CheckpointId, RunId, UnitId, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::arms::{Arm, NewArm};
use crate::error::{Result, StoreError};
use crate::events::{Level, NewEvent, append};
use crate::journal::cancel;
use crate::offline_pairs::{OfflineDrawn, OfflineUse, take_up};
use crate::open::{Reader, Store};
use crate::references::{self, NextReference, Replayed};
use crate::rows::{count, found, int};
use crate::units::{NewUnit, insert};
use crate::{arms, draws, overlap, prompts, runs};

/// An iteration to start.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIteration {
    /// Of which run.
    pub run: RunId,
    /// The configuration to freeze, TOML.
    pub config: String,
    /// Its sum.
    pub config_sha256: String,
    /// Prompts to draw, at most.
    pub prompts_max: u64,
    /// Whether used prompts are drawn again where fresh ones do not suffice.
    pub reuse_prompts: bool,
    /// Reserved prompts to evaluate on, at most.
    pub evaluate_prompts_max: u64,
    /// Ways to sample; at least one.
    pub arms: Vec<NewArm>,
    /// Offline preferences to train on.
    pub offline: OfflineUse,
    /// What the update is held to.
    pub reference: ReferenceRule,
    /// Which earlier iterations' preferences it trains on.
    pub history: History,
}

/// What the new iteration has, for the plan of its units.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its number, from 1.
    pub iteration: u32,
    /// Ordinals 0..prompts were drawn.
    pub prompts: u64,
    /// Ordinals 0..evaluate of the run's evaluation list are used.
    pub evaluate: u64,
    /// Ordinals 0..this of the evaluation list are rendered already.
    pub evaluate_rendered: u64,
    /// The head, from which the training starts.
    pub policy_in: CheckpointId,
    /// The ways to sample, with the policies that generate.
    pub arms: Vec<Arm>,
    /// Offline pairs.
    pub offline: OfflineDrawn,
    /// Earlier iterations' pairs without log-probs under the reference.
    pub replayed: Vec<Replayed>,
}

/// A row of `iterations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iteration {
    /// Of which run.
    pub run: RunId,
    /// Its number, from 1.
    pub iteration: u32,
    /// The head at its start, from which the training starts, and which generates where no arm says
    /// otherwise.
    pub policy_in: CheckpointId,
    /// What it trained.
    pub policy_out: Option<CheckpointId>,
    /// The reference, whatever the run's is.
    pub reference: CheckpointId,
    /// The frozen configuration.
    pub config: String,
    /// Its sum.
    pub config_sha256: String,
    /// Prompts drawn.
    pub prompts: u64,
    /// Ordinals 0..evaluate of the run's evaluation list are used.
    pub evaluate: u64,
    /// When it began.
    pub started_ms: i64,
    /// When it ended, in whatever way.
    pub ended_ms: Option<i64>,
    /// When it was cancelled.
    pub cancelled_ms: Option<i64>,
}

const COLUMNS: &str = "run_id, iteration, policy_in, policy_out, reference_id, config, \
                       config_sha256, prompts, evaluate, started_ms, ended_ms, cancelled_ms";

fn read(row: &Row<'_>) -> rusqlite::Result<Iteration> {
    Ok(Iteration {
        run: RunId(row.get(0)?),
        iteration: row.get(1)?,
        policy_in: CheckpointId(row.get(2)?),
        policy_out: row.get::<_, Option<i64>>(3)?.map(CheckpointId),
        reference: CheckpointId(row.get(4)?),
        config: row.get(5)?,
        config_sha256: row.get(6)?,
        prompts: count(row.get(7)?),
        evaluate: count(row.get(8)?),
        started_ms: row.get(9)?,
        ended_ms: row.get(10)?,
        cancelled_ms: row.get(11)?,
    })
}

pub(crate) fn get(conn: &Connection, run: RunId, iteration: u32) -> Result<Iteration> {
    let text = format!("SELECT {COLUMNS} FROM iterations WHERE run_id = ?1 AND iteration = ?2");
    let mut statement = conn.prepare_cached(&text)?;
    let row = statement.query_row(params![run.get(), iteration], read).optional()?;
    found(row, "iteration", iteration)
}

pub(crate) fn current(conn: &Connection, run: RunId) -> Result<Option<Iteration>> {
    let text = format!(
        "SELECT {COLUMNS} FROM iterations WHERE run_id = ?1 ORDER BY iteration DESC LIMIT 1"
    );
    let newest = conn.prepare_cached(&text)?.query_row([run.get()], read).optional()?;
    Ok(newest.filter(|iteration| iteration.ended_ms.is_none()))
}

impl Reader {
    /// An iteration by its number.
    pub fn iteration(&self, run: RunId, iteration: u32) -> Result<Iteration> {
        get(&self.conn, run, iteration)
    }

    /// The iteration that is under way.
    pub fn current_iteration(&self, run: RunId) -> Result<Option<Iteration>> {
        current(&self.conn, run)
    }

    /// The newest iteration's number, and how many ended without being cancelled.
    pub fn iterations_so_far(&self, run: RunId) -> Result<(u32, u32)> {
        let counts = self
            .conn
            .prepare_cached(
                "SELECT coalesce((SELECT iteration FROM iterations WHERE run_id = ?1
                                  ORDER BY iteration DESC LIMIT 1), 0),
                        (SELECT count(*) FROM iterations
                         WHERE run_id = ?1 AND ended_ms IS NOT NULL AND cancelled_ms IS NULL)",
            )?
            .query_row([run.get()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(counts)
    }
}

impl Store {
    /// Starts an iteration: its configuration, its draw and its plan of units are frozen together.
    /// `plan` makes the units from what was drawn.
    pub fn start_iteration(
        &mut self,
        new: &NewIteration,
        now_ms: i64,
        plan: impl FnOnce(&Drawn) -> Vec<NewUnit>,
    ) -> Result<Iteration> {
        self.transact(|conn| {
            let run = runs::get(conn, new.run)?;
            let refused = |why: &str| StoreError::Conflict {
                what: "run",
                name: run.name.clone(),
                why: why.to_owned(),
            };
            if current(conn, new.run)?.is_some() {
                return Err(refused("has an iteration under way: wait for it, or cancel it"));
            }
            let number: u32 = conn.query_row(
                "SELECT coalesce(max(iteration), 0) + 1 FROM iterations WHERE run_id = ?1",
                [new.run.get()],
                |row| row.get(0),
            )?;
            let reference = match references::of(conn, &run, new.reference, number)? {
                NextReference::Stands(reference) => reference,
                NextReference::Missing(_) => {
                    return Err(refused("has no moving average up to its head yet: wait for it"));
                }
            };
            conn.execute(
                "INSERT INTO iterations (run_id, iteration, policy_in, reference_id, config,
                                         config_sha256, prompts, evaluate, started_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, ?7)",
                params![
                    new.run.get(),
                    number,
                    run.head.get(),
                    reference.get(),
                    new.config,
                    new.config_sha256,
                    now_ms
                ],
            )?;
            references::tell_passed_over(conn, &run, (new.reference, number), reference, now_ms)?;
            let held = (new.run, number, reference);
            let offline = take_up(conn, held, &new.offline)?;
            let replayed = references::replayed(conn, held, new.history)?;
            let arms = arms::freeze(conn, (new.run, number), &new.arms)?;
            let drawn = draw(conn, new, (number, run.head), now_ms)?;
            let drawn = Drawn { arms, offline, replayed, ..drawn };
            if drawn.prompts == 0 {
                return Err(refused("has no fresh prompt: add some with `rlhfctl prompts add`"));
            }
            let units = plan(&drawn);
            if units.len() > limits::ITERATION_UNITS_MAX {
                return Err(refused("would be cut into too many units: raise the unit's tokens"));
            }
            for unit in &units {
                insert(conn, new.run, Some(number), None, unit, now_ms)?;
            }
            begin(conn, new.run, &drawn, units.len(), now_ms)?;
            get(conn, new.run, number)
        })
    }

    /// Cancels the iteration under way: its prompts return to the pool, its rows stay.
    pub fn cancel_iteration(&mut self, run: RunId, iteration: u32, now_ms: i64) -> Result<()> {
        self.transact(|conn| cancel_open(conn, (run, iteration), "", now_ms))
    }

    /// Ends an iteration that gave nothing to train on: the head stays, its prompts stay drawn.
    pub fn end_without_update(
        &mut self,
        run: RunId,
        iteration: u32,
        why: &str,
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| without_update(conn, (run, iteration), why, now_ms))
    }
}

/// Cancels the iteration under way; `why` follows the words of the event.
pub(crate) fn cancel_open(
    conn: &Connection,
    (run, iteration): (RunId, u32),
    why: &str,
    now_ms: i64,
) -> Result<()> {
    open_iteration(conn, run, iteration)?;
    cancel_units(conn, run, iteration, now_ms)?;
    draws::give_back(conn, run, iteration, now_ms)?;
    conn.execute(
        "UPDATE iterations SET ended_ms = ?3, cancelled_ms = ?3
         WHERE run_id = ?1 AND iteration = ?2",
        params![run.get(), iteration, now_ms],
    )?;
    let text = format!("iteration {iteration} was cancelled: its prompts are back{why}");
    warn(conn, (run, iteration), ("iteration_cancelled", text), now_ms)
}

/// Ends an iteration whose head stays: what is left of it is cancelled.
pub(crate) fn without_update(
    conn: &Connection,
    (run, iteration): (RunId, u32),
    why: &str,
    now_ms: i64,
) -> Result<()> {
    open_iteration(conn, run, iteration)?;
    cancel_units(conn, run, iteration, now_ms)?;
    end(conn, run, iteration, now_ms)?;
    let text = format!("iteration {iteration} ended without an update: {why}");
    warn(conn, (run, iteration), ("iteration_without_update", text), now_ms)
}

fn warn(
    conn: &Connection,
    (run, iteration): (RunId, u32),
    (kind, text): (&'static str, String),
    now_ms: i64,
) -> Result<()> {
    let event = NewEvent {
        iteration: Some(iteration),
        level: Level::Warn,
        ..NewEvent::of(run, kind, text)
    };
    append(conn, &event, now_ms)?;
    Ok(())
}

/// Marks an iteration as ended and says on which devices it ran.
pub(crate) fn end(conn: &Connection, run: RunId, iteration: u32, now_ms: i64) -> Result<()> {
    let key = params![run.get(), iteration];
    conn.execute(
        "UPDATE iteration_totals SET device =
             (SELECT group_concat(name, ', ') FROM (SELECT DISTINCT d.name AS name
              FROM units u JOIN attempts a ON a.unit_id = u.id JOIN leases l ON l.id = a.lease_id
              JOIN json_each(l.devices) j JOIN devices d ON d.uuid = j.value
              WHERE u.run_id = ?1 AND u.iteration = ?2 AND a.outcome = 'finished' ORDER BY d.name))
         WHERE run_id = ?1 AND iteration = ?2",
        key,
    )?;
    conn.execute(
        "UPDATE iterations SET ended_ms = ?3 WHERE run_id = ?1 AND iteration = ?2",
        params![run.get(), iteration, now_ms],
    )?;
    Ok(())
}

fn draw(
    conn: &Connection,
    new: &NewIteration,
    (iteration, policy_in): (u32, CheckpointId),
    now_ms: i64,
) -> Result<Drawn> {
    let wanted = new.prompts_max.min(limits::ITERATION_PROMPTS_MAX);
    let prompts = draws::draw(conn, new.run, iteration, wanted, new.reuse_prompts)?;
    let wanted = new.evaluate_prompts_max.min(limits::EVALUATE_PROMPTS_MAX);
    let extended = draws::extend_evaluation(conn, new.run, wanted)?;
    overlap::tell_left_out(conn, new.run, iteration, extended.trained_on, now_ms)?;
    let evaluate = extended.length;
    conn.execute(
        "UPDATE iterations SET prompts = ?3, evaluate = ?4 WHERE run_id = ?1 AND iteration = ?2",
        params![new.run.get(), iteration, int(prompts), int(evaluate)],
    )?;
    let rendered: i64 = conn.query_row(
        "SELECT coalesce(min(e.ordinal), ?2) FROM evaluation_prompts e
         WHERE e.run_id = ?1 AND e.ordinal < ?2 AND e.set_aside IS NULL AND NOT EXISTS
               (SELECT 1 FROM prompt_ids i WHERE i.prompt_id = e.prompt_id AND i.run_id = ?1)",
        params![new.run.get(), int(evaluate)],
        |row| row.get(0),
    )?;
    let evaluate_rendered = count(rendered);
    Ok(Drawn {
        iteration,
        prompts,
        evaluate,
        evaluate_rendered,
        policy_in,
        arms: Vec::new(),
        offline: OfflineDrawn::default(),
        replayed: Vec::new(),
    })
}

fn begin(conn: &Connection, run: RunId, drawn: &Drawn, units: usize, now_ms: i64) -> Result<()> {
    conn.execute(
        "INSERT INTO iteration_totals (run_id, iteration, prompts) VALUES (?1, ?2, ?3)",
        params![run.get(), drawn.iteration, int(drawn.prompts)],
    )?;
    conn.execute("UPDATE runs SET start_asked_ms = NULL WHERE id = ?1", [run.get()])?;
    let left = prompts::fresh(conn, run)?;
    let text = format!(
        "iteration {} begins with {} prompts in {units} units; {left} prompts are left",
        drawn.iteration, drawn.prompts
    );
    let event = NewEvent {
        iteration: Some(drawn.iteration),
        ..NewEvent::of(run, "iteration_started", text)
    };
    append(conn, &event, now_ms)?;
    Ok(())
}

fn open_iteration(conn: &Connection, run: RunId, iteration: u32) -> Result<()> {
    let row = get(conn, run, iteration)?;
    if row.ended_ms.is_some() {
        return Err(StoreError::Conflict {
            what: "iteration",
            name: iteration.to_string(),
            why: "has ended already".to_owned(),
        });
    }
    Ok(())
}

fn cancel_units(conn: &Connection, run: RunId, iteration: u32, now_ms: i64) -> Result<()> {
    let open: Vec<i64> = conn
        .prepare(
            "SELECT id FROM units
             WHERE run_id = ?1 AND iteration = ?2 AND state IN ('open', 'running')",
        )?
        .query_map(params![run.get(), iteration], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for unit in open {
        cancel(conn, UnitId(unit), now_ms)?;
    }
    Ok(())
}
