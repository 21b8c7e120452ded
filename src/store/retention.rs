//! What may go: files of old checkpoints with the log-probs under them, texts of old responses, old events.
//!
//! In: how much is kept. Out: one checkpoint at a time, marked before its files go and after; rows of
//! log-probs, texts and events that are deleted, some at a time. No checkpoint's row ever goes. May not enter:
//! folders, the rule itself (`rlhfd_domain::retention`), when it is time.

use std::collections::BTreeSet;

use rlhfd_domain::checkpoint::CheckpointKind;
use rlhfd_domain::retention::{Standing, superfluous};
use rlhfd_domain::train::ReferenceRule;
use rlhfd_domain::{CheckpointId, RunId, limits};
use rusqlite::{Connection, OptionalExtension, params};

use crate::checkpoints::{self, Checkpoint};
use crate::error::{Result, StoreError};
use crate::events::{NewEvent, append};
use crate::open::{Reader, Store};
use crate::references::{self, NextReference};
use crate::runs;

/// Pages (of 4 KiB) that are given back to the disk after a deletion.
const PAGES_FREED: u32 = 2_000;

/// Which checkpoints stay beside those that rows need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The newest so many; 0: all.
    pub newest: u64,
    /// Those that the configuration names.
    pub named: Vec<String>,
    /// What iterations are held to.
    pub reference: ReferenceRule,
}

impl Reader {
    /// The checkpoint whose files are to go next: one whose removal was begun and whose folder is not
    /// among those `passed` over, else the oldest that nothing needs.
    pub fn next_removal(
        &self,
        run: RunId,
        kept: &Kept,
        passed: &BTreeSet<String>,
    ) -> Result<Option<Checkpoint>> {
        let mut begun = self.removals_begun(run)?.into_iter();
        if let Some(begun) = begun.find(|begun| !passed.contains(&begun.path)) {
            return Ok(Some(begun));
        }
        let oldest = all_superfluous(&self.conn, run, kept)?.into_iter().next();
        oldest.map(|id| checkpoints::get(&self.conn, id)).transpose()
    }

    /// Checkpoints whose removal was begun and not ended.
    pub fn removals_begun(&self, run: RunId) -> Result<Vec<Checkpoint>> {
        let ids: Vec<i64> = self
            .conn
            .prepare_cached(
                "SELECT id FROM checkpoints
                 WHERE run_id = ?1 AND removal_ms IS NOT NULL AND removed_ms IS NULL ORDER BY id",
            )?
            .query_map([run.get()], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        ids.into_iter().map(|id| checkpoints::get(&self.conn, CheckpointId(id))).collect()
    }

    /// Checkpoints whose files are gone.
    pub fn removed(&self, run: RunId) -> Result<Vec<CheckpointId>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id FROM checkpoints WHERE run_id = ?1 AND removed_ms IS NOT NULL",
        )?;
        let ids = statement.query_map([run.get()], |row| Ok(CheckpointId(row.get(0)?)))?;
        Ok(ids.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether log-probs may stand under a reference whose files are gone.
    pub fn has_old_logprobs(&self, run: RunId) -> Result<bool> {
        Ok(to_sweep(&self.conn, run)?.is_some())
    }

    /// The number of the newest iteration that has ended; 0: none has.
    pub fn newest_ended(&self, run: RunId) -> Result<u32> {
        Ok(self.conn.query_row(
            "SELECT coalesce(max(iteration), 0) FROM iterations
             WHERE run_id = ?1 AND ended_ms IS NOT NULL",
            [run.get()],
            |row| row.get(0),
        )?)
    }
}

impl Store {
    /// Marks a checkpoint's files as superfluous, before any of them goes; nothing begins with it from
    /// now on. False where something needs it meanwhile.
    pub fn begin_removal(&mut self, id: CheckpointId, kept: &Kept, now_ms: i64) -> Result<bool> {
        self.transact(|conn| {
            if is_marked(conn, id)? {
                return Ok(true);
            }
            let checkpoint = checkpoints::get(conn, id)?;
            if !all_superfluous(conn, checkpoint.run, kept)?.contains(&id) {
                return Ok(false);
            }
            let why =
                format!("neither needed nor pinned, and older than the newest {}", kept.newest);
            conn.execute(
                "UPDATE checkpoints SET removal_ms = ?2, removal_why = ?3, sound = 0 WHERE id = ?1",
                params![id.get(), now_ms, why],
            )?;
            Ok(true)
        })
    }

