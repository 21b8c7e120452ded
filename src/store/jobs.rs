//! Training jobs: what is trained beside the iterations.
//!
//! In: a name, data, a base model, a configuration, units. Out: `Job`. May not enter: the data.

use rlhfd_domain::job::job_slug;
use rlhfd_domain::{CheckpointId, JobId, JobKind, RunId, UnitId, UnknownWord, UploadId, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{Result, StoreError};
use crate::events::{Level, NewEvent, append};
use crate::journal::cancel;
use crate::open::{Reader, Store};
use crate::rows::{found, message};
use crate::runs::{self, ModelIdentity};
use crate::units::{NewUnit, insert};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// Its units are not all done.
    Open,
    /// Its checkpoint stands.
    Done,
    /// It cannot be done, for the reason given.
    Failed,
    /// Nobody wants it any more.
    Cancelled,
}

impl JobStatus {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(word: &str) -> Result<Self> {
        [Self::Open, Self::Done, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|status| status.label() == word)
            .ok_or_else(|| {
                StoreError::Word(UnknownWord {
                    what: "job status",
                    found: word.to_owned(),
                    known: "open, done, failed, cancelled",
                })
            })
    }
}

/// A job to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Of which run.
    pub run: RunId,
    /// What it makes.
    pub kind: JobKind,
    /// Its name among the jobs of its kind.
    pub name: String,
    /// Its data.
    pub upload: Option<UploadId>,
    /// Its frozen configuration, TOML.
    pub config: String,
    /// Its sum.
    pub config_sha256: String,
    /// The model that it starts from; none: the policy that the run begins with, which is awaited.
    pub base: Option<ModelIdentity>,
}

/// A row of `training_jobs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its row.
    pub id: JobId,
    /// Of which run.
    pub run: RunId,
    /// What it makes.
    pub kind: JobKind,
    /// Its name.
    pub name: String,
    /// Among the jobs of this name, from 1.
    pub number: u32,
    /// Its data.
    pub upload: Option<UploadId>,
    /// Its frozen configuration.
    pub config: String,
    /// Its sum.
    pub config_sha256: String,
    /// The model that it starts from; none: the policy that the run begins with, which is awaited.
    pub base: Option<ModelIdentity>,
    /// What it made.
    pub checkpoint: Option<CheckpointId>,
    /// Where it stands.
    pub status: JobStatus,
    /// Why it failed.
    pub reason: Option<String>,
    /// When it was asked for.
    pub created_ms: i64,
    /// When it ended.
    pub ended_ms: Option<i64>,
}

impl Job {
    /// What its units, folder and checkpoint are called after.
    #[must_use]
    pub fn slug(&self) -> String {
        job_slug(&self.name, self.number)
    }
}

const COLUMNS: &str = "id, run_id, name, number, upload_id, config, config_sha256, base_path, \
                       base_sha256, checkpoint_id, reason, created_ms, ended_ms, kind, status";

/// A row, and its words.
fn read(row: &Row<'_>) -> rusqlite::Result<(Job, [String; 2])> {
    let job = Job {
        id: JobId(row.get(0)?),
        run: RunId(row.get(1)?),
        kind: JobKind::Sft,
        name: row.get(2)?,
        number: row.get(3)?,
        upload: row.get::<_, Option<i64>>(4)?.map(UploadId),
        config: row.get(5)?,
        config_sha256: row.get(6)?,
        base: match (row.get(7)?, row.get(8)?) {
            (Some(path), Some(sha256)) => Some(ModelIdentity { path, sha256 }),
            _ => None,
        },
        checkpoint: row.get::<_, Option<i64>>(9)?.map(CheckpointId),
        status: JobStatus::Open,
        reason: row.get(10)?,
        created_ms: row.get(11)?,
        ended_ms: row.get(12)?,
    };
    Ok((job, [row.get(13)?, row.get(14)?]))
}

fn whole((job, [kind, status]): (Job, [String; 2])) -> Result<Job> {
    Ok(Job { kind: JobKind::parse(&kind)?, status: JobStatus::parse(&status)?, ..job })
}

fn get(conn: &Connection, id: JobId) -> Result<Job> {
    let text = format!("SELECT {COLUMNS} FROM training_jobs WHERE id = ?1");
    let row = conn.prepare_cached(&text)?.query_row([id.get()], read).optional()?;
    whole(found(row, "training job", id)?)
}

impl Reader {
    /// A job by its row.
    pub fn job(&self, id: JobId) -> Result<Job> {
        get(&self.conn, id)
    }

    /// A job by its name: the newest of them.
    pub fn job_by_name(&self, run: RunId, kind: JobKind, name: &str) -> Result<Option<Job>> {
        newest(&self.conn, run, (kind, name))
    }

    /// The job that was made from an upload.
    pub fn job_of_upload(&self, upload: UploadId) -> Result<Option<Job>> {
        let text = format!(
            "SELECT {COLUMNS} FROM training_jobs WHERE upload_id = ?1 ORDER BY id DESC LIMIT 1"
        );
        let row = self.conn.prepare_cached(&text)?.query_row([upload.get()], read).optional()?;
        row.map(whole).transpose()
    }

