//! doctor: what was found, each finding with what to do about it.

use serde::{Deserialize, Serialize};

/// The answer of `POST /v1/doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doctor {
    /// In the order in which they were looked for.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `well`, `warn` or `bad`.
    pub level: String,
    /// What it is about, in a word.
    pub about: String,
    /// What was found, and what to do where it is not well.
    pub what: String,
}