    /// The files are gone.
    pub fn end_removal(&mut self, id: CheckpointId, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let changed = conn.execute(
                "UPDATE checkpoints SET removed_ms = ?2
                 WHERE id = ?1 AND removal_ms IS NOT NULL AND removed_ms IS NULL",
                params![id.get(), now_ms],
            )?;
            if changed == 0 {
                return Ok(());
            }
            let checkpoint = checkpoints::get(conn, id)?;
            let text = format!(
                "the files of checkpoint {} are removed ({} MiB): {}",
                checkpoint.name,
                checkpoint.bytes >> 20,
                why_removed(conn, id)?
            );
            let event = NewEvent {
                iteration: checkpoint.iteration,
                ..NewEvent::of(checkpoint.run, "checkpoint_removed", text)
            };
            append(conn, &event, now_ms)?;
            Ok(())
        })
    }

    /// Pins a checkpoint, so that its files stay, or lets it go again.
    ///
    /// Errors: there is none of that name, or its files are gone already.
    pub fn pin(
        &mut self,
        run: RunId,
        name: &str,
        pinned: bool,
        (uid, now_ms): (Option<u32>, i64),
    ) -> Result<()> {
        self.transact(|conn| {
            let missing = || StoreError::NotFound { what: "checkpoint", name: name.to_owned() };
            let checkpoint = checkpoints::by_name(conn, run, name)?.ok_or_else(missing)?;
            if pinned && is_marked(conn, checkpoint.id)? {
                return Err(StoreError::Conflict {
                    what: "checkpoint",
                    name: name.to_owned(),
                    why: "has no files any more: they were removed by [store] keep_checkpoints"
                        .into(),
                });
            }
            conn.execute(
                "UPDATE checkpoints SET pinned = ?2 WHERE id = ?1",
                params![checkpoint.id.get(), pinned],
            )?;
            let (kind, text) = if pinned {
                ("checkpoint_pinned", format!("checkpoint {name} is pinned"))
            } else {
                ("checkpoint_unpinned", format!("checkpoint {name} is not pinned any more"))
            };
            append(conn, &NewEvent { uid, ..NewEvent::of(run, kind, text) }, now_ms)?;
            Ok(())
        })
    }

    /// Deletes some texts of responses that no preference has, of iterations up to `to`. False: there
    /// are no more.
    pub fn sweep_texts(&mut self, run: RunId, to: u32) -> Result<bool> {
        self.swept(|conn| {
            let done: u32 = conn.query_row(
                "SELECT texts_swept_to FROM runs WHERE id = ?1",
                [run.get()],
                |row| row.get(0),
            )?;
            if done >= to {
                return Ok(false);
            }
            let gone = conn.execute(
                "DELETE FROM response_texts WHERE response_id IN (
                     SELECT r.id FROM responses r JOIN response_texts t ON t.response_id = r.id
                     WHERE r.run_id = ?1 AND r.purpose = 'generate' AND r.iteration = ?2
                       AND NOT EXISTS (SELECT 1 FROM preferences p
                           WHERE p.run_id = r.run_id AND p.iteration = r.iteration
                             AND p.ordinal = r.ordinal
                             AND (p.chosen_id = r.id OR p.rejected_id = r.id))
                     LIMIT ?3)",
                params![run.get(), done + 1, limits::SWEEP_BATCH_ROWS],
            )?;
            if gone == 0 {
                conn.execute(
                    "UPDATE runs SET texts_swept_to = ?2 WHERE id = ?1",
                    params![run.get(), done + 1],
                )?;
            }
            Ok(true)
        })
    }

    /// Deletes some log-probs under a reference whose files are gone, and with them all that could check
    /// them. False: there are no more.
    pub fn sweep_logprobs(&mut self, run: RunId) -> Result<bool> {
        self.swept(|conn| {
            let Some(reference) = to_sweep(conn, run)? else { return Ok(false) };
            let key = params![reference.get(), limits::SWEEP_BATCH_ROWS];
            let gone = conn.execute(
                "DELETE FROM reference_logprobs WHERE reference_id = ?1 AND response_id IN (
                     SELECT response_id FROM reference_logprobs WHERE reference_id = ?1 LIMIT ?2)",
                key,
            )? + conn.execute(
                "DELETE FROM offline_logprobs WHERE reference_id = ?1 AND (run_id, ordinal) IN (
                     SELECT run_id, ordinal FROM offline_logprobs WHERE reference_id = ?1 LIMIT ?2)",
                key,
            )?;
            conn.execute(
                "UPDATE checkpoints SET logprobs_swept = ?2 WHERE id = ?1",
                params![reference.get(), gone == 0],
            )?;
            Ok(true)
        })
    }

    /// Deletes some of the events before `before_ms`. False: there are no more.
    pub fn sweep_events(&mut self, before_ms: i64) -> Result<bool> {
        self.swept(|conn| {
            // Events are told in the order of their rows: the oldest have the lowest numbers.
            let gone = conn.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?2)
                   AND at_ms < ?1",
                params![before_ms, limits::SWEEP_BATCH_ROWS],
            )?;
            Ok(gone > 0)
        })
    }

    /// Sweeps once; what it says it freed goes back to the disk.
    fn swept(&mut self, sweep: impl FnOnce(&Connection) -> Result<bool>) -> Result<bool> {
        let swept = self.transact(sweep)?;
        if swept {
            self.give_back()?;
        }
        Ok(swept)
    }

    /// Gives free pages back to the disk.
    fn give_back(&mut self) -> Result<()> {
        let mut freed = self.conn.prepare(&format!("PRAGMA incremental_vacuum({PAGES_FREED})"))?;
        let mut rows = freed.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}