    /// All jobs of a run, oldest first.
    pub fn jobs(&self, run: RunId) -> Result<Vec<Job>> {
        let text = format!(
            "SELECT {COLUMNS} FROM training_jobs WHERE run_id = ?1 ORDER BY id LIMIT {}",
            limits::LIST_ROWS_MAX
        );
        let mut statement = self.conn.prepare_cached(&text)?;
        let rows = statement.query_map([run.get()], read)?;
        rows.map(|row| whole(row?)).collect()
    }
}

impl JobStatus {
    /// Whether the job's name is free for another one.
    #[must_use]
    pub const fn leaves_its_name(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled)
    }
}

impl Store {
    /// Creates a job with its units, which `units` makes from its slug. A name is free again once its
    /// job failed or was cancelled; the old row stays.
    pub fn create_job(
        &mut self,
        new: &NewJob,
        units: impl Fn(&str) -> Vec<NewUnit>,
        now_ms: i64,
    ) -> Result<JobId> {
        self.transact(|conn| {
            let before = newest(conn, new.run, (new.kind, &new.name))?;
            if let Some(standing) = before.as_ref().filter(|job| !job.status.leaves_its_name()) {
                return Err(StoreError::Conflict {
                    what: "training job",
                    name: format!("{}/{}", new.kind, new.name),
                    why: format!("is {} already: choose another name", standing.status.label()),
                });
            }
            let number = before.map_or(1, |job| job.number + 1);
            conn.execute(
                "INSERT INTO training_jobs (run_id, kind, name, number, upload_id, config,
                     config_sha256, base_path, base_sha256, created_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    new.run.get(),
                    new.kind.label(),
                    new.name,
                    number,
                    new.upload.map(UploadId::get),
                    new.config,
                    new.config_sha256,
                    new.base.as_ref().map(|base| &base.path),
                    new.base.as_ref().map(|base| &base.sha256),
                    now_ms
                ],
            )?;
            let job = JobId(conn.last_insert_rowid());
            for unit in units(&job_slug(&new.name, number)) {
                insert(conn, new.run, None, Some(job), &unit, now_ms)?;
            }
            let again =
                if number > 1 { format!(", number {number} of its name") } else { String::new() };
            let text = format!("training job {}/{} is queued{again}", new.kind, new.name);
            append(conn, &NewEvent::of(new.run, "job_created", text), now_ms)?;
            Ok(job)
        })
    }

    /// Ends an open job that will give no checkpoint: its units are cancelled.
    pub fn end_job(
        &mut self,
        job: JobId,
        status: JobStatus,
        reason: &str,
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| end(conn, job, (status, reason), now_ms))
    }
}

pub(crate) fn end(
    conn: &Connection,
    job: JobId,
    (status, reason): (JobStatus, &str),
    now_ms: i64,
) -> Result<()> {
    let row = get(conn, job)?;
    if row.status != JobStatus::Open {
        return Err(StoreError::Conflict {
            what: "training job",
            name: format!("{}/{}", row.kind, row.name),
            why: format!("is {} already", row.status.label()),
        });
    }
    let open: Vec<i64> = conn
        .prepare("SELECT id FROM units WHERE job_id = ?1 AND state IN ('open', 'running')")?
        .query_map([job.get()], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for unit in open {
        cancel(conn, UnitId(unit), now_ms)?;
    }
    set(conn, job, status, Some(reason), now_ms)?;
    let text = format!("training job {}/{} {}: {reason}", row.kind, row.name, status.label());
    let kind = format!("job_{}", status.label());
    let event = NewEvent { level: Level::Warn, ..NewEvent::of(row.run, &kind, text) };
    append(conn, &event, now_ms)?;
    Ok(())
}

fn newest(conn: &Connection, run: RunId, (kind, name): (JobKind, &str)) -> Result<Option<Job>> {
    let text = format!(
        "SELECT {COLUMNS} FROM training_jobs WHERE run_id = ?1 AND kind = ?2 AND name = ?3
         ORDER BY number DESC LIMIT 1"
    );
    let key = params![run.get(), kind.label(), name];
    let row = conn.prepare_cached(&text)?.query_row(key, read).optional()?;
    row.map(whole).transpose()
}

/// A job's checkpoint stands.
pub(crate) fn done(
    conn: &Connection,
    job: JobId,
    checkpoint: CheckpointId,
    now_ms: i64,
) -> Result<()> {
    conn.execute(
        "UPDATE training_jobs SET checkpoint_id = ?2 WHERE id = ?1",
        params![job.get(), checkpoint.get()],
    )?;
    set(conn, job, JobStatus::Done, None, now_ms)?;
    let row = get(conn, job)?;
    let text = format!("training job {}/{} is done", row.kind, row.name);
    append(conn, &NewEvent::of(row.run, "job_done", text), now_ms)?;
    runs::begin(conn, &row, checkpoint, now_ms)
}

fn set(
    conn: &Connection,
    job: JobId,
    status: JobStatus,
    reason: Option<&str>,
    now_ms: i64,
) -> Result<()> {
    conn.execute(
        "UPDATE training_jobs SET status = ?2, reason = ?3, ended_ms = ?4,
             started_ms = (SELECT min(a.started_ms) FROM attempts a JOIN units u ON u.id = a.unit_id
                           WHERE u.job_id = ?1)
         WHERE id = ?1",
        params![job.get(), status.label(), reason.map(message), now_ms],
    )?;
    Ok(())
}
