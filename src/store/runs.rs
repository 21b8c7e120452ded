//! Runs: an initial policy, a reference, a seed, and where the head stands.
//!
//! In: identities of models and a name. Out: `Run`. A run keeps its identity for ever; other values
//! under its name are an error. May not enter: model folders.

use rlhfd_domain::{CheckpointId, JobKind, Name, RunId, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{Result, StoreError};
use crate::events::{Level, NewEvent, append};
use crate::iterations;
use crate::jobs::Job;
use crate::journal::finish;
use crate::open::{Reader, Store};
use crate::rows::{found, message};
use crate::units::Finish;

/// A model folder by place and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelIdentity {
    /// The folder, relative to the state folder where it lies in there.
    pub path: String,
    /// The sum of its manifest or files.
    pub sha256: String,
}

/// What makes a run the same run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIdentity {
    /// Its name.
    pub name: Name,
    /// The seed of all its random numbers; at most `i64::MAX`.
    pub seed: u64,
    /// The policy that it begins with, or that its start job begins with.
    pub policy: ModelIdentity,
    /// The supervised fine-tuning whose policy it begins with.
    pub start_job: Option<Name>,
    /// The reference, where it is not the initial policy.
    pub reference: Option<ModelIdentity>,
}

/// Who paused a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedBy {
    /// A person.
    Operator,
    /// The daemon, for the reason that it gives.
    Daemon,
}

impl PausedBy {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Daemon => "daemon",
        }
    }
}

/// A pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// Who.
    pub by: PausedBy,
    /// Why.
    pub reason: String,
}

/// A row of `runs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its row.
    pub id: RunId,
    /// Its name.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// The policy that the configuration names.
    pub base: CheckpointId,
    /// The supervised fine-tuning whose policy it begins with; none: it begins with its base.
    pub start_job: Option<String>,
    /// The policy that it began with; its base as long as the start job is not done.
    pub initial: CheckpointId,
    /// The reference.
    pub reference: CheckpointId,
    /// The current policy.
    pub head: CheckpointId,
    /// The best policy by evaluation, which is what the run gives; none before the first evaluation.
    pub best: Option<CheckpointId>,
    /// Whether it is the one that works.
    pub active: bool,
    /// Whether and why it is paused.
    pub paused: Option<Paused>,
    /// Since when `start` waits to be served.
    pub start_asked_ms: Option<i64>,
    /// The models and settings that the last good probe covered.
    pub probed_key: Option<String>,
    /// Responses of iterations 1 to this have no texts but where a preference has them.
    pub texts_swept_to: u32,
    /// When it was made.
    pub created_ms: i64,
}

const COLUMNS: &str = "id, name, seed, initial_id, reference_id, head_id, active, paused_reason, \
                       paused_by, start_asked_ms, probed_key, created_ms, best_id, base_id, start_job, \
                       texts_swept_to";