/// A checkpoint whose files are gone and under which log-probs may stand still. An open iteration's own
/// reference is none, whatever became of its files.
fn to_sweep(conn: &Connection, run: RunId) -> Result<Option<CheckpointId>> {
    let id = conn
        .prepare_cached(
            "SELECT c.id FROM checkpoints c
             WHERE c.run_id = ?1 AND c.removed_ms IS NOT NULL AND c.logprobs_swept IS NOT 1
               AND NOT EXISTS (SELECT 1 FROM iterations i WHERE i.run_id = c.run_id
                   AND i.reference_id = c.id AND i.ended_ms IS NULL)
             ORDER BY c.id LIMIT 1",
        )?
        .query_row([run.get()], |row| row.get(0))
        .optional()?;
    Ok(id.map(CheckpointId))
}

fn is_marked(conn: &Connection, id: CheckpointId) -> Result<bool> {
    Ok(conn.query_row(
        "SELECT removal_ms IS NOT NULL FROM checkpoints WHERE id = ?1",
        [id.get()],
        |row| row.get(0),
    )?)
}

fn why_removed(conn: &Connection, id: CheckpointId) -> Result<String> {
    let why: Option<String> =
        conn.query_row("SELECT removal_why FROM checkpoints WHERE id = ?1", [id.get()], |row| {
            row.get(0)
        })?;
    Ok(why.unwrap_or_default())
}

/// All that may go, the oldest first.
pub(crate) fn all_superfluous(
    conn: &Connection,
    run: RunId,
    kept: &Kept,
) -> Result<Vec<CheckpointId>> {
    if kept.newest == 0 {
        return Ok(Vec::new());
    }
    let mut statement = conn.prepare_cached(
        "SELECT c.id, c.kind, c.iteration, c.pinned, c.removal_ms IS NULL,
                p.removal_ms IS NOT NULL AND c.unit_id IS NOT NULL
         FROM checkpoints c LEFT JOIN checkpoints p ON p.id = c.parent_id
         WHERE c.run_id = ?1 AND c.kind IN ('policy', 'reference')",
    )?;
    let mut rows = statement.query([run.get()])?;
    let mut standing = Vec::new();
    while let Some(row) = rows.next()? {
        standing.push(Standing {
            id: CheckpointId(row.get(0)?),
            kind: CheckpointKind::parse(&row.get::<_, String>(1)?)?,
            iteration: row.get(2)?,
            pinned: row.get(3)?,
            present: row.get(4)?,
            follows_removed: row.get(5)?,
        });
    }
    Ok(superfluous(&standing, &needed(conn, run, kept)?, kept.newest))
}

