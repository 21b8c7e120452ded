//! Checkpoints and scorers: model folders that rows name by place and content.
//!
//! In: names, places, sums. Out: `Checkpoint`, `Scorer`. A checkpoint's row is written after its
//! folder stands, and never changes but for being found unsound (or a moved folder's new place).
//! May not enter: the folders themselves.

use rlhfd_domain::checkpoint::CheckpointKind;
use rlhfd_domain::{CheckpointId, RunId, ScorerId, UnitId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{Result, StoreError};
use crate::events::{Level, NewEvent, append};
use crate::iterations;
use crate::open::{Reader, Store};
use crate::rows::{count, found, int};
use crate::runs::{get as get_run, set_head};

/// A row of `checkpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its row.
    pub id: CheckpointId,
    /// Its run.
    pub run: RunId,
    /// Its name in the run.
    pub name: String,
    /// What it is.
    pub kind: CheckpointKind,
    /// Which iteration trained it.
    pub iteration: Option<u32>,
    /// What it was trained from.
    pub parent: Option<CheckpointId>,
    /// The reference that it was trained against.
    pub reference: Option<CheckpointId>,
    /// Relative to the state folder where it lies in there.
    pub path: String,
    /// The sum of its manifest.
    pub sha256: String,
    /// Size of the folder.
    pub bytes: u64,
    /// Whether its folder was whole when it was last looked at.
    pub sound: bool,
    /// The unit that admitted it.
    pub unit: Option<UnitId>,
    /// When.
    pub created_ms: i64,
}

/// A checkpoint to admit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// Its name in the run.
    pub name: String,
    /// What it is.
    pub kind: CheckpointKind,
    /// What it was trained from.
    pub parent: Option<CheckpointId>,
    /// The reference that it was trained against.
    pub reference: Option<CheckpointId>,
    /// Relative to the state folder.
    pub path: String,
    /// The sum of its manifest.
    pub sha256: String,
    /// Size of the folder.
    pub bytes: u64,
}

/// A row of `scorers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scorer {
    /// Its row.
    pub id: ScorerId,
    /// Its name in the configuration.
    pub name: String,
    /// `reward` or `preference`.
    pub kind: String,
    /// Relative to the state folder where it lies in there.
    pub path: String,
    /// The sum of its manifest or files.
    pub sha256: String,
}

const COLUMNS: &str = "id, run_id, name, kind, iteration, parent_id, reference_id, path, sha256, \
                       bytes, sound, unit_id, created_ms";

fn read(row: &Row<'_>) -> rusqlite::Result<(Checkpoint, String)> {
    let kind: String = row.get(3)?;
    let checkpoint = Checkpoint {
        id: CheckpointId(row.get(0)?),
        run: RunId(row.get(1)?),
        name: row.get(2)?,
        kind: CheckpointKind::Initial,
        iteration: row.get(4)?,
        parent: row.get::<_, Option<i64>>(5)?.map(CheckpointId),
        reference: row.get::<_, Option<i64>>(6)?.map(CheckpointId),
        path: row.get(7)?,
        sha256: row.get(8)?,
        bytes: count(row.get(9)?),
        sound: row.get(10)?,
        unit: row.get::<_, Option<i64>>(11)?.map(UnitId),
        created_ms: row.get(12)?,
    };
    Ok((checkpoint, kind))
}

fn whole((checkpoint, kind): (Checkpoint, String)) -> Result<Checkpoint> {
    Ok(Checkpoint { kind: CheckpointKind::parse(&kind)?, ..checkpoint })
}

pub(crate) fn get(conn: &Connection, id: CheckpointId) -> Result<Checkpoint> {
    let text = format!("SELECT {COLUMNS} FROM checkpoints WHERE id = ?1");
    let row = conn.prepare_cached(&text)?.query_row([id.get()], read).optional()?;
    whole(found(row, "checkpoint", id)?)
}

pub(crate) fn by_name(conn: &Connection, run: RunId, name: &str) -> Result<Option<Checkpoint>> {
    let text = format!("SELECT {COLUMNS} FROM checkpoints WHERE run_id = ?1 AND name = ?2");
    let mut statement = conn.prepare_cached(&text)?;
    let row = statement.query_row(params![run.get(), name], read).optional()?;
    row.map(whole).transpose()
}

pub(crate) fn insert(
    conn: &Connection,
    run: RunId,
    iteration: Option<u32>,
    unit: UnitId,
    new: &NewCheckpoint,
    now_ms: i64,
) -> Result<CheckpointId> {
    conn.execute(
        "INSERT INTO checkpoints (run_id, name, kind, iteration, parent_id, reference_id, path,
                                  sha256, bytes, unit_id, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            run.get(),
            new.name,
            new.kind.label(),
            iteration,
            new.parent.map(CheckpointId::get),
            new.reference.map(CheckpointId::get),
            new.path,
            new.sha256,
            int(new.bytes),
            unit.get(),
            now_ms,
        ],
    )?;
    Ok(CheckpointId(conn.last_insert_rowid()))
}

impl Reader {
    /// A checkpoint by its row.
    pub fn checkpoint(&self, id: CheckpointId) -> Result<Checkpoint> {
        get(&self.conn, id)
    }

