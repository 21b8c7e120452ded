//! Lists as the socket passes them on: the two views, checkpoints and training jobs.
//!
//! In: the name of a run or checkpoint. Out: columns and rows, newest last, never more than
//! `limits::LIST_ROWS_MAX` (the newest of them). Each question is answered by an index or a view over
//! few rows; none looks at prompts or responses. May not enter: decisions on these rows.

use rlhfd_domain::limits::LIST_ROWS_MAX;
use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Params, params};

use crate::error::Result;
use crate::open::Reader;
use crate::rows::found;
use crate::sql::{SqlAnswer, SqlValue};

/// A training job with the names that its row points to.
#[derive(Debug, Clone, PartialEq)]
pub struct JobListing {
    /// The run's name.
    pub run: String,
    /// `sft` or `reward`.
    pub kind: String,
    /// Its name among the jobs of its kind.
    pub name: String,
    /// `open`, `done`, `failed` or `cancelled`.
    pub status: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// The name of what it made.
    pub checkpoint: Option<String>,
    /// Examples of its upload.
    pub examples: Option<i64>,
    /// The newest training step that is stored.
    pub step: Option<i64>,
    /// That step's loss.
    pub loss: Option<f64>,
    /// Share of held-out pairs that its reward model ranks as the data does.
    pub held_out_accuracy: Option<f64>,
    /// Expected calibration error on them.
    pub calibration_error: Option<f64>,
    /// When it was asked for.
    pub created_ms: i64,
    /// When its first attempt began.
    pub started_ms: Option<i64>,
    /// When it ended.
    pub ended_ms: Option<i64>,
}

impl Reader {
    /// The view `iteration_history`, of one run or of all.
    pub fn history_table(&self, run: Option<&str>) -> Result<SqlAnswer> {
        self.newest_last(
            "SELECT h.* FROM iteration_history h JOIN runs r ON r.name = h.run
             WHERE ?1 IS NULL OR h.run = ?1 ORDER BY r.id DESC, h.iteration DESC LIMIT ?2",
            params![run, LIST_ROWS_MAX + 1],
        )
    }

    /// Checkpoints, of one run or of all.
    pub fn checkpoint_table(&self, run: Option<&str>) -> Result<SqlAnswer> {
        self.newest_last(
            "SELECT r.name AS run, c.name AS checkpoint, c.kind AS kind, c.iteration AS iteration,
                    p.name AS parent, c.id = r.head_id AS head, c.sound AS sound, c.bytes AS bytes,
                    c.created_ms AS created_ms, c.sha256 AS sha256, c.path AS path,
                    coalesce(c.id = r.best_id, 0) AS best, c.rejected AS rejected,
                    c.pinned AS pinned, c.removal_ms IS NOT NULL AS removed
             FROM checkpoints c JOIN runs r ON r.id = c.run_id
             LEFT JOIN checkpoints p ON p.id = c.parent_id
             WHERE ?1 IS NULL OR r.name = ?1 ORDER BY c.id DESC LIMIT ?2",
            params![run, LIST_ROWS_MAX + 1],
        )
    }

