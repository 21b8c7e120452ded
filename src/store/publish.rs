//! The end of an upload: published by one small transaction, or failed and swept in short ones.
//!
//! In: an open upload. Out: the same, visible or without rows. Twins that another upload published
//! meanwhile are taken out before, a bounded number a call. May not enter: how rows came in.

use rlhfd_domain::{UploadId, limits};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::events::{NewEvent, append};
use crate::open::Store;
use crate::overlap;
use crate::rows::int;
use crate::uploads::{Publish, Upload, get, get_open};

impl Store {
    /// Makes an upload visible, and tells who sent it. Call until it is done: each call is short.
    pub fn publish_upload(
        &mut self,
        upload: UploadId,
        uid: Option<u32>,
        now_ms: i64,
    ) -> Result<Publish> {
        self.transact(|conn| {
            let open = get(conn, upload)?;
            if open.state == "published" {
                return Ok(Publish::Done(Box::new(open)));
            }
            get_open(conn, upload)?;
            if drop_lost_twins(conn, &open)? {
                return Ok(Publish::Again);
            }
            publish(conn, upload, uid, now_ms).map(|done| Publish::Done(Box::new(done)))
        })
    }

    /// Gives an open upload up. Its rows are invisible at once and swept later.
    pub fn fail_upload(&mut self, upload: UploadId, why: &str, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            fail(conn, upload, now_ms)?;
            let text = format!("upload {upload} was given up: {why}");
            append(conn, &NewEvent::about("upload_failed", text), now_ms)?;
            Ok(())
        })
    }

    /// Deletes a bounded number of rows of failed uploads. True: there may be more, call again.
    pub fn sweep_uploads(&mut self) -> Result<bool> {
        self.transact(sweep)
    }
}

/// A failed upload gives its key back, so that the client may try again under it.
pub(crate) fn fail(conn: &Connection, upload: UploadId, now_ms: i64) -> Result<()> {
    conn.execute(
        "UPDATE uploads SET state = 'failed', ended_ms = ?2, client_key = NULL
         WHERE id = ?1 AND state = 'open'",
        params![upload.get(), now_ms],
    )?;
    Ok(())
}

/// Takes out rows whose twin was published meanwhile, a bounded number; whether there were any.
fn drop_lost_twins(conn: &Connection, open: &Upload) -> Result<bool> {
    let upload = open.id;
    let lost: Vec<i64> = conn
        .prepare_cached(
            "SELECT DISTINCT t.row_id FROM upload_twins t JOIN uploads u ON u.id = t.other_upload_id
             WHERE t.upload_id = ?1 AND u.state = 'published' LIMIT ?2",
        )?
        .query_map(params![upload.get(), limits::SWEEP_BATCH_ROWS], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut reserved_lost = 0_u64;
    let take_out = match open.preference_set {
        None => "DELETE FROM prompts WHERE id = ?1 RETURNING reserved",
        Some(_) => "DELETE FROM offline_preferences WHERE id = ?1 RETURNING 0",
    };
    for row in &lost {
        let reserved: bool =
            conn.prepare_cached(take_out)?.query_row([row], |taken| taken.get(0))?;
        reserved_lost += u64::from(reserved);
        conn.prepare_cached("DELETE FROM upload_twins WHERE upload_id = ?1 AND row_id = ?2")?
            .execute(params![upload.get(), row])?;
    }
    conn.execute(
        "UPDATE uploads SET kept = kept - ?2, duplicates = duplicates + ?2, reserved = reserved - ?3
         WHERE id = ?1",
        params![upload.get(), int(lost.len() as u64), int(reserved_lost)],
    )?;
    Ok(!lost.is_empty())
}

fn publish(conn: &Connection, upload: UploadId, uid: Option<u32>, now_ms: i64) -> Result<Upload> {
    conn.execute(
        "UPDATE uploads SET state = 'published', ended_ms = ?2,
                published_seq = (SELECT coalesce(max(published_seq), 0) + 1 FROM uploads)
         WHERE id = ?1",
        params![upload.get(), now_ms],
    )?;
    let done = get(conn, upload)?;
    if let Some(set) = done.set {
        conn.execute(
            "UPDATE prompt_sets SET prompts = prompts + ?2, reserved = reserved + ?3 WHERE id = ?1",
            params![set.get(), int(done.kept), int(done.reserved)],
        )?;
    }
    if let Some(set) = done.preference_set {
        conn.execute(
            "UPDATE preference_sets SET preferences = preferences + ?2 WHERE id = ?1",
            params![set.get(), int(done.kept)],
        )?;
    }
    let mut text = format!(
        "{} {} for {}: {} of them held back, {} there before, {} bad",
        done.kept, done.kind, done.name, done.reserved, done.duplicates, done.bad
    );
    if done.evaluation_prompts > 0 {
        let left_out = done.evaluation_prompts;
        text.push_str(&format!("; {left_out} left out: evaluation_prompt"));
    }
    append(conn, &NewEvent { uid, ..NewEvent::about("upload_published", text) }, now_ms)?;
    Ok(done)
}

fn sweep(conn: &Connection) -> Result<bool> {
    if overlap::sweep(conn)? {
        return Ok(true);
    }
    let failed: Option<(i64, Option<i64>, Option<i64>)> = conn
        .prepare_cached(
            "SELECT id, set_id, preference_set_id FROM uploads WHERE state = 'failed'
             AND (set_id IS NOT NULL OR preference_set_id IS NOT NULL) LIMIT 1",
        )?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((upload, set, preference_set)) = failed else { return Ok(false) };
    let mut deleted = 0;
    for rows_of in [
        "DELETE FROM prompts WHERE id IN (SELECT id FROM prompts WHERE upload_id = ?1 LIMIT ?2)",
        "DELETE FROM offline_preferences WHERE id IN
             (SELECT id FROM offline_preferences WHERE upload_id = ?1 LIMIT ?2)",
        "DELETE FROM upload_twins WHERE (upload_id, row_id, other_upload_id) IN
             (SELECT upload_id, row_id, other_upload_id FROM upload_twins
              WHERE upload_id = ?1 OR other_upload_id = ?1 LIMIT ?2)",
    ] {
        deleted += conn.execute(rows_of, params![upload, limits::SWEEP_BATCH_ROWS])?;
    }
    if deleted > 0 {
        return Ok(true);
    }
    // The upload has no rows left: it lets its set go, and a set that nobody ever filled with it.
    conn.execute(
        "UPDATE uploads SET set_id = NULL, preference_set_id = NULL WHERE id = ?1",
        [upload],
    )?;
    conn.execute(
        "DELETE FROM prompt_sets WHERE id = ?1 AND prompts = 0
         AND NOT EXISTS (SELECT 1 FROM uploads WHERE set_id = ?1)",
        [set],
    )?;
    conn.execute(
        "DELETE FROM preference_sets WHERE id = ?1 AND preferences = 0
         AND NOT EXISTS (SELECT 1 FROM uploads WHERE preference_set_id = ?1)",
        [preference_set],
    )?;
    Ok(true)
}
