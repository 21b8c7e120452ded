//! Training jobs: their upload and their list.

use serde::{Deserialize, Serialize};

use super::BadLine;

/// The answer of `GET /v1/training-jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Jobs {
    /// In order of their making.
    pub jobs: Vec<Job>,
}

/// One training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The run that it belongs to.
    pub run: String,
    /// `sft`, `reward` or `preference`.
    pub kind: String,
    /// Its name; with the kind it is what a config's `job = "reward/NAME"` means. A job that failed or
    /// was cancelled may share it with newer ones.
    pub name: String,
    /// `open`, `done`, `failed` or `cancelled`.
    pub status: String,
    /// Why it failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// The checkpoint that it made.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Examples in its upload.
    #[serde(default)]
    pub examples: Option<i64>,
    /// The last training step that the store knows.
    #[serde(default)]
    pub step: Option<i64>,
    /// That step's loss.
    #[serde(default)]
    pub loss: Option<f64>,
    /// Share of held-out pairs that its reward model ranks as the data does.
    #[serde(default)]
    pub held_out_accuracy: Option<f64>,
    /// Expected calibration error on them.
    #[serde(default)]
    pub calibration_error: Option<f64>,
    /// Milliseconds since the epoch.
    pub created_ms: i64,
    /// When its first unit began.
    #[serde(default)]
    pub started_ms: Option<i64>,
    /// When it ended.
    #[serde(default)]
    pub ended_ms: Option<i64>,
}

/// The query of an upload of preferences: of one that makes a training job, or into a set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadQuery {
    /// Leave bad lines out instead of refusing the whole file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_bad: Option<bool>,
    /// A key of the client's own: a second upload with it answers what the first one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
}

/// What an upload of training data did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAdded {
    /// The job as `kind/name`.
    pub job: String,
    /// Lines read, blank ones left out.
    pub lines: u64,
    /// Examples that the job trains on.
    pub examples: u64,
    /// Bad lines that were left out.
    pub bad: u64,
    /// Examples that were left out because their prompt is kept for evaluation.
    #[serde(default)]
    pub evaluation_prompts: u64,
    /// The first of the bad lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_lines: Vec<BadLine>,
    /// Whether this is the answer to an earlier upload with the same client key.
    #[serde(default)]
    pub repeated: bool,
}
