//! Preference sets: offline preferences (D_off) as they come in, and what sets there are.
//!
//! In: checked pairs with their sums, in an open upload. Out: rows of `offline_preferences`, and
//! `PreferenceSet`s. They become visible as prompts do, by the publishing of their upload; exact
//! duplicates are recognised within a set. May not enter: what a run makes of them (`offline_pairs`).

use rlhfd_domain::{Name, PreferenceSetId, UploadId, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::Result;
use crate::open::{Reader, Store};
use crate::overlap;
use crate::rows::{count, found};
use crate::uploads::{Appended, check_batch, count_appended, get_open, note_twins, twins_of};

/// A checked offline preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOffline {
    /// The prompt, JSON: `[{"role", "content"}, …]`.
    pub messages: String,
    /// The better answer.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// The sum of all three.
    pub sha256: [u8; 32],
    /// The prompt's sum without case and spacing.
    pub folded: [u8; 32],
}

/// A row of `preference_sets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceSet {
    /// Its row.
    pub id: PreferenceSetId,
    /// Its name.
    pub name: String,
    /// Published preferences.
    pub preferences: u64,
    /// When its first upload was opened.
    pub created_ms: i64,
}

fn read(row: &Row<'_>) -> rusqlite::Result<PreferenceSet> {
    Ok(PreferenceSet {
        id: PreferenceSetId(row.get(0)?),
        name: row.get(1)?,
        preferences: count(row.get(2)?),
        created_ms: row.get(3)?,
    })
}

/// The set of that name, made where there is none.
pub(crate) fn set(conn: &Connection, name: &Name, now_ms: i64) -> Result<PreferenceSetId> {
    conn.execute(
        "INSERT INTO preference_sets (name, created_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![name.as_str(), now_ms],
    )?;
    let id =
        conn.query_row("SELECT id FROM preference_sets WHERE name = ?1", [name.as_str()], |row| {
            row.get(0)
        })?;
    Ok(PreferenceSetId(id))
}

/// The set of that name, if something of it was published.
pub(crate) fn published(conn: &Connection, name: &str) -> Result<Option<PreferenceSet>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, name, preferences, created_ms FROM preference_sets
         WHERE name = ?1 AND preferences > 0",
    )?;
    Ok(statement.query_row([name], read).optional()?)
}

impl Store {
    /// Takes in the next rows of an open upload of offline preferences, at most
    /// `limits::UPLOAD_BATCH_ROWS`; those whose prompt is kept for evaluation are left out, and counted.
    pub fn append_offline(&mut self, upload: UploadId, rows: &[NewOffline]) -> Result<Appended> {
        check_batch(upload, rows.len())?;
        self.transact(|conn| {
            let open = get_open(conn, upload)?;
            let set = found(open.preference_set, "preference set of upload", upload)?;
            let mut appended = Appended::default();
            let mut left_out = 0;
            for row in rows {
                if overlap::stays(conn, upload, &[row.folded])? {
                    add(conn, upload, row, set, &mut appended)?;
                } else {
                    left_out += 1;
                }
            }
            overlap::count_left_out(conn, upload, left_out)?;
            count_appended(conn, upload, rows.len(), &appended)?;
            Ok(appended)
        })
    }
}

fn add(
    conn: &Connection,
    upload: UploadId,
    row: &NewOffline,
    set: PreferenceSetId,
    appended: &mut Appended,
) -> Result<()> {
    let mut lookup = conn.prepare_cached(
        "SELECT p.id, p.upload_id, u.state FROM offline_preferences p
         JOIN uploads u ON u.id = p.upload_id
         WHERE p.sha256 = ?1 AND u.preference_set_id = ?2 AND u.state <> 'failed'",
    )?;
    let known = &mut lookup.query(params![row.sha256.as_slice(), set.get()])?;
    let Some(twins) = twins_of(upload, known)? else {
        appended.duplicates += 1;
        return Ok(());
    };
    conn.prepare_cached(
        "INSERT INTO offline_preferences (upload_id, messages, chosen, rejected, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        upload.get(),
        row.messages,
        row.chosen,
        row.rejected,
        row.sha256.as_slice()
    ])?;
    appended.kept += 1;
    note_twins(conn, upload, conn.last_insert_rowid(), &twins)
}

impl Reader {
    /// All sets that something was published of, oldest first.
    pub fn preference_sets(&self) -> Result<Vec<PreferenceSet>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id, name, preferences, created_ms FROM preference_sets
             WHERE preferences > 0 ORDER BY id LIMIT ?1",
        )?;
        let rows = statement.query_map([limits::LIST_ROWS_MAX], read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The set of that name, if something of it was published.
    pub fn preference_set(&self, name: &str) -> Result<Option<PreferenceSet>> {
        published(&self.conn, name)
    }
}
