//! Draws: which prompts an iteration takes, and the list that policies are compared on.
//!
//! In: a run and a number. Out: rows of `draws` and `evaluation_prompts`. Prompts that came back from
//! a cancelled iteration are drawn first; then fresh ones of the sets of the highest priority, shared
//! among these by weight and spread evenly over the draw, then of the next priority. Within a set
//! uploads go in order, each from a cursor, so that a draw costs what it takes and not what is queued.
//! No prompt is drawn twice, unless it is asked for: then the pool starts over, oldest used first.
//! May not enter: how many an iteration should take.

use rlhfd_domain::share::{apportion, interleave};
use rlhfd_domain::{RunId, UploadId};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::overlap;
use crate::rows::{count, int};

/// The next fresh prompts, at most `wanted`, as rows of `draws` from ordinal 0; where they do not
/// suffice and `reuse` is asked for, used ones after them. Returns how many.
pub(crate) fn draw(
    conn: &Connection,
    run: RunId,
    iteration: u32,
    wanted: u64,
    reuse: bool,
) -> Result<u64> {
    let mut taken = take_returned(conn, run, iteration, wanted)?;
    for mut sets in open_sets(conn, run)? {
        for prompt in take_shares(conn, run, &mut sets, wanted - taken)? {
            insert(conn, run, iteration, (taken, prompt, 0))?;
            taken += 1;
        }
    }
    count_drawn(conn, run, iteration)?;
    if reuse {
        taken += take_used(conn, run, iteration, taken, wanted)?;
    }
    Ok(taken)
}

/// A set that may still have fresh prompts, with its uploads that are not exhausted, in order.
struct OpenSet {
    weight: f64,
    uploads: Vec<UploadId>,
}

/// Groups of one priority, the highest first; the sets of a group in order of their making.
fn open_sets(conn: &Connection, run: RunId) -> Result<Vec<Vec<OpenSet>>> {
    let mut groups: Vec<(i64, Vec<OpenSet>)> = Vec::new();
    let mut last = None;
    for open in open_uploads(conn, run, false)? {
        if groups.last().is_none_or(|(priority, _)| *priority != open.priority) {
            groups.push((open.priority, Vec::new()));
        }
        let Some((_, sets)) = groups.last_mut() else { continue };
        if last != Some(open.set) {
            sets.push(OpenSet { weight: open.weight, uploads: Vec::new() });
            last = Some(open.set);
        }
        if let Some(set) = sets.last_mut() {
            set.uploads.push(open.upload);
        }
    }
    Ok(groups.into_iter().map(|(_, sets)| sets).collect())
}

/// The next prompts of sets of one priority, in proportion to weight; a set that runs short leaves its
/// share to the others. In the order of the draw.
fn take_shares(
    conn: &Connection,
    run: RunId,
    sets: &mut [OpenSet],
    wanted: u64,
) -> Result<Vec<i64>> {
    let mut lists: Vec<Vec<i64>> = sets.iter().map(|_| Vec::new()).collect();
    let mut left = wanted;
    // Each turn but the last empties a set.
    while left > 0 && sets.iter().any(|set| !set.uploads.is_empty()) {
        let weights: Vec<f64> =
            sets.iter().map(|set| if set.uploads.is_empty() { 0.0 } else { set.weight }).collect();
        let shares = apportion(left, &weights);
        for ((set, list), share) in sets.iter_mut().zip(&mut lists).zip(shares) {
            left -= take_share(conn, run, set, list, share)?;
        }
    }
    let lengths: Vec<u64> = lists.iter().map(|list| list.len() as u64).collect();
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let order = interleave(&lengths);
    Ok(order.into_iter().filter_map(|list| lists.get_mut(list)?.next()).collect())
}

/// A set's share, from its uploads in order; those that gave all they had are let go.
fn take_share(
    conn: &Connection,
    run: RunId,
    set: &mut OpenSet,
    list: &mut Vec<i64>,
    share: u64,
) -> Result<u64> {
    let mut taken = 0;
    while taken < share
        && let Some(upload) = set.uploads.first().copied()
    {
        let prompts = advance(conn, run, upload, false, share - taken)?;
        taken += prompts.len() as u64;
        list.extend(prompts);
        if taken < share {
            set.uploads.remove(0);
        }
    }
    Ok(taken)
}

/// What a draw took out of the pool.
fn count_drawn(conn: &Connection, run: RunId, iteration: u32) -> Result<()> {
    conn.execute(
        "INSERT INTO run_sets (run_id, set_id, drawn)
         SELECT d.run_id, u.set_id, count(*) FROM draws d
         JOIN prompts p ON p.id = d.prompt_id JOIN uploads u ON u.id = p.upload_id
         WHERE d.run_id = ?1 AND d.iteration = ?2 GROUP BY u.set_id
         ON CONFLICT (run_id, set_id) DO UPDATE SET drawn = drawn + excluded.drawn",
        params![run.get(), iteration],
    )?;
    Ok(())
}

