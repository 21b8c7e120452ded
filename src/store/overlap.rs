//! Prompts that are trained on and prompts that policies are compared on: none is both.
//!
//! In: the prompts of each example of a training job's upload, or of offline preferences, as folded sums. Out: which examples may
//! stay, because no published prompt that is kept for evaluation is the same; the prompts of those that
//! stay are noted, so that a reserve which is published later leaves them out of `evaluation_prompts`.
//! Both are asked within one writer's transactions, so that whichever comes second gives way.
//! May not enter: what an example is, how a sum is made.

use rlhfd_domain::{RunId, UploadId, limits};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::events::{Level, NewEvent, append};
use crate::open::Store;
use crate::rows::int;
use crate::uploads::{check_batch, get_open};

/// The folded sums of an example's prompts: one of a preference, one for each answer of a conversation.
pub type ExamplePrompts = Vec<[u8; 32]>;

impl Store {
    /// For each of the next examples of an open upload, at most `limits::UPLOAD_BATCH_ROWS`, whether it
    /// stays; those that do not are counted.
    pub fn sift_examples(
        &mut self,
        upload: UploadId,
        examples: &[ExamplePrompts],
    ) -> Result<Vec<bool>> {
        check_batch(upload, examples.len())?;
        self.transact(|conn| {
            get_open(conn, upload)?;
            let mut stay = Vec::with_capacity(examples.len());
            for prompts in examples {
                stay.push(stays(conn, upload, prompts)?);
            }
            let left_out = stay.iter().filter(|stays| !**stays).count() as u64;
            count_left_out(conn, upload, left_out)?;
            conn.execute(
                "UPDATE uploads SET lines = lines + ?2 WHERE id = ?1",
                params![upload.get(), int(left_out)],
            )?;
            Ok(stay)
        })
    }
}

/// Counts examples that did not stay.
pub(crate) fn count_left_out(conn: &Connection, upload: UploadId, left_out: u64) -> Result<()> {
    conn.execute(
        "UPDATE uploads SET evaluation_prompts = evaluation_prompts + ?2 WHERE id = ?1",
        params![upload.get(), int(left_out)],
    )?;
    Ok(())
}

/// Whether an example's prompts are all free to be trained on; then they are noted.
pub(crate) fn stays(conn: &Connection, upload: UploadId, prompts: &[[u8; 32]]) -> Result<bool> {
    for prompt in prompts {
        let met: bool = conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM prompts p JOIN uploads u ON u.id = p.upload_id
                                WHERE p.folded = ?1 AND u.state = 'published')",
            )?
            .query_row([prompt.as_slice()], |row| row.get(0))?;
        if met {
            return Ok(false);
        }
    }
    for prompt in prompts {
        conn.prepare_cached(
            "INSERT OR IGNORE INTO trained_prompts (folded, upload_id) VALUES (?1, ?2)",
        )?
        .execute(params![prompt.as_slice(), upload.get()])?;
    }
    Ok(true)
}

/// Whether offline preferences, or data that a job of this run stands on, or may yet, hold the prompt.
pub(crate) fn is_trained_on(conn: &Connection, run: RunId, prompt: i64) -> Result<bool> {
    let met = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM prompts p JOIN trained_prompts t ON t.folded = p.folded
                 JOIN uploads u ON u.id = t.upload_id
                 LEFT JOIN training_jobs j ON j.upload_id = u.id
                 WHERE p.id = ?2 AND u.state <> 'failed'
                   AND (j.id IS NULL OR j.run_id = ?1 AND j.status IN ('open', 'done')))",
        )?
        .query_row(params![run.get(), prompt], |row| row.get(0))?;
    Ok(met)
}

/// Prompts that were kept for evaluation and are trained on are told, not hidden.
pub(crate) fn tell_left_out(
    conn: &Connection,
    run: RunId,
    iteration: u32,
    left_out: u64,
    now_ms: i64,
) -> Result<()> {
    if left_out == 0 {
        return Ok(());
    }
    let text = format!(
        "{left_out} of the prompts kept for evaluation stand in data of training jobs or in offline \
         preferences: no policy is compared on them"
    );
    let event = NewEvent {
        iteration: Some(iteration),
        level: Level::Warn,
        ..NewEvent::of(run, "evaluation_prompts_left_out", text)
    };
    append(conn, &event, now_ms)?;
    Ok(())
}

/// Deletes a bounded number of notes of failed uploads; whether there were any.
pub(crate) fn sweep(conn: &Connection) -> Result<bool> {
    let failed: Option<i64> = conn
        .prepare_cached(
            "SELECT u.id FROM uploads u JOIN trained_prompts t ON t.upload_id = u.id
             WHERE u.state = 'failed' LIMIT 1",
        )?
        .query_row([], |row| row.get(0))
        .optional()?;
    let Some(upload) = failed else { return Ok(false) };
    let deleted = conn.execute(
        "DELETE FROM trained_prompts WHERE (folded, upload_id) IN
             (SELECT folded, upload_id FROM trained_prompts WHERE upload_id = ?1 LIMIT ?2)",
        params![upload, limits::SWEEP_BATCH_ROWS],
    )?;
    Ok(deleted > 0)
}