impl Run {
    /// Whether the policy that it begins with is there.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.start_job.is_none() || self.initial != self.base
    }

    /// The reference that was named by itself; none where it is the policy that the run begins with.
    #[must_use]
    pub fn named_reference(&self) -> Option<CheckpointId> {
        Some(self.reference).filter(|reference| ![self.initial, self.base].contains(reference))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Run> {
    let reason: Option<String> = row.get(7)?;
    let by: Option<String> = row.get(8)?;
    let by = if by.as_deref() == Some("operator") { PausedBy::Operator } else { PausedBy::Daemon };
    Ok(Run {
        id: RunId(row.get(0)?),
        name: row.get(1)?,
        seed: row.get::<_, i64>(2)?.cast_unsigned(),
        initial: CheckpointId(row.get(3)?),
        reference: CheckpointId(row.get(4)?),
        head: CheckpointId(row.get(5)?),
        active: row.get(6)?,
        paused: reason.map(|reason| Paused { by, reason }),
        start_asked_ms: row.get(9)?,
        probed_key: row.get(10)?,
        created_ms: row.get(11)?,
        best: row.get::<_, Option<i64>>(12)?.map(CheckpointId),
        base: CheckpointId(row.get(13)?),
        start_job: row.get(14)?,
        texts_swept_to: row.get(15)?,
    })
}

pub(crate) fn get(conn: &Connection, run: RunId) -> Result<Run> {
    let text = format!("SELECT {COLUMNS} FROM runs WHERE id = ?1");
    let row = conn.prepare_cached(&text)?.query_row([run.get()], read).optional()?;
    found(row, "run", run)
}

impl Reader {
    /// A run by its row.
    pub fn run(&self, run: RunId) -> Result<Run> {
        get(&self.conn, run)
    }

    /// The run that works; none before the first.
    pub fn active_run(&self) -> Result<Option<Run>> {
        let text = format!("SELECT {COLUMNS} FROM runs WHERE active = 1");
        Ok(self.conn.prepare_cached(&text)?.query_row([], read).optional()?)
    }

    /// A run by its name.
    pub fn run_by_name(&self, name: &str) -> Result<Option<Run>> {
        let text = format!("SELECT {COLUMNS} FROM runs WHERE name = ?1");
        Ok(self.conn.prepare_cached(&text)?.query_row([name], read).optional()?)
    }

    /// All runs, oldest first.
    pub fn runs(&self) -> Result<Vec<Run>> {
        let text =
            format!("SELECT {COLUMNS} FROM runs ORDER BY id LIMIT {}", limits::LIST_ROWS_MAX);
        let mut statement = self.conn.prepare_cached(&text)?;
        Ok(statement.query_map([], read)?.collect::<rusqlite::Result<_>>()?)
    }
}

impl Store {
    /// The run of this name, made where there is none, and the active one from now on. Another
    /// policy, start, reference or seed under a known name is a conflict. A model folder that was
    /// moved is the same model: its new place is kept.
    pub fn open_run(&mut self, identity: &RunIdentity, now_ms: i64) -> Result<Run> {
        if i64::try_from(identity.seed).is_err() {
            return Err(StoreError::Conflict {
                what: "run",
                name: identity.name.to_string(),
                why: format!("has the seed {}: choose one up to {}", identity.seed, i64::MAX),
            });
        }
        self.transact(|conn| {
            let known: Option<i64> = conn
                .query_row("SELECT id FROM runs WHERE name = ?1", [identity.name.as_str()], |row| {
                    row.get(0)
                })
                .optional()?;
            let run = match known {
                Some(id) => match_identity(conn, RunId(id), identity)?,
                None => create(conn, identity, now_ms)?,
            };
            conn.execute("UPDATE runs SET active = 0 WHERE active = 1 AND id <> ?1", [run.get()])?;
            conn.execute("UPDATE runs SET active = 1 WHERE id = ?1 AND active = 0", [run.get()])?;
            get(conn, run)
        })
    }

    /// Pauses a run: running units finish, none begins.
    pub fn pause_run(&mut self, run: RunId, by: PausedBy, reason: &str, now_ms: i64) -> Result<()> {
        self.transact(|conn| pause(conn, run, by, reason, now_ms))
    }

    /// Lets a paused run go on.
    pub fn resume_run(&mut self, run: RunId, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let changed = conn.execute(
                "UPDATE runs SET paused_reason = NULL, paused_by = NULL
                 WHERE id = ?1 AND paused_reason IS NOT NULL",
                [run.get()],
            )?;
            if changed > 0 {
                append(conn, &NewEvent::of(run, "run_resumed", "the run goes on"), now_ms)?;
            }
            Ok(())
        })
    }

    /// Asks for an iteration with the prompts that there are.
    pub fn ask_start(&mut self, run: RunId, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            conn.execute(
                "UPDATE runs SET start_asked_ms = ?2 WHERE id = ?1",
                params![run.get(), now_ms],
            )?;
            Ok(())
        })
    }

    /// Moves the head to what an iteration trained, 0 being the initial policy, and gives its name.
    /// History is never rewritten: what came after it stays, and the lineage shows where it went on.
    ///
    /// Errors: an iteration is under way; there is no such checkpoint, or it is not sound.
    pub fn roll_back(
        &mut self,
        run: RunId,
        iteration: u32,
        why: &str,
        now_ms: i64,
    ) -> Result<String> {
        self.transact(|conn| {
            if let Some(open) = iterations::current(conn, run)? {
                return Err(StoreError::Conflict {
                    what: "iteration",
                    name: open.iteration.to_string(),
                    why:
                        "is under way, and its end would move the head again: cancel it first, or \
                          wait for its end"
                            .to_owned(),
                });
            }
            let row: Option<(CheckpointId, String)> = conn
                .query_row(
                    "SELECT c.id, c.name FROM runs r JOIN checkpoints c ON c.run_id = r.id
                     WHERE r.id = ?1 AND c.sound = 1
                     AND iif(?2 = 0, c.id = r.initial_id, c.kind = 'policy' AND c.iteration = ?2)",
                    params![run.get(), iteration],
                    |row| Ok((CheckpointId(row.get(0)?), row.get(1)?)),
                )
                .optional()?;
            let (to, name) = found(row, "sound checkpoint of iteration", iteration)?;
            set_head(conn, run, to, &format!("rolled back: {why}"), now_ms)?;
            Ok(name)
        })
    }
}