/// The pool starts over: prompts that earlier iterations used, the one that was used longest ago
/// first. Draws are the queue: every used prompt stands behind the cursor once, at its last use.
/// Draws that were returned are in the pool already, and refused prompts would be refused again.
fn take_used(
    conn: &Connection,
    run: RunId,
    iteration: u32,
    taken: u64,
    wanted: u64,
) -> Result<u64> {
    let cursor: Option<(i64, i64)> = conn
        .query_row(
            "SELECT iteration, ordinal FROM reuse_cursors WHERE run_id = ?1",
            [run.get()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let (after, at) = cursor.unwrap_or((0, -1));
    let used: Vec<(i64, i64, i64, i64)> = conn
        .prepare_cached(
            "SELECT iteration, ordinal, prompt_id, used_before FROM draws
             WHERE run_id = ?1 AND (iteration, ordinal) > (?2, ?3) AND iteration < ?4
               AND returned_ms IS NULL AND set_aside IS NULL
             ORDER BY iteration, ordinal LIMIT ?5",
        )?
        .query_map(params![run.get(), after, at, iteration, int(wanted - taken)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    for (ordinal, (_, _, prompt, before)) in (taken..).zip(&used) {
        insert(conn, run, iteration, (ordinal, *prompt, before + 1))?;
    }
    if let Some((last, at, _, _)) = used.last() {
        conn.execute(
            "INSERT INTO reuse_cursors (run_id, iteration, ordinal) VALUES (?1, ?2, ?3)
             ON CONFLICT (run_id) DO UPDATE SET iteration = ?2, ordinal = ?3",
            params![run.get(), last, at],
        )?;
    }
    Ok(used.len() as u64)
}

/// How long the evaluation list is, and how many prompts could not join it now.
pub(crate) struct Extended {
    pub(crate) length: u64,
    pub(crate) trained_on: u64,
}

/// Lets the run's evaluation list grow to at most `wanted` prompts, one from each upload in turn so
/// that every set has its share. What a training job of the run was given is passed over.
pub(crate) fn extend_evaluation(conn: &Connection, run: RunId, wanted: u64) -> Result<Extended> {
    let last: Option<i64> = conn
        .query_row(
            "SELECT ordinal FROM evaluation_prompts WHERE run_id = ?1
             ORDER BY ordinal DESC LIMIT 1",
            [run.get()],
            |row| row.get(0),
        )
        .optional()?;
    let mut ordinal = last.map_or(0, |last| count(last) + 1);
    let mut trained_on = 0;
    let mut open: Vec<UploadId> =
        open_uploads(conn, run, true)?.into_iter().map(|open| open.upload).collect();
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
                if overlap::is_trained_on(conn, run, prompt)? {
                    trained_on += 1;
                    continue;
                }
                conn.prepare_cached(
                    "INSERT INTO evaluation_prompts (run_id, ordinal, prompt_id) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![run.get(), int(ordinal), prompt])?;
                ordinal += 1;
            }
        }
        open = still_open;
    }
    Ok(Extended { length: ordinal.min(wanted), trained_on })
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

fn insert(
    conn: &Connection,
    run: RunId,
    iteration: u32,
    (ordinal, prompt, used_before): (u64, i64, i64),
) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO draws (run_id, iteration, ordinal, prompt_id, used_before)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![run.get(), iteration, int(ordinal), prompt, used_before])?;
    Ok(())
}

fn take_returned(conn: &Connection, run: RunId, iteration: u32, wanted: u64) -> Result<u64> {
    let prompts: Vec<(i64, i64)> = conn
        .prepare_cached(
            "SELECT r.prompt_id, (SELECT count(*) FROM draws d WHERE d.prompt_id = r.prompt_id
                                  AND d.run_id = ?1 AND d.returned_ms IS NULL)
             FROM returned_prompts r WHERE r.run_id = ?1 ORDER BY r.prompt_id LIMIT ?2",
        )?
        .query_map(params![run.get(), int(wanted)], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (ordinal, (prompt, used_before)) in (0_u64..).zip(&prompts) {
        insert(conn, run, iteration, (ordinal, *prompt, *used_before))?;
        conn.prepare_cached("DELETE FROM returned_prompts WHERE prompt_id = ?2 AND run_id = ?1")?
            .execute(params![run.get(), prompt])?;
    }
    Ok(prompts.len() as u64)
}

/// A published upload that may still have something for a run.
struct OpenUpload {
    upload: UploadId,
    set: i64,
    priority: i64,
    weight: f64,
}

/// Those uploads, by priority, set, and publishing.
fn open_uploads(conn: &Connection, run: RunId, reserved: bool) -> Result<Vec<OpenUpload>> {
    let rows = conn
        .prepare_cached(
            "SELECT u.id, s.id, s.priority, s.weight FROM uploads u JOIN prompt_sets s ON s.id = u.set_id
             LEFT JOIN draw_cursors c ON c.run_id = ?1 AND c.reserved = ?2 AND c.upload_id = u.id
             WHERE u.state = 'published' AND coalesce(c.exhausted, 0) = 0
             ORDER BY s.priority DESC, s.id, u.published_seq",
        )?
        .query_map(params![run.get(), reserved], |row| {
            Ok(OpenUpload {
                upload: UploadId(row.get(0)?),
                set: row.get(1)?,
                priority: row.get(2)?,
                weight: row.get(3)?,
            })
        })?
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
