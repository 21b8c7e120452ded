//! Draws: which prompts an iteration takes, and the list that policies are compared on.
//!
//! In: a run and a number. Out: rows of `draws` and `evaluation_prompts`. Prompts that came back from
//! a cancelled iteration are drawn first; then uploads in order (sets of a higher priority first), each
//! from a cursor, so that a draw costs what it takes and not what is queued. No prompt is drawn twice.
//! May not enter: how many an iteration should take.

use rlhfd_domain::{RunId, UploadId};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::rows::{count, int};

/// The next fresh prompts, at most `wanted`, as rows of `draws` from ordinal 0. Returns how many.
pub(crate) fn draw(conn: &Connection, run: RunId, iteration: u32, wanted: u64) -> Result<u64> {
    let mut taken = take_returned(conn, run, iteration, wanted)?;
    for upload in uploads(conn, run, false)? {
        if taken >= wanted {
            break;
        }
        let prompts = advance(conn, run, upload, false, wanted - taken)?;
        for prompt in prompts {
            insert(conn, run, iteration, taken, prompt)?;
            taken += 1;
        }
    }
    conn.execute(
        "INSERT INTO run_sets (run_id, set_id, drawn)
         SELECT d.run_id, u.set_id, count(*) FROM draws d
         JOIN prompts p ON p.id = d.prompt_id JOIN uploads u ON u.id = p.upload_id
         WHERE d.run_id = ?1 AND d.iteration = ?2 GROUP BY u.set_id
         ON CONFLICT (run_id, set_id) DO UPDATE SET drawn = drawn + excluded.drawn",
        params![run.get(), iteration],
    )?;
    Ok(taken)
}

/// Lets the run's evaluation list grow to at most `wanted` prompts, one from each upload in turn so
/// that every set has its share. Returns its length, at most `wanted`.
pub(crate) fn extend_evaluation(conn: &Connection, run: RunId, wanted: u64) -> Result<u64> {
    let last: Option<i64> = conn
        .query_row(
            "SELECT ordinal FROM evaluation_prompts WHERE run_id = ?1
             ORDER BY ordinal DESC LIMIT 1",
            [run.get()],
            |row| row.get(0),
        )
        .optional()?;
    let mut ordinal = last.map_or(0, |last| count(last) + 1);
    let mut open = uploads(conn, run, true)?;
    while ordinal < wanted && !open.is_empty() {
        // A share for each upload, so that a long list costs few turns.
        let share = ((wanted - ordinal) / open.len() as u64).max(1);
        let mut still_open = Vec::new();
        for upload in open {
            if ordinal >= wanted {
                break;
            }
            let prompts = advance(conn, run, upload, true, share.min(wanted - ordinal))?;
            if !prompts.is_empty() {
                still_open.push(upload);
            }
            for prompt in prompts {
                conn.prepare_cached(
                    "INSERT INTO evaluation_prompts (run_id, ordinal, prompt_id) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![run.get(), int(ordinal), prompt])?;
                ordinal += 1;
            }
        }
        open = still_open;
    }
    Ok(ordinal.min(wanted))
}

/// Puts a cancelled iteration's prompts back into the pool.
pub(crate) fn give_back(conn: &Connection, run: RunId, iteration: u32, now_ms: i64) -> Result<()> {
    let key = params![run.get(), iteration];
    conn.execute(
        "UPDATE run_sets SET drawn = drawn -
             (SELECT count(*) FROM draws d
              JOIN prompts p ON p.id = d.prompt_id JOIN uploads u ON u.id = p.upload_id
              WHERE d.run_id = ?1 AND d.iteration = ?2 AND u.set_id = run_sets.set_id)
         WHERE run_id = ?1",
        key,
    )?;
    conn.execute(
        "INSERT OR IGNORE INTO returned_prompts (run_id, prompt_id)
         SELECT run_id, prompt_id FROM draws WHERE run_id = ?1 AND iteration = ?2",
        key,
    )?;
    conn.execute(
        "UPDATE draws SET returned_ms = ?3 WHERE run_id = ?1 AND iteration = ?2",
        params![run.get(), iteration, now_ms],
    )?;
    Ok(())
}

fn insert(conn: &Connection, run: RunId, iteration: u32, ordinal: u64, prompt: i64) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO draws (run_id, iteration, ordinal, prompt_id) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![run.get(), iteration, int(ordinal), prompt])?;
    Ok(())
}

fn take_returned(conn: &Connection, run: RunId, iteration: u32, wanted: u64) -> Result<u64> {
    let prompts: Vec<i64> = conn
        .prepare_cached(
            "SELECT prompt_id FROM returned_prompts WHERE run_id = ?1 ORDER BY prompt_id LIMIT ?2",
        )?
        .query_map(params![run.get(), int(wanted)], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for (ordinal, prompt) in (0_u64..).zip(&prompts) {
        insert(conn, run, iteration, ordinal, *prompt)?;
        conn.prepare_cached("DELETE FROM returned_prompts WHERE prompt_id = ?2 AND run_id = ?1")?
            .execute(params![run.get(), prompt])?;
    }
    Ok(prompts.len() as u64)
}

/// Published uploads that may still have something for this run, in drawing order.
fn uploads(conn: &Connection, run: RunId, reserved: bool) -> Result<Vec<UploadId>> {
    let rows = conn
        .prepare_cached(
            "SELECT u.id FROM uploads u JOIN prompt_sets s ON s.id = u.set_id
             LEFT JOIN draw_cursors c ON c.run_id = ?1 AND c.reserved = ?2 AND c.upload_id = u.id
             WHERE u.state = 'published' AND coalesce(c.exhausted, 0) = 0
             ORDER BY s.priority DESC, u.published_seq",
        )?
        .query_map(params![run.get(), reserved], |row| row.get(0).map(UploadId))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

/// The next prompts of an upload, with its cursor moved behind them.
fn advance(
    conn: &Connection,
    run: RunId,
    upload: UploadId,
    reserved: bool,
    wanted: u64,
) -> Result<Vec<i64>> {
    let last: Option<i64> = conn
        .prepare_cached(
            "SELECT last_prompt_id FROM draw_cursors
             WHERE run_id = ?1 AND reserved = ?2 AND upload_id = ?3",
        )?
        .query_row(params![run.get(), reserved, upload.get()], |row| row.get(0))
        .optional()?;
    let after = last.unwrap_or(0);
    let prompts: Vec<i64> = conn
        .prepare_cached(
            "SELECT id FROM prompts WHERE upload_id = ?1 AND reserved = ?2 AND id > ?3
             ORDER BY id LIMIT ?4",
        )?
        .query_map(params![upload.get(), reserved, after, int(wanted)], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let exhausted = (prompts.len() as u64) < wanted;
    conn.prepare_cached(
        "INSERT INTO draw_cursors (run_id, upload_id, reserved, last_prompt_id, exhausted)
         VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (run_id, reserved, upload_id) DO UPDATE
         SET last_prompt_id = excluded.last_prompt_id, exhausted = excluded.exhausted",
    )?
    .execute(params![
        run.get(),
        upload.get(),
        reserved,
        prompts.last().copied().unwrap_or(after),
        exhausted
    ])?;
    Ok(prompts)
}