pub(crate) fn pause(
    conn: &Connection,
    run: RunId,
    by: PausedBy,
    reason: &str,
    now_ms: i64,
) -> Result<()> {
    // An operator's pause is not turned into one that the daemon may end by itself.
    let changed = conn.execute(
        "UPDATE runs SET paused_reason = ?2, paused_by = ?3
         WHERE id = ?1 AND (paused_by IS NULL OR paused_by = 'daemon' OR ?3 = 'operator')",
        params![run.get(), message(reason), by.label()],
    )?;
    if changed > 0 {
        let text = format!("paused by the {}: {reason}", by.label());
        let event = NewEvent { level: Level::Warn, ..NewEvent::of(run, "run_paused", text) };
        append(conn, &event, now_ms)?;
    }
    Ok(())
}

pub(crate) fn set_head(
    conn: &Connection,
    run: RunId,
    to: CheckpointId,
    why: &str,
    now_ms: i64,
) -> Result<()> {
    let name: Option<String> = conn
        .query_row(
            "SELECT name FROM checkpoints WHERE id = ?1 AND run_id = ?2 AND sound = 1
             AND kind IN ('initial', 'policy')",
            params![to.get(), run.get()],
            |row| row.get(0),
        )
        .optional()?;
    let name = found(name, "sound policy", to)?;
    conn.execute("UPDATE runs SET head_id = ?2 WHERE id = ?1", params![run.get(), to.get()])?;
    let event = NewEvent::of(run, "head_moved", format!("the head is {name}: {why}"));
    append(conn, &event, now_ms)?;
    Ok(())
}

fn create(conn: &Connection, identity: &RunIdentity, now_ms: i64) -> Result<RunId> {
    // The foreign keys to checkpoints are deferred: the run comes first, then what it points to.
    conn.execute(
        "INSERT INTO runs (name, seed, base_id, start_job, initial_id, reference_id, head_id, created_ms)
         VALUES (?1, ?2, 0, ?3, 0, 0, 0, ?4)",
        params![
            identity.name.as_str(),
            identity.seed.cast_signed(),
            identity.start_job.as_ref().map(Name::as_str),
            now_ms
        ],
    )?;
    let run = RunId(conn.last_insert_rowid());
    let add = |kind: &str, model: &ModelIdentity| -> Result<i64> {
        conn.execute(
            "INSERT INTO checkpoints (run_id, name, kind, path, sha256, created_ms)
             VALUES (?1, ?2, ?2, ?3, ?4, ?5)",
            params![run.get(), kind, model.path, model.sha256, now_ms],
        )?;
        Ok(conn.last_insert_rowid())
    };
    let starts = identity.start_job.is_some();
    let base = add(if starts { "base" } else { "initial" }, &identity.policy)?;
    let reference = match &identity.reference {
        // A reference that stays while the policy moves has a row of its own.
        Some(model) if starts || model.sha256 != identity.policy.sha256 => add("reference", model)?,
        Some(_) | None => base,
    };
    conn.execute(
        "UPDATE runs SET base_id = ?2, initial_id = ?2, head_id = ?2, reference_id = ?3
         WHERE id = ?1",
        params![run.get(), base, reference],
    )?;
    let text = match &identity.start_job {
        None => format!("run {} begins with {}", identity.name, identity.policy.path),
        Some(job) => format!(
            "run {} begins with what sft/{job} makes of {}",
            identity.name, identity.policy.path
        ),
    };
    append(conn, &NewEvent::of(run, "run_created", text), now_ms)?;
    Ok(run)
}

