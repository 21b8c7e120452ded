//! The runs of the state folder.

use serde::{Deserialize, Serialize};

/// The answer of `GET /v1/runs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// In order of their making.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// Whether it is the one that the daemon works on.
    pub active: bool,
    /// The seed of all its random numbers.
    pub seed: u64,
    /// The initial policy's folder.
    pub policy: String,
    /// The reference's folder.
    pub reference: String,
    /// The name of the checkpoint that is its head.
    pub head: String,
    /// Iterations started.
    pub iterations: u64,
    /// Why it is paused.
    #[serde(default)]
    pub paused: Option<String>,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: i64,
}
