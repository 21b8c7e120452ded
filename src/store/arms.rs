//! Arms: the ways to sample of an iteration, each with the policy that it samples from.
//!
//! In: an iteration's arms as the configuration has them. Out: rows of `iteration_arms`, frozen at its
//! start: words such as `previous` have become checkpoints there. Samples count over all arms in
//! their order, so that a response's random numbers do not depend on which unit writes it.
//! May not enter: sampling, the cut into units.

use rlhfd_domain::checkpoint::PolicyChoice;
use rlhfd_domain::{CheckpointId, RunId};
use rusqlite::{Connection, params};

use crate::checkpoints::{self, Checkpoint};
use crate::error::{Result, StoreError};
use crate::open::Reader;
use crate::rows::int;
use crate::runs::{self, Run};

/// An arm to freeze.
#[derive(Debug, Clone, PartialEq)]
pub struct NewArm {
    /// Its name.
    pub name: String,
    /// Whom it samples from.
    pub policy: PolicyChoice,
    /// 0 is greedy.
    pub temperature: f64,
    /// In (0, 1].
    pub top_p: f64,
    /// 0: all.
    pub top_k: u32,
    /// Responses a prompt.
    pub n: u32,
}

/// A row of `iteration_arms`.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// Whom it samples from.
    pub policy: CheckpointId,
    /// That checkpoint's name.
    pub policy_name: String,
    /// 0 is greedy.
    pub temperature: f64,
    /// In (0, 1].
    pub top_p: f64,
    /// 0: all.
    pub top_k: u32,
    /// Responses a prompt.
    pub n: u32,
    /// The number of its first sample.
    pub first_sample: u32,
}

/// Freezes the arms of a new iteration.
pub(crate) fn freeze(
    conn: &Connection,
    (run, iteration): (RunId, u32),
    arms: &[NewArm],
) -> Result<Vec<Arm>> {
    let run = runs::get(conn, run)?;
    let mut first_sample = 0;
    let mut frozen = Vec::with_capacity(arms.len());
    for (place, new) in arms.iter().enumerate() {
        let policy = policy_of(conn, &run, new)?;
        conn.execute(
            "INSERT INTO iteration_arms (run_id, iteration, arm, name, policy_id, temperature, top_p,
                                         top_k, n, first_sample)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                run.id.get(),
                iteration,
                int(place as u64),
                new.name,
                policy.id.get(),
                new.temperature,
                new.top_p,
                new.top_k,
                new.n,
                first_sample
            ],
        )?;
        frozen.push(Arm {
            name: new.name.clone(),
            policy: policy.id,
            policy_name: policy.name,
            temperature: new.temperature,
            top_p: new.top_p,
            top_k: new.top_k,
            n: new.n,
            first_sample,
        });
        first_sample += new.n;
    }
    Ok(frozen)
}

/// The checkpoint that an arm of the next iteration samples from.
fn policy_of(conn: &Connection, run: &Run, arm: &NewArm) -> Result<Checkpoint> {
    let checkpoint = match &arm.policy {
        PolicyChoice::Current => checkpoints::get(conn, run.head)?,
        PolicyChoice::Initial => checkpoints::get(conn, run.initial)?,
        PolicyChoice::Previous => before(conn, run)?,
        PolicyChoice::Named(name) => match checkpoints::by_name(conn, run.id, name)? {
            Some(found) if found.kind.is_policy() => found,
            _ => return Err(unknown(conn, run, arm, name)?),
        },
    };
    if checkpoint.sound {
        return Ok(checkpoint);
    }
    let path = &checkpoint.path;
    let why = format!(
        "is not sound, and the arm {} is to sample from it: restore its folder {path}, or name another \
         policy in [[generate.arms]]",
        arm.name
    );
    Err(StoreError::Conflict { what: "checkpoint", name: checkpoint.name, why })
}

/// The head's parent: what the last update that moved the head began with.
fn before(conn: &Connection, run: &Run) -> Result<Checkpoint> {
    let head = checkpoints::get(conn, run.head)?;
    let parent = head.parent.filter(|_| head.id != run.initial);
    parent.map_or(Ok(head), |parent| checkpoints::get(conn, parent))
}

fn unknown(conn: &Connection, run: &Run, arm: &NewArm, name: &str) -> Result<StoreError> {
    let newest: String = conn.query_row(
        "SELECT name FROM checkpoints WHERE run_id = ?1 AND kind IN ('initial', 'policy')
         ORDER BY id DESC LIMIT 1",
        [run.id.get()],
        |row| row.get(0),
    )?;
    let why = format!(
        "has no policy {name}, from which the arm {} is to sample; its newest is {newest}: name one that \
         it has in [[generate.arms]], or write \"current\", \"previous\" or \"initial\"",
        arm.name
    );
    Ok(StoreError::Conflict { what: "run", name: run.name.clone(), why })
}

impl Reader {
    /// The arms of an iteration, in their order.
    pub fn iteration_arms(&self, run: RunId, iteration: u32) -> Result<Vec<Arm>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT a.name, a.policy_id, c.name, a.temperature, a.top_p, a.top_k, a.n, a.first_sample
             FROM iteration_arms a JOIN checkpoints c ON c.id = a.policy_id
             WHERE a.run_id = ?1 AND a.iteration = ?2 ORDER BY a.arm",
        )?;
        let rows = statement.query_map(params![run.get(), iteration], |row| {
            Ok(Arm {
                name: row.get(0)?,
                policy: CheckpointId(row.get(1)?),
                policy_name: row.get(2)?,
                temperature: row.get(3)?,
                top_p: row.get(4)?,
                top_k: row.get(5)?,
                n: row.get(6)?,
                first_sample: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The checkpoint that an arm would sample from if an iteration began now.
    ///
    /// Errors: `Conflict` where there is none, or it is not sound.
    pub fn arm_policy(&self, run: &Run, arm: &NewArm) -> Result<Checkpoint> {
        policy_of(&self.conn, run, arm)
    }
}
