//! Uploads: how prompts of any number come in by short transactions and become visible by one.
//!
//! ```text
//!   open ──append, append, …──▶ open ──publish (again until done)──▶ published
//!    │ refused, cut off, daemon restarted
//!    └──▶ failed ──sweep (again until done)──▶ failed, without rows
//! ```
//!
//! In: checked prompts with their sums (offline preferences: `offline`). Out: `Upload`. A slow client never holds the writer, and rows
//! of an upload that is not published are never drawn, counted or listed. Duplicates are recognised
//! within the upload and against all published ones as rows come in; against another open upload they
//! are kept as twins, and the one that is published second loses its copy.
//! May not enter: JSON lines, sockets.

use rlhfd_domain::{Name, PreferenceSetId, SetId, UploadId, limits, prompt};
use rusqlite::{Connection, OptionalExtension, Row, Rows, params};

use crate::error::{Result, StoreError};
use crate::open::{Reader, Store};
use crate::rows::{count, found, int};
use crate::{offline, prompts};

/// What an upload brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadKind {
    /// Prompts for a set.
    Prompts,
    /// Conversations for a training job; they lie in a file.
    Conversations,
    /// Preferences for a training job; they lie in a file.
    Preferences,
    /// Offline preferences for a set that iterations train on.
    OfflinePreferences,
}

impl UploadKind {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Conversations => "conversations",
            Self::Preferences => "preferences",
            Self::OfflinePreferences => "offline_preferences",
        }
    }
}

/// An upload to open.
#[derive(Debug, Clone, PartialEq)]
pub struct NewUpload {
    /// Makes a retry harmless.
    pub client_key: Option<String>,
    /// What it brings.
    pub kind: UploadKind,
    /// The prompt or preference set, or the training job.
    pub name: Name,
    /// What is asked of a prompt set.
    pub set: SetAsked,
}

/// What an upload asks of its prompt set; none: as the set is, and a new set's defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SetAsked {
    /// Share held back for evaluation; 0 for a new set.
    pub reserve_share: Option<f64>,
    /// Sets of a higher priority are drawn first; 0 for a new set. It holds from the next draw on.
    pub priority: Option<i64>,
    /// Weight among sets of the same priority; 1 for a new set. It holds from the next draw on.
    pub weight: Option<f64>,
}

/// What came of opening an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadOpened {
    /// It is open: send the rows.
    Fresh(Upload),
    /// The same key was published before: nothing is to be done.
    Done(Upload),
}

/// A row of `uploads`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its row.
    pub id: UploadId,
    /// The client's key.
    pub client_key: Option<String>,
    /// As [`UploadKind::label`].
    pub kind: String,
    /// The prompt or preference set, or the training job.
    pub name: String,
    /// The prompt set.
    pub set: Option<SetId>,
    /// The preference set.
    pub preference_set: Option<PreferenceSetId>,
    /// `open`, `published` or `failed`.
    pub state: String,
    /// Lines seen.
    pub lines: u64,
    /// Rows kept.
    pub kept: u64,
    /// Rows of these held back for evaluation.
    pub reserved: u64,
    /// Rows that were there before.
    pub duplicates: u64,
    /// Lines that could not be read and were skipped.
    pub bad: u64,
    /// Examples of a training job left out because a prompt kept for evaluation is theirs.
    pub evaluation_prompts: u64,
    /// When it was opened.
    pub created_ms: i64,
    /// When it was published or failed.
    pub ended_ms: Option<i64>,
}

/// A checked prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPrompt {
    /// JSON: `[{"role", "content"}, …]`.
    pub messages: String,
    /// The sum of its canonical bytes.
    pub sha256: [u8; 32],
    /// The sum by which training data are held against it.
    pub folded: [u8; 32],
}

/// What became of the rows of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Appended {
    /// Rows kept.
    pub kept: u64,
    /// Rows of these held back for evaluation.
    pub reserved: u64,
    /// Rows that were there before.
    pub duplicates: u64,
}

