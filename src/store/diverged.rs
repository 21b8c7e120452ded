//! Trainings that went wrong: the unit is at its end, and what it belongs to goes back to its parent.
//!
//! In: a train unit's attempt, and how it went wrong. Out: an iteration that ended with its head as it
//! was, or a failed training job, in one transaction with the unit's end. May not enter: how a training
//! is judged (`rlhfd_domain::divergence`).

use rlhfd_domain::gate::OnFail;
use rlhfd_domain::{AttemptId, Divergence, Effect, Event, UnitId};
use rusqlite::params;

use crate::error::Result;
use crate::events::Level;
use crate::iterations;
use crate::jobs::{self, JobStatus};
use crate::journal::{End, conclude};
use crate::open::Store;
use crate::rows::message;
use crate::runs::{self, PausedBy};
use crate::units::{get, tell};

/// A training that went wrong, as the worker tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WentWrong {
    /// How.
    pub divergence: Divergence,
    /// At which step, and by which figures.
    pub message: String,
}

impl Store {
    /// A train unit's attempt was stopped, since its training went wrong: no checkpoint comes of it. An
    /// iteration ends with the head that it began with, and the run pauses where `on` says so; a training
    /// job fails.
    pub fn unit_diverged(
        &mut self,
        (unit, attempt): (UnitId, AttemptId),
        wrong: &WentWrong,
        on: OnFail,
        now_ms: i64,
    ) -> Result<Effect> {
        let WentWrong { divergence, message: said } = wrong;
        let first = said.lines().next().unwrap_or_default();
        let why = format!("{}: {first}; {}", divergence.label(), divergence.likely_cause());
        let end = End {
            outcome: "failed",
            cause: divergence.label(),
            counted: Some(false),
            message: said,
        };
        self.transact(|conn| {
            let effect = conclude(conn, unit, Event::Diverged(attempt), &end, now_ms)?;
            let row = get(conn, unit)?;
            conn.execute(
                "UPDATE units SET reason = ?2 WHERE id = ?1",
                params![unit.get(), message(&why)],
            )?;
            if let Some(job) = row.job {
                jobs::end(conn, job, (JobStatus::Failed, &why), now_ms)?;
            }
            let Some(iteration) = row.iteration else { return Ok(effect) };
            let text =
                format!("the update of iteration {iteration} went wrong ({why}): the head stays");
            tell(conn, &row, Level::Error, "update_diverged", text.clone(), now_ms)?;
            conn.execute(
                "UPDATE iteration_totals SET divergence = ?3 WHERE run_id = ?1 AND iteration = ?2",
                params![row.run.get(), iteration, divergence.label()],
            )?;
            iterations::without_update(conn, (row.run, iteration), &why, now_ms)?;
            match on {
                OnFail::KeepHead => {}
                OnFail::Pause => runs::pause(conn, row.run, PausedBy::Daemon, &text, now_ms)?,
            }
            Ok(effect)
        })
    }
}