/// A training job's policy stands. Where the run begins with it, its initial policy, its head and (where
/// none was named) its reference are this one from now on, and so is the base of what waited for it.
pub(crate) fn begin(conn: &Connection, job: &Job, policy: CheckpointId, now_ms: i64) -> Result<()> {
    let run = get(conn, job.run)?;
    let is_start = job.kind == JobKind::Sft && run.start_job.as_deref() == Some(&job.name);
    if !is_start || run.has_begun() {
        return Ok(());
    }
    conn.execute(
        "UPDATE runs SET initial_id = ?2, reference_id = iif(reference_id = base_id, ?2, reference_id)
         WHERE id = ?1",
        params![run.id.get(), policy.get()],
    )?;
    conn.execute(
        "UPDATE training_jobs SET (base_path, base_sha256) =
             (SELECT path, sha256 FROM checkpoints WHERE id = ?2)
         WHERE run_id = ?1 AND base_sha256 IS NULL",
        params![run.id.get(), policy.get()],
    )?;
    set_head(conn, run.id, policy, "the run begins with it", now_ms)
}

fn match_identity(conn: &Connection, run: RunId, identity: &RunIdentity) -> Result<RunId> {
    let row = get(conn, run)?;
    let conflict = |part: &str, was: &str, is: &str| StoreError::Conflict {
        what: "run",
        name: identity.name.to_string(),
        why: format!(
            "was begun with the {part} {was}, and the configuration has {is}: give the run a new \
             name in [run], or its own {part} back"
        ),
    };
    if row.seed != identity.seed {
        return Err(conflict("seed", &row.seed.to_string(), &identity.seed.to_string()));
    }
    let start_job = identity.start_job.as_ref().map(Name::as_str);
    if row.start_job.as_deref() != start_job {
        let word = |job: Option<&str>| job.map_or("policy".to_owned(), |job| format!("sft/{job}"));
        return Err(conflict("start", &word(row.start_job.as_deref()), &word(start_job)));
    }
    let named = row.named_reference();
    if start_job.is_some() && named.is_some() != identity.reference.is_some() {
        let word = |named: bool| if named { "of its own" } else { "that its start job makes" };
        return Err(conflict("reference", word(named.is_some()), word(named.is_none())));
    }
    // A reference that the start job makes is nothing that a configuration names.
    let known_reference = named.unwrap_or(row.base);
    let reference = identity.reference.as_ref().unwrap_or(&identity.policy);
    let parts = [("policy", row.base, &identity.policy), ("reference", known_reference, reference)];
    for (part, id, model) in parts {
        let (path, sha256): (String, String) = conn.query_row(
            "SELECT path, sha256 FROM checkpoints WHERE id = ?1",
            [id.get()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        if sha256 != model.sha256 {
            let brief = |sum: &str| sum.chars().take(12).collect::<String>();
            let was = format!("{path} ({})", brief(&sha256));
            let is = format!("{} ({})", model.path, brief(&model.sha256));
            return Err(conflict(part, &was, &is));
        }
        // Where policy and reference are one checkpoint, the policy's place is the one kept.
        if path != model.path && (part == "policy" || known_reference != row.base) {
            conn.execute(
                "UPDATE checkpoints SET path = ?2 WHERE id = ?1",
                params![id.get(), model.path],
            )?;
        }
    }
    Ok(run)
}

impl Store {
    /// A finished probe unit: `key` names the models and settings that it found well. Findings are the
    /// caller's to judge before.
    pub fn finish_probe(&mut self, end: &Finish, key: &str, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            conn.execute(
                "UPDATE runs SET probed_key = ?2 WHERE id = ?1",
                params![unit.run.get(), key],
            )?;
            append(conn, &NewEvent::of(unit.run, "probed", "the models fit each other"), now_ms)?;
            Ok(())
        })
    }
}