    /// As the view `checkpoint_lineage`, from one checkpoint of a run back to its beginning; `head` is the
    /// run's current policy.
    ///
    /// Errors: `NotFound`.
    pub fn lineage_table(&self, run: &str, checkpoint: &str) -> Result<SqlAnswer> {
        let known = self
            .conn
            .prepare_cached(
                "SELECT c.id FROM runs r JOIN checkpoints c ON c.run_id = r.id
                 WHERE r.name = ?1 AND (c.name = ?2 OR ?2 = 'head' AND c.id = r.head_id) LIMIT 1",
            )?
            .query_row([run, checkpoint], |row| row.get::<_, i64>(0))
            .optional()?;
        let from = found(known, "checkpoint", format!("{run}/{checkpoint}"))?;
        // The view's rows of one checkpoint. The view itself makes those of all of them first.
        self.newest_last(
            "WITH RECURSIVE line(ancestor_id, depth) AS (
                 SELECT ?1, 0
                 UNION ALL
                 SELECT c.parent_id, line.depth + 1
                 FROM line JOIN checkpoints c ON c.id = line.ancestor_id
                 WHERE c.parent_id IS NOT NULL
             )
             SELECT r.name || '/' || c.name AS checkpoint, r.name || '/' || a.name AS ancestor,
                    line.depth AS depth, a.iteration AS iteration, a.path AS path, a.sha256 AS sha256
             FROM line JOIN checkpoints a ON a.id = line.ancestor_id
             JOIN checkpoints c ON c.id = ?1 JOIN runs r ON r.id = c.run_id
             ORDER BY depth DESC LIMIT ?2",
            params![from, LIST_ROWS_MAX + 1],
        )
    }

    /// All training jobs, oldest first.
    pub fn job_listings(&self) -> Result<Vec<JobListing>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT r.name, j.kind, j.name, j.status, j.reason, c.name, u.kept,
                    s.step, s.loss, j.created_ms,
                    (SELECT min(a.started_ms) FROM units n JOIN attempts a ON a.unit_id = n.id
                     WHERE n.job_id = j.id),
                    j.ended_ms, h.accuracy, h.calibration_error
             FROM training_jobs j
             JOIN runs r ON r.id = j.run_id
             LEFT JOIN checkpoints c ON c.id = j.checkpoint_id
             LEFT JOIN uploads u ON u.id = j.upload_id
             LEFT JOIN units t ON t.job_id = j.id AND t.stage = 'train'
             LEFT JOIN training_steps s ON s.unit_id = t.id
                   AND s.step = (SELECT max(step) FROM training_steps WHERE unit_id = t.id)
             LEFT JOIN training_reports h ON h.unit_id = t.id AND h.source = ''
             ORDER BY j.id LIMIT ?1",
        )?;
        let rows = statement.query_map([LIST_ROWS_MAX], |row| {
            Ok(JobListing {
                run: row.get(0)?,
                kind: row.get(1)?,
                name: row.get(2)?,
                status: row.get(3)?,
                reason: row.get(4)?,
                checkpoint: row.get(5)?,
                examples: row.get(6)?,
                step: row.get(7)?,
                loss: row.get(8)?,
                created_ms: row.get(9)?,
                started_ms: row.get(10)?,
                ended_ms: row.get(11)?,
                held_out_accuracy: row.get(12)?,
                calibration_error: row.get(13)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// A question that asks for one row more than a list may have, newest first.
    fn newest_last(&self, text: &str, params: impl Params) -> Result<SqlAnswer> {
        let mut statement = self.conn.prepare_cached(text)?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query(params)?;
        let mut read = Vec::new();
        while let Some(row) = rows.next()? {
            let values = (0..columns.len()).map(|i| row.get_ref(i).map(value));
            read.push(values.collect::<rusqlite::Result<Vec<_>>>()?);
        }
        let truncated = read.len() > LIST_ROWS_MAX as usize;
        read.truncate(LIST_ROWS_MAX as usize);
        read.reverse();
        Ok(SqlAnswer { columns, rows: read, truncated })
    }
}

fn value(value: ValueRef<'_>) -> SqlValue {
    match value {
        ValueRef::Null => SqlValue::Null,
        ValueRef::Integer(n) => SqlValue::Integer(n),
        ValueRef::Real(x) => SqlValue::Real(x),
        ValueRef::Text(text) => SqlValue::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => SqlValue::Blob(bytes.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use rlhfd_domain::Name;

    use super::*;
    use crate::error::StoreError;
    use crate::open::Store;
    use crate::runs::{ModelIdentity, RunIdentity};

    fn with_run() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let identity = RunIdentity {
            name: Name::parse("main", "run").unwrap(),
            seed: 1,
            policy: ModelIdentity { path: "models/p".into(), sha256: "aa".into() },
            start_job: None,
            reference: None,
        };
        store.open_run(&identity, 7).unwrap();
        (folder, store)
    }

    #[test]
    fn a_fresh_run_has_one_checkpoint_which_is_its_own_lineage() {
        let (_folder, store) = with_run();
        let table = store.checkpoint_table(None).unwrap();
        let cell = |name: &str| {
            let i = table.columns.iter().position(|column| column == name).unwrap();
            table.rows[0][i].clone()
        };
        assert_eq!(table.rows.len(), 1);
        assert_eq!(cell("checkpoint"), SqlValue::Text("initial".into()));
        assert_eq!(cell("head"), SqlValue::Integer(1));
        assert_eq!(cell("parent"), SqlValue::Null);
        let line = store.lineage_table("main", "head").unwrap();
        assert_eq!(line.columns[..3], ["checkpoint", "ancestor", "depth"]);
        assert_eq!(line.rows.len(), 1);
        let view = store.newest_last("SELECT * FROM checkpoint_lineage", []).unwrap();
        assert_eq!(line, view);
        assert_eq!(line.rows, store.lineage_table("main", "initial").unwrap().rows);
        assert!(store.checkpoint_table(Some("other")).unwrap().rows.is_empty());
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let (_folder, store) = with_run();
        for (run, checkpoint) in [("main", "iteration-0009"), ("other", "head")] {
            let error = store.lineage_table(run, checkpoint).unwrap_err();
            assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
        }
        let history = store.history_table(Some("main")).unwrap();
        assert_eq!(history.columns[..3], ["run", "iteration", "status"]);
        assert!(history.rows.is_empty() && !history.truncated);
        assert!(store.job_listings().unwrap().is_empty());
    }
}
