//! The two views that users rely on, as rows for the API: `iteration_history`, `checkpoint_lineage`.
//!
//! In: a run's name. Out: rows of the views. May not enter: anything that the views do not say.

use rlhfd_domain::limits;
use rusqlite::{Row, params};

use crate::error::Result;
use crate::open::Reader;

/// A row of `iteration_history`; the columns are documented in the README.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are the view's columns, documented with it")]
pub struct HistoryRow {
    pub run: String,
    pub iteration: u32,
    pub status: String,
    pub policy_in: String,
    pub policy_out: Option<String>,
    pub reference: String,
    pub prompts: Option<i64>,
    pub responses: Option<i64>,
    pub preferences: Option<i64>,
    pub ties: Option<i64>,
    pub without_pair: Option<i64>,
    pub set_aside: Option<i64>,
    pub score_mean: Option<f64>,
    pub score_gap_mean: Option<f64>,
    pub response_tokens_mean: Option<f64>,
    pub truncated_share: Option<f64>,
    pub loss_last: Option<f64>,
    pub accuracy_last: Option<f64>,
    pub margin_last: Option<f64>,
    pub kl_k3: Option<f64>,
    pub eval_score_mean: Option<f64>,
    pub eval_win_rate: Option<f64>,
    pub generate_s: Option<f64>,
    pub label_s: Option<f64>,
    pub train_s: Option<f64>,
    pub evaluate_s: Option<f64>,
    pub device: Option<String>,
    pub started_ms: i64,
    pub ended_ms: Option<i64>,
    pub length_penalty: Option<f64>,
    pub score_length_correlation: Option<f64>,
    pub canary_score_mean: Option<f64>,
    pub offline: Option<i64>,
    pub gate: Option<String>,
}

/// A row of `checkpoint_lineage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineageRow {
    /// `run/name`.
    pub checkpoint: String,
    /// `run/name` of itself (depth 0), its parent (1), and so on.
    pub ancestor: String,
    /// Steps back.
    pub depth: u32,
    /// The iteration that trained the ancestor.
    pub iteration: Option<u32>,
    /// The ancestor's folder.
    pub path: String,
    /// The sum of the ancestor's manifest.
    pub sha256: String,
}

fn read(row: &Row<'_>) -> rusqlite::Result<HistoryRow> {
    Ok(HistoryRow {
        run: row.get("run")?,
        iteration: row.get("iteration")?,
        status: row.get("status")?,
        policy_in: row.get("policy_in")?,
        policy_out: row.get("policy_out")?,
        reference: row.get("reference")?,
        prompts: row.get("prompts")?,
        responses: row.get("responses")?,
        preferences: row.get("preferences")?,
        ties: row.get("ties")?,
        without_pair: row.get("without_pair")?,
        set_aside: row.get("set_aside")?,
        score_mean: row.get("score_mean")?,
        score_gap_mean: row.get("score_gap_mean")?,
        response_tokens_mean: row.get("response_tokens_mean")?,
        truncated_share: row.get("truncated_share")?,
        loss_last: row.get("loss_last")?,
        accuracy_last: row.get("accuracy_last")?,
        margin_last: row.get("margin_last")?,
        kl_k3: row.get("kl_k3")?,
        eval_score_mean: row.get("eval_score_mean")?,
        eval_win_rate: row.get("eval_win_rate")?,
        generate_s: row.get("generate_s")?,
        label_s: row.get("label_s")?,
        train_s: row.get("train_s")?,
        evaluate_s: row.get("evaluate_s")?,
        device: row.get("device")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
        length_penalty: row.get("length_penalty")?,
        score_length_correlation: row.get("score_length_correlation")?,
        canary_score_mean: row.get("canary_score_mean")?,
        offline: row.get("offline")?,
        gate: row.get("gate")?,
    })
}

impl Reader {
    /// The newest iterations of a run, oldest of them first.
    pub fn history(&self, run: &str, rows: u32) -> Result<Vec<HistoryRow>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT * FROM iteration_history WHERE run = ?1 ORDER BY iteration DESC LIMIT ?2",
        )?;
        let mut rows = statement
            .query_map(params![run, rows.min(limits::LIST_ROWS_MAX)], read)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        rows.reverse();
        Ok(rows)
    }

    /// A checkpoint and its ancestors, nearest first.
    pub fn lineage(&self, run: &str, checkpoint: &str) -> Result<Vec<LineageRow>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT checkpoint, ancestor, depth, iteration, path, sha256 FROM checkpoint_lineage
             WHERE checkpoint = ?1 || '/' || ?2 ORDER BY depth LIMIT ?3",
        )?;
        let rows = statement
            .query_map(params![run, checkpoint, limits::LIST_ROWS_MAX], |row| {
                Ok(LineageRow {
                    checkpoint: row.get(0)?,
                    ancestor: row.get(1)?,
                    depth: row.get(2)?,
                    iteration: row.get(3)?,
                    path: row.get(4)?,
                    sha256: row.get(5)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }
}
