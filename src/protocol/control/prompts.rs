//! Prompt sets and what an upload into one answers. The lines themselves: [`super::lines`].

use serde::{Deserialize, Serialize};

use super::BadLine;

/// The answer of `GET /v1/prompt-sets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptSets {
    /// In order of their making.
    pub prompt_sets: Vec<PromptSet>,
}

/// One set; its counts are of published prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptSet {
    /// Its name.
    pub name: String,
    /// All prompts of the set, reserved ones included.
    pub prompts: u64,
    /// Prompts kept for evaluation.
    pub reserved: u64,
    /// The share that is reserved.
    pub reserve_share: f64,
    /// Drawn by the active run.
    pub drawn: u64,
    /// Not reserved and not yet drawn by the active run.
    pub fresh: u64,
}

/// The query of an upload of prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsQuery {
    /// The share of the set that evaluation keeps, from 0 to below 1. By default the set's own, and
    /// 0 for a new set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<f64>,
    /// Leave bad lines out instead of refusing the whole file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_bad: Option<bool>,
    /// A key of the client's own: a second upload with it answers what the first one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
}

/// What an upload of prompts did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptsAdded {
    /// The set's name.
    pub set: String,
    /// Lines read, blank ones left out.
    pub lines: u64,
    /// Prompts added, reserved ones included.
    pub added: u64,
    /// Of these, kept for evaluation.
    pub reserved: u64,
    /// Exact duplicates, of this upload or of any set; not added again.
    pub duplicates: u64,
    /// Bad lines that were left out.
    pub bad: u64,
    /// The first of the bad lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_lines: Vec<BadLine>,
    /// Whether this is the answer to an earlier upload with the same client key.
    #[serde(default)]
    pub repeated: bool,
}