    /// A checkpoint by its name.
    pub fn checkpoint_by_name(&self, run: RunId, name: &str) -> Result<Option<Checkpoint>> {
        by_name(&self.conn, run, name)
    }

    /// All checkpoints of a run, oldest first: one or two an iteration. None may be left out, for a folder
    /// without a row is taken for a stranger.
    pub fn checkpoints(&self, run: RunId) -> Result<Vec<Checkpoint>> {
        let text = format!("SELECT {COLUMNS} FROM checkpoints WHERE run_id = ?1 ORDER BY id");
        let mut statement = self.conn.prepare_cached(&text)?;
        let rows = statement.query_map([run.get()], read)?;
        rows.map(|row| whole(row?)).collect()
    }

    /// A scorer by its row.
    pub fn scorer_by_id(&self, id: ScorerId) -> Result<Scorer> {
        let row = self
            .conn
            .prepare_cached("SELECT id, name, kind, path, sha256 FROM scorers WHERE id = ?1")?
            .query_row([id.get()], |row| {
                Ok(Scorer {
                    id: ScorerId(row.get(0)?),
                    name: row.get(1)?,
                    kind: row.get(2)?,
                    path: row.get(3)?,
                    sha256: row.get(4)?,
                })
            })
            .optional()?;
        found(row, "scorer", id)
    }
}

impl Store {
    /// The scorer of this name and content, made where there is none. A moved folder's new place is
    /// kept.
    pub fn scorer(&mut self, name: &str, kind: &str, path: &str, sha256: &str) -> Result<ScorerId> {
        self.transact(|conn| {
            conn.execute(
                "INSERT INTO scorers (name, kind, path, sha256) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name, sha256) DO UPDATE SET path = excluded.path",
                params![name, kind, path, sha256],
            )?;
            let id = conn.query_row(
                "SELECT id FROM scorers WHERE name = ?1 AND sha256 = ?2",
                params![name, sha256],
                |row| row.get(0),
            )?;
            Ok(ScorerId(id))
        })
    }

    /// Keeps that a checkpoint's folder is not whole. Where it was the head, the head falls back to
    /// its nearest sound ancestor, which is returned. An iteration under way that goes on from it, or has
    /// made it, is cancelled.
    pub fn mark_unsound(
        &mut self,
        id: CheckpointId,
        why: &str,
        now_ms: i64,
    ) -> Result<Option<CheckpointId>> {
        self.transact(|conn| {
            let checkpoint = get(conn, id)?;
            let run = get_run(conn, checkpoint.run)?;
            conn.execute("UPDATE checkpoints SET sound = 0 WHERE id = ?1", [id.get()])?;
            let text = format!("checkpoint {} is not sound: {why}", checkpoint.name);
            let event = NewEvent {
                level: Level::Error,
                iteration: checkpoint.iteration,
                ..NewEvent::of(run.id, "checkpoint_unsound", text)
            };
            append(conn, &event, now_ms)?;
            if let Some(under_way) = iterations::current(conn, run.id)?
                && (under_way.policy_in == id || under_way.policy_out == Some(id))
            {
                let why = format!(", since checkpoint {} is not sound", checkpoint.name);
                iterations::cancel_open(conn, (run.id, under_way.iteration), &why, now_ms)?;
            }
            if run.best == Some(id) {
                // The next summary finds the best of those that are left.
                conn.execute("UPDATE runs SET best_id = NULL WHERE id = ?1", [run.id.get()])?;
            }
            if run.head != id {
                return Ok(None);
            }
            let heir = sound_ancestor(conn, &checkpoint)?.ok_or_else(|| StoreError::Conflict {
                what: "checkpoint",
                name: checkpoint.name.clone(),
                why: format!("is not sound ({why}), and it has no sound ancestor: restore it"),
            })?;
            set_head(conn, run.id, heir, "its successor is not sound", now_ms)?;
            Ok(Some(heir))
        })
    }

    /// Keeps that a folder which was found unsound is whole again (a backup came back). Log-probs under it
    /// that went with its files are computed again where they are wanted.
    pub fn mark_sound(&mut self, id: CheckpointId, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let checkpoint = get(conn, id)?;
            conn.execute(
                "UPDATE checkpoints SET sound = 1, removal_ms = NULL, removal_why = NULL,
                     removed_ms = NULL, logprobs_swept = min(logprobs_swept, 0) WHERE id = ?1",
                [id.get()],
            )?;
            let text = format!("checkpoint {} is sound again", checkpoint.name);
            append(conn, &NewEvent::of(checkpoint.run, "checkpoint_sound", text), now_ms)?;
            Ok(())
        })
    }
}

fn sound_ancestor(conn: &Connection, from: &Checkpoint) -> Result<Option<CheckpointId>> {
    let (mut at, mut below) = (from.parent, from.id);
    // A parent is older than its child; what is not is a broken row, which would loop for ever.
    while let Some(id) = at.filter(|id| *id < below) {
        let ancestor = get(conn, id)?;
        // The run began after it: nothing was ever held to it.
        if ancestor.kind == CheckpointKind::Base {
            return Ok(None);
        }
        if ancestor.sound {
            return Ok(Some(id));
        }
        (at, below) = (ancestor.parent, id);
    }
    Ok(None)
}
