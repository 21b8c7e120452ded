//! The end of an iteration: its evaluations, its gate's verdict, and where head and best policy stand
//! after it, in one transaction.
//!
//! In: finished summarise units. Out: rows of `evaluations` and `gate_verdicts`, the iteration's
//! figures; the head moves, or the checkpoint is marked as rejected. May not enter: the gate's rule
//! (`rlhfd_domain::gate`), statistics.

use rlhfd_domain::gate::{OnFail, Verdict};
use rlhfd_domain::{CheckpointId, RunId, ScorerId};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::evaluations::NewEvaluation;
use crate::events::Level;
use crate::iterations::{self, Iteration};
use crate::journal::finish;
use crate::open::{Reader, Store};
use crate::rows::found;
use crate::runs::{self, PausedBy, set_head};
use crate::units::{Finish, UnitRow, tell};
use crate::{checkpoints, evaluations};

/// What an iteration ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSummary {
    /// The first row of the iteration's own policy stands for it in `iteration_history`.
    pub evaluations: Vec<NewEvaluation>,
    /// The gate's verdict; none where there is no gate.
    pub verdict: Option<Verdict>,
    /// What a failed gate does beside keeping the head.
    pub on_fail: OnFail,
    /// Whose scores at which temperature say which policy is the best; none: nobody's.
    pub ranked_by: Option<(ScorerId, f64)>,
}

impl Store {
    /// A finished summarise unit: its rows are written, the head moves where no gate holds it, and the
    /// iteration ends.
    pub fn finish_summarise(
        &mut self,
        end: &Finish,
        summary: &NewSummary,
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let number = found(unit.iteration, "iteration of unit", unit.id)?;
            evaluations::insert(conn, &unit, &summary.evaluations)?;
            totals(conn, unit.run, number, summary)?;
            if let Some(verdict) = &summary.verdict {
                keep_verdict(conn, unit.run, number, verdict)?;
            }
            let iteration = iterations::get(conn, unit.run, number)?;
            iterations::end(conn, unit.run, number, now_ms)?;
            let text = format!("iteration {number} is done");
            tell(conn, &unit, Level::Info, "iteration_done", text, now_ms)?;
            settle_head(conn, &unit, &iteration, summary, now_ms)?;
            settle_best(conn, &unit, summary, now_ms)
        })
    }
}

fn totals(conn: &Connection, run: RunId, iteration: u32, summary: &NewSummary) -> Result<()> {
    let own = summary.evaluations.iter().find(|row| row.iteration == iteration);
    conn.execute(
        "UPDATE iteration_totals SET kl_k3 = ?3, eval_score_mean = ?4, eval_win_rate = ?5, gate = ?6,
             evaluate_s = (SELECT coalesce(sum(seconds), 0) FROM units
                 WHERE run_id = ?1 AND iteration = ?2 AND stage = 'evaluate')
         WHERE run_id = ?1 AND iteration = ?2",
        params![
            run.get(),
            iteration,
            own.and_then(|row| row.kl_k3),
            own.map(|row| row.comparison.score_mean),
            own.map(|row| row.comparison.win_rate.value),
            summary.verdict.as_ref().map(Verdict::words)
        ],
    )?;
    Ok(())
}

fn keep_verdict(conn: &Connection, run: RunId, iteration: u32, verdict: &Verdict) -> Result<()> {
    let mut add = conn.prepare_cached(
        "INSERT INTO gate_verdicts (run_id, iteration, figure, against, bound, limit_value, value,
                                    held)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for check in &verdict.checks {
        add.execute(params![
            run.get(),
            iteration,
            check.figure.label(),
            check.against.label(),
            check.limit.label(),
            check.limit.value(),
            // SQLite has no NaN; what is no number was not measured.
            check.value.filter(|value| !value.is_nan()),
            check.held()
        ])?;
    }
    Ok(())
}