/// What a step of publishing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// Twins were taken out; call again.
    Again,
    /// It is published.
    Done(Box<Upload>),
}

const COLUMNS: &str = "id, client_key, kind, name, set_id, state, lines, kept, reserved, \
                       duplicates, bad, created_ms, ended_ms, preference_set_id, evaluation_prompts";

fn read(row: &Row<'_>) -> rusqlite::Result<Upload> {
    Ok(Upload {
        id: UploadId(row.get(0)?),
        client_key: row.get(1)?,
        kind: row.get(2)?,
        name: row.get(3)?,
        set: row.get::<_, Option<i64>>(4)?.map(SetId),
        state: row.get(5)?,
        lines: count(row.get(6)?),
        kept: count(row.get(7)?),
        reserved: count(row.get(8)?),
        duplicates: count(row.get(9)?),
        bad: count(row.get(10)?),
        created_ms: row.get(11)?,
        ended_ms: row.get(12)?,
        preference_set: row.get::<_, Option<i64>>(13)?.map(PreferenceSetId),
        evaluation_prompts: count(row.get(14)?),
    })
}

pub(crate) fn get(conn: &Connection, id: UploadId) -> Result<Upload> {
    let text = format!("SELECT {COLUMNS} FROM uploads WHERE id = ?1");
    let row = conn.prepare_cached(&text)?.query_row([id.get()], read).optional()?;
    found(row, "upload", id)
}

pub(crate) fn get_open(conn: &Connection, id: UploadId) -> Result<Upload> {
    let upload = get(conn, id)?;
    if upload.state == "open" {
        return Ok(upload);
    }
    Err(StoreError::Conflict {
        what: "upload",
        name: id.to_string(),
        why: format!("is {}, so that it takes no rows: begin a new one", upload.state),
    })
}

impl Reader {
    /// An upload by its row.
    pub fn upload(&self, id: UploadId) -> Result<Upload> {
        get(&self.conn, id)
    }

    /// An upload by its client's key.
    pub fn upload_by_key(&self, key: &str) -> Result<Option<Upload>> {
        let text = format!("SELECT {COLUMNS} FROM uploads WHERE client_key = ?1");
        Ok(self.conn.prepare_cached(&text)?.query_row([key], read).optional()?)
    }
}

