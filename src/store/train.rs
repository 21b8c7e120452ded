//! Training: what an update is made from, its steps, and the checkpoint that comes out.
//!
//! In: finished train and checkpoint units. Out: rows of `training_set_members`, `training_steps`,
//! `checkpoints`; the iteration's policy or the job's checkpoint move with them.
//! May not enter: folders, losses.

use rlhfd_domain::train::{History, Replay, TrainStep, check_steps};
use rlhfd_domain::{CheckpointId, RunId, UnitId};
use rusqlite::{Connection, params};

use crate::checkpoints::{NewCheckpoint, insert};
use crate::error::{Result, StoreError};
use crate::events::Level;
use crate::items::reference_of;
use crate::journal::finish;
use crate::open::{Reader, Store};
use crate::rows::{count, found, int};
use crate::units::{Finish, UnitRow, get, tell};
use crate::{iterations, jobs, offline_pairs};

impl Store {
    /// Fixes what a train unit is trained on, in training order: offline pairs by set, then by
    /// iteration and ordinal. Own pairs without log-probs under the reference are left out. Doing it
    /// again gives the same set. Returns how many pairs there are, and how many were left out.
    pub fn fix_training_set(
        &mut self,
        unit: UnitId,
        replay: Replay,
        now_ms: i64,
    ) -> Result<(u64, u64)> {
        self.transact(|conn| {
            let row = get(conn, unit)?;
            let iteration = found(row.iteration, "iteration of unit", unit)?;
            let from = match replay.history {
                History::All => 1,
                History::Newest => iteration,
            };
            let reference = reference_of(conn, &row)?;
            conn.execute("DELETE FROM training_set_members WHERE unit_id = ?1", [unit.get()])?;
            let offline = offline_pairs::fix_members(conn, &row, (iteration, reference), now_ms)?;
            let known = "EXISTS (SELECT 1 FROM reference_logprobs k
                         WHERE k.response_id = f.chosen_id AND k.reference_id = ?5)
                     AND EXISTS (SELECT 1 FROM reference_logprobs k
                         WHERE k.response_id = f.rejected_id AND k.reference_id = ?5)";
            let of_history = "f.run_id = ?2 AND f.iteration BETWEEN ?3 AND ?4
                     AND NOT EXISTS (SELECT 1 FROM iterations i WHERE i.run_id = f.run_id
                         AND i.iteration = f.iteration AND i.cancelled_ms IS NOT NULL)";
            let key = params![
                unit.get(),
                row.run.get(),
                from,
                iteration,
                reference.get(),
                int(offline),
                replay.history_weight
            ];
            let kept = conn.execute(
                &format!(
                    "INSERT INTO training_set_members (unit_id, position, preference_id, weight)
                     SELECT ?1, ?6 + row_number() OVER (ORDER BY f.iteration, f.ordinal, f.rank) - 1,
                            f.id, iif(f.iteration = ?4, 1.0, ?7)
                     FROM preferences f WHERE {of_history} AND {known}"
                ),
                key,
            )? as u64;
            let all: i64 = conn.query_row(
                &format!(
                    "SELECT count(*) FROM preferences f WHERE {of_history} AND ?1 = ?1 AND ?5 = ?5
                     AND ?6 = ?6 AND ?7 = ?7"
                ),
                key,
                |row| row.get(0),
            )?;
            let left_out = count(all).saturating_sub(kept);
            if left_out > 0 {
                let text = format!("{left_out} pairs have no log-probs of the reference: left out");
                tell(conn, &row, Level::Warn, "pairs_left_out", text, now_ms)?;
            }
            Ok((offline + kept, left_out))
        })
    }

    /// A finished train unit: its steps, and the first one that this attempt made itself.
    pub fn finish_train(
        &mut self,
        end: &Finish,
        steps: &[TrainStep],
        first_step: u64,
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| {
            check_steps(steps)
                .map_err(|error| StoreError::Misfit { unit: end.unit, why: error.to_string() })?;
            let unit = finish(conn, end, now_ms)?;
            conn.execute(
                "UPDATE attempts SET first_step = ?2 WHERE id = ?1",
                params![end.attempt.get(), int(first_step)],
            )?;
            let mut add = conn.prepare_cached(
                "INSERT INTO training_steps (unit_id, step, loss, lr, grad_norm, accuracy, margin,
                     implicit_reward_chosen, implicit_reward_rejected, token_accuracy)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            for step in steps {
                add.execute(params![
                    unit.id.get(),
                    int(step.step),
                    step.loss,
                    step.lr,
                    step.grad_norm,
                    step.accuracy,
                    step.margin,
                    step.implicit_reward_chosen,
                    step.implicit_reward_rejected,
                    step.token_accuracy,
                ])?;
            }
            if let Some(iteration) = unit.iteration {
                train_totals(conn, &unit, iteration)?;
            }
            Ok(())
        })
    }

    /// A finished checkpoint unit: the row is written, and the iteration's policy, or the training
    /// job's checkpoint, is this one now. The head moves when the iteration ends.
    pub fn finish_checkpoint(
        &mut self,
        end: &Finish,
        new: &NewCheckpoint,
        now_ms: i64,
    ) -> Result<CheckpointId> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let id = insert(conn, unit.run, unit.iteration, unit.id, new, now_ms)?;
            match (unit.iteration, unit.job) {
                (Some(iteration), _) => admit(conn, unit.run, iteration, id)?,
                (None, Some(job)) => jobs::done(conn, job, id, now_ms)?,
                (None, None) => {}
            }
            let text = format!("checkpoint {} stands at {}", new.name, new.path);
            tell(conn, &unit, Level::Info, "checkpoint", text, now_ms)?;
            Ok(id)
        })
    }
}

fn admit(conn: &Connection, run: RunId, iteration: u32, id: CheckpointId) -> Result<()> {
    iterations::get(conn, run, iteration)?;
    conn.execute(
        "UPDATE iterations SET policy_out = ?3 WHERE run_id = ?1 AND iteration = ?2",
        params![run.get(), iteration, id.get()],
    )?;
    Ok(())
}

fn train_totals(conn: &Connection, unit: &UnitRow, iteration: u32) -> Result<()> {
    conn.execute(
        "UPDATE iteration_totals SET
             (loss_last, accuracy_last, margin_last) =
                 (SELECT loss, accuracy, margin FROM training_steps WHERE unit_id = ?3
                  ORDER BY step DESC LIMIT 1),
             train_s = (SELECT coalesce(sum(seconds), 0) FROM units
                 WHERE run_id = ?1 AND iteration = ?2 AND stage = 'train')
         WHERE run_id = ?1 AND iteration = ?2",
        params![unit.run.get(), iteration, unit.id.get()],
    )?;
    Ok(())
}

impl Reader {
    /// The steps of a train unit, in order.
    pub fn training_steps(&self, unit: UnitId) -> Result<Vec<TrainStep>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT step, loss, lr, grad_norm, accuracy, margin, implicit_reward_chosen,
                    implicit_reward_rejected, token_accuracy
             FROM training_steps WHERE unit_id = ?1 ORDER BY step",
        )?;
        let rows = statement
            .query_map([unit.get()], |row| {
                Ok(TrainStep {
                    step: count(row.get(0)?),
                    loss: row.get(1)?,
                    lr: row.get(2)?,
                    grad_norm: row.get(3)?,
                    accuracy: row.get(4)?,
                    margin: row.get(5)?,
                    implicit_reward_chosen: row.get(6)?,
                    implicit_reward_rejected: row.get(7)?,
                    token_accuracy: row.get(8)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }
}