/// Moves the head to what the iteration trained, or keeps it and says why.
fn settle_head(
    conn: &Connection,
    unit: &UnitRow,
    iteration: &Iteration,
    summary: &NewSummary,
    now_ms: i64,
) -> Result<()> {
    let Some(trained) = iteration.policy_out else { return Ok(()) };
    let checkpoint = checkpoints::get(conn, trained)?;
    if let Some(failed) = summary.verdict.as_ref().filter(|verdict| !verdict.passed()) {
        conn.execute("UPDATE checkpoints SET rejected = 1 WHERE id = ?1", [trained.get()])?;
        let text = format!("the gate of {} {}: the head stays", checkpoint.name, failed.words());
        tell(conn, unit, Level::Warn, "gate_failed", text.clone(), now_ms)?;
        return match summary.on_fail {
            OnFail::KeepHead => Ok(()),
            OnFail::Pause => runs::pause(conn, unit.run, PausedBy::Daemon, &text, now_ms),
        };
    }
    if !checkpoint.sound {
        let text = format!("checkpoint {} is not sound: the head stays", checkpoint.name);
        return tell(conn, unit, Level::Error, "head_kept", text, now_ms);
    }
    let why = if summary.verdict.is_some() { "it passed its gate" } else { "no gate holds it" };
    set_head(conn, unit.run, trained, why, now_ms)
}

/// The best policy is the sound, unrejected one with the largest gain over the initial policy, which on
/// the same prompts is the highest mean score; of equal ones the first.
fn settle_best(conn: &Connection, unit: &UnitRow, summary: &NewSummary, now_ms: i64) -> Result<()> {
    let Some((scorer, temperature)) = summary.ranked_by else { return Ok(()) };
    let best: Option<i64> = conn
        .query_row(
            "SELECT e.policy_id FROM evaluations e JOIN checkpoints c ON c.id = e.policy_id
             JOIN runs r ON r.id = e.run_id AND r.initial_id = e.baseline_id
             WHERE e.run_id = ?1 AND e.scorer_id = ?2 AND e.temperature = ?3
               AND c.rejected = 0 AND c.sound = 1
             ORDER BY e.gain DESC, e.iteration LIMIT 1",
            params![unit.run.get(), scorer.get(), temperature],
            |row| row.get(0),
        )
        .optional()?;
    let Some(best) = best.map(CheckpointId) else { return Ok(()) };
    if runs::get(conn, unit.run)?.best == Some(best) {
        return Ok(());
    }
    conn.execute(
        "UPDATE runs SET best_id = ?2 WHERE id = ?1",
        params![unit.run.get(), best.get()],
    )?;
    let text = format!("the best policy by evaluation is {}", checkpoints::get(conn, best)?.name);
    tell(conn, unit, Level::Info, "best_moved", text, now_ms)
}

impl Reader {
    /// The newest ended iteration, if its gate failed: its number and the gate's words.
    pub fn gate_failed(&self, run: RunId) -> Result<Option<(u32, String)>> {
        let newest: Option<(u32, Option<String>)> = self
            .conn
            .prepare_cached(
                "SELECT i.iteration, t.gate FROM iterations i
                 JOIN iteration_totals t ON t.run_id = i.run_id AND t.iteration = i.iteration
                 WHERE i.run_id = ?1 AND i.ended_ms IS NOT NULL AND i.cancelled_ms IS NULL
                 ORDER BY i.iteration DESC LIMIT 1",
            )?
            .query_row([run.get()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let words = newest.and_then(|(number, gate)| Some((number, gate?)));
        Ok(words.filter(|(_, gate)| gate != "passed"))
    }

    /// How many iterations ended, not cancelled, since the one that trained this policy.
    pub fn iterations_since(&self, run: RunId, policy: CheckpointId) -> Result<u64> {
        let ended: i64 = self
            .conn
            .prepare_cached(
                "SELECT count(*) FROM iterations i
                 WHERE i.run_id = ?1 AND i.ended_ms IS NOT NULL AND i.cancelled_ms IS NULL
                   AND i.iteration > coalesce((SELECT iteration FROM checkpoints WHERE id = ?2), 0)",
            )?
            .query_row(params![run.get(), policy.get()], |row| row.get(0))?;
        Ok(crate::rows::count(ended))
    }
}