impl Store {
    /// Opens an upload, and its set where there is none of that name.
    pub fn open_upload(&mut self, new: &NewUpload, now_ms: i64) -> Result<UploadOpened> {
        self.transact(|conn| {
            if let Some(key) = &new.client_key
                && let Some(upload) = known_key(conn, key, new)?
            {
                return Ok(UploadOpened::Done(upload));
            }
            let open: i64 =
                conn.query_row("SELECT count(*) FROM uploads WHERE state = 'open'", [], |row| {
                    row.get(0)
                })?;
            if count(open) >= limits::UPLOADS_OPEN_MAX {
                return Err(StoreError::Conflict {
                    what: "upload",
                    name: new.name.to_string(),
                    why: format!("is one too many: {open} are open already, wait for one to end"),
                });
            }
            let set = match new.kind {
                UploadKind::Prompts => Some(prompt_set(conn, new, now_ms)?),
                UploadKind::Conversations
                | UploadKind::Preferences
                | UploadKind::OfflinePreferences => None,
            };
            let preference_set = match new.kind {
                UploadKind::OfflinePreferences => Some(offline::set(conn, &new.name, now_ms)?),
                UploadKind::Prompts | UploadKind::Conversations | UploadKind::Preferences => None,
            };
            conn.execute(
                "INSERT INTO uploads (client_key, kind, name, set_id, preference_set_id, state,
                                      created_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'open', ?6)",
                params![
                    new.client_key,
                    new.kind.label(),
                    new.name.as_str(),
                    set.map(SetId::get),
                    preference_set.map(PreferenceSetId::get),
                    now_ms
                ],
            )?;
            get(conn, UploadId(conn.last_insert_rowid())).map(UploadOpened::Fresh)
        })
    }

    /// Takes in the next rows of an open upload of prompts, at most `limits::UPLOAD_BATCH_ROWS`.
    pub fn append_prompts(&mut self, upload: UploadId, rows: &[NewPrompt]) -> Result<Appended> {
        check_batch(upload, rows.len())?;
        self.transact(|conn| {
            let open = get_open(conn, upload)?;
            let set = found(open.set, "prompt set of upload", upload)?;
            let share: f64 = conn
                .prepare_cached("SELECT reserve_share FROM prompt_sets WHERE id = ?1")?
                .query_row([set.get()], |row| row.get(0))?;
            let mut appended = Appended::default();
            for row in rows {
                add_prompt(conn, upload, row, share, &mut appended)?;
            }
            count_appended(conn, upload, rows.len(), &appended)?;
            Ok(appended)
        })
    }

    /// Counts lines of an open upload without keeping rows: `bad` could not be read and were skipped,
    /// `kept` lie in the upload's own file.
    pub fn count_lines(&mut self, upload: UploadId, kept: u64, bad: u64) -> Result<()> {
        self.transact(|conn| {
            get_open(conn, upload)?;
            conn.execute(
                "UPDATE uploads SET lines = lines + ?2 + ?3, kept = kept + ?2, bad = bad + ?3
                 WHERE id = ?1",
                params![upload.get(), int(kept), int(bad)],
            )?;
            Ok(())
        })
    }
}

fn known_key(conn: &Connection, key: &str, new: &NewUpload) -> Result<Option<Upload>> {
    let text = format!("SELECT {COLUMNS} FROM uploads WHERE client_key = ?1");
    let known = conn.prepare_cached(&text)?.query_row([key], read).optional()?;
    let conflict = |why: &str| StoreError::Conflict {
        what: "upload key",
        name: key.to_owned(),
        why: why.to_owned(),
    };
    match known {
        None => Ok(None),
        Some(upload) if upload.state != "published" => {
            Err(conflict("is being uploaded now: wait for it to end"))
        }
        Some(upload) if upload.name != new.name.as_str() || upload.kind != new.kind.label() => {
            Err(conflict("was used for another set or job: choose a key of its own"))
        }
        Some(upload) => Ok(Some(upload)),
    }
}

fn prompt_set(conn: &Connection, new: &NewUpload, now_ms: i64) -> Result<SetId> {
    let set = with_reserve(conn, new, now_ms)?;
    prompts::order_set(conn, &new.name, new.set.priority, new.set.weight)?;
    Ok(set)
}

/// The set of this name with the reserve that was asked for, made where it does not exist.
fn with_reserve(conn: &Connection, new: &NewUpload, now_ms: i64) -> Result<SetId> {
    let refused =
        |why: String| StoreError::Conflict { what: "prompt set", name: new.name.to_string(), why };
    let reserve = new.set.reserve_share;
    if reserve.is_some_and(|share| !(0.0..1.0).contains(&share)) {
        return Err(refused("needs a reserve share from 0 to below 1".to_owned()));
    }
    let known: Option<(i64, f64, i64)> = conn
        .query_row(
            "SELECT id, reserve_share, prompts FROM prompt_sets WHERE name = ?1",
            [new.name.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    if let Some((id, share, prompts)) = known {
        let asked = reserve.unwrap_or(share);
        if asked.to_bits() == share.to_bits() {
            return Ok(SetId(id));
        }
        if prompts > 0 || has_open_upload(conn, SetId(id))? {
            return Err(refused(format!(
                "holds back a share of {share}, and {asked} was asked for: leave --reserve out, \
                 or name a new set"
            )));
        }
        conn.execute(
            "UPDATE prompt_sets SET reserve_share = ?2 WHERE id = ?1",
            params![id, asked],
        )?;
        return Ok(SetId(id));
    }
    conn.execute(
        "INSERT INTO prompt_sets (name, reserve_share, created_ms) VALUES (?1, ?2, ?3)",
        params![new.name.as_str(), reserve.unwrap_or(0.0), now_ms],
    )?;
    Ok(SetId(conn.last_insert_rowid()))
}

fn has_open_upload(conn: &Connection, set: SetId) -> Result<bool> {
    Ok(conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM uploads WHERE set_id = ?1 AND state = 'open')",
        [set.get()],
        |row| row.get(0),
    )?)
}