/// What rows need: where the run stands, the policy before its head, what is under way, and what
/// another run or a scorer has as its model.
fn needed(conn: &Connection, run: RunId, kept: &Kept) -> Result<BTreeSet<CheckpointId>> {
    let row = runs::get(conn, run)?;
    let mut needed: BTreeSet<CheckpointId> =
        [row.head, row.initial, row.reference, row.base].into_iter().chain(row.best).collect();
    needed.extend(checkpoints::get(conn, row.head)?.parent);
    let newest: u32 = conn.query_row(
        "SELECT coalesce(max(iteration), 0) FROM iterations WHERE run_id = ?1",
        [run.get()],
        |row| row.get(0),
    )?;
    match references::of(conn, &row, kept.reference, newest + 1) {
        Ok(NextReference::Stands(reference)) => needed.extend([reference]),
        Ok(NextReference::Missing(average)) => needed.extend([average.policy, average.before]),
        // An average that is not sound holds the loop up, and that is told there; nothing goes meanwhile.
        Err(StoreError::Conflict { .. }) => return all_of(conn, run),
        Err(other) => return Err(other),
    }
    for name in &kept.named {
        needed.extend(checkpoints::by_name(conn, run, name)?.map(|found| found.id));
    }
    let mut used = conn.prepare_cached(
        "SELECT i.policy_in FROM iterations i WHERE i.run_id = ?1 AND i.ended_ms IS NULL
         UNION SELECT i.policy_out FROM iterations i
             WHERE i.run_id = ?1 AND i.ended_ms IS NULL AND i.policy_out IS NOT NULL
         UNION SELECT i.reference_id FROM iterations i WHERE i.run_id = ?1 AND i.ended_ms IS NULL
         UNION SELECT a.policy_id FROM iteration_arms a
             JOIN iterations i ON i.run_id = a.run_id AND i.iteration = a.iteration
             WHERE a.run_id = ?1 AND i.ended_ms IS NULL
         UNION SELECT u.policy_id FROM units u WHERE u.run_id = ?1
             AND u.state IN ('open', 'running') AND u.policy_id IS NOT NULL
         -- What an average is made from, beside its policy, stands in its unit's detail alone.
         UNION SELECT c.id FROM checkpoints c WHERE c.run_id = ?1 AND c.kind = 'reference'
             AND EXISTS (SELECT 1 FROM units u WHERE u.run_id = ?1 AND u.work = 'average'
                         AND u.state IN ('open', 'running'))
         UNION SELECT c.id FROM checkpoints c WHERE c.run_id = ?1 AND (
             EXISTS (SELECT 1 FROM checkpoints o WHERE o.run_id <> ?1 AND o.sha256 = c.sha256)
             OR EXISTS (SELECT 1 FROM scorers s WHERE s.sha256 = c.sha256)
             OR EXISTS (SELECT 1 FROM training_jobs j
                        WHERE j.status = 'open' AND j.base_sha256 = c.sha256))",
    )?;
    let ids = used.query_map([run.get()], |row| row.get(0))?;
    for id in ids {
        needed.insert(CheckpointId(id?));
    }
    Ok(needed)
}

fn all_of(conn: &Connection, run: RunId) -> Result<BTreeSet<CheckpointId>> {
    let mut all = conn.prepare_cached("SELECT id FROM checkpoints WHERE run_id = ?1")?;
    let ids = all.query_map([run.get()], |row| Ok(CheckpointId(row.get(0)?)))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}