fn add_prompt(
    conn: &Connection,
    upload: UploadId,
    row: &NewPrompt,
    share: f64,
    appended: &mut Appended,
) -> Result<()> {
    let mut lookup = conn.prepare_cached(
        "SELECT p.id, p.upload_id, u.state FROM prompts p JOIN uploads u ON u.id = p.upload_id
         WHERE p.sha256 = ?1 AND u.state <> 'failed'",
    )?;
    let Some(twins) = twins_of(upload, &mut lookup.query([row.sha256.as_slice()])?)? else {
        appended.duplicates += 1;
        return Ok(());
    };
    let reserved = prompt::is_reserved(&row.sha256, share);
    conn.prepare_cached(
        "INSERT INTO prompts (upload_id, messages, sha256, reserved, folded)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        upload.get(),
        row.messages,
        row.sha256.as_slice(),
        reserved,
        reserved.then_some(row.folded.as_slice())
    ])?;
    appended.kept += 1;
    appended.reserved += u64::from(reserved);
    note_twins(conn, upload, conn.last_insert_rowid(), &twins)
}

/// Errors: `Conflict` where one call brings too many rows.
pub(crate) fn check_batch(upload: UploadId, rows: usize) -> Result<()> {
    let max = limits::UPLOAD_BATCH_ROWS;
    if rows <= max {
        return Ok(());
    }
    let why = format!("sent {rows} rows at once: send {max}");
    Err(StoreError::Conflict { what: "upload", name: upload.to_string(), why })
}

pub(crate) fn count_appended(
    conn: &Connection,
    upload: UploadId,
    rows: usize,
    appended: &Appended,
) -> Result<()> {
    conn.execute(
        "UPDATE uploads SET lines = lines + ?2, kept = kept + ?3, reserved = reserved + ?4,
                duplicates = duplicates + ?5 WHERE id = ?1",
        params![
            upload.get(),
            int(rows as u64),
            int(appended.kept),
            int(appended.reserved),
            int(appended.duplicates)
        ],
    )?;
    Ok(())
}

/// Of known rows of the same sum (row, its upload, that one's state), those in other open uploads;
/// none where the row is a duplicate already.
pub(crate) fn twins_of(upload: UploadId, known: &mut Rows<'_>) -> Result<Option<Vec<(i64, i64)>>> {
    let mut twins = Vec::new();
    while let Some(other) = known.next()? {
        let (row, of, state): (i64, i64, String) = (other.get(0)?, other.get(1)?, other.get(2)?);
        if of == upload.get() || state == "published" {
            return Ok(None);
        }
        twins.push((row, of));
    }
    Ok(Some(twins))
}

/// Remembers twins in both directions, for whichever upload is published second.
pub(crate) fn note_twins(
    conn: &Connection,
    upload: UploadId,
    mine: i64,
    twins: &[(i64, i64)],
) -> Result<()> {
    for (row, of) in twins {
        let mut add = conn.prepare_cached(
            "INSERT INTO upload_twins (upload_id, row_id, other_upload_id) VALUES (?1, ?2, ?3)",
        )?;
        add.execute(params![upload.get(), mine, of])?;
        add.execute(params![of, row, upload.get()])?;
    }
    Ok(())
}
