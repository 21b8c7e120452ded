//! Prompt sets and what an upload into one answers. The lines themselves: [`super::lines`].

use serde::{Deserialize, Serialize};

use super::{BadLine, ErrorDetail};

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
    /// Sets of a higher priority are drawn first.
    #[serde(default)]
    pub priority: i64,
    /// Among sets of the same priority a draw is shared in proportion to it.
    #[serde(default = "one")]
    pub weight: f64,
    /// Drawn by the active run.
    pub drawn: u64,
    /// Not reserved and not yet drawn by the active run.
    pub fresh: u64,
}

const fn one() -> f64 {
    1.0
}

/// The body of `POST /v1/prompt-sets/{name}`: what of a set changes, from the next draw on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptSetOrder {
    /// Its priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Its weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

/// The highest priority of a set; the lowest is its negative.
pub const PRIORITY_MAX: i64 = 1_000_000;

/// The largest weight of a set; the smallest is one over it.
pub const WEIGHT_MAX: f64 = 1e6;

impl PromptSetOrder {
    /// Whether priority and weight lie in their ranges; the daemon and its client both look.
    pub fn check(&self) -> Result<(), ErrorDetail> {
        if let Some(priority) = self.priority.filter(|p| p.unsigned_abs() > PRIORITY_MAX as u64) {
            return Err(ErrorDetail::new(
                format!("a priority of {priority} is out of range"),
                "priority",
                format!("take a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}"),
            ));
        }
        let weights = 1.0 / WEIGHT_MAX..=WEIGHT_MAX;
        if let Some(weight) = self.weight.filter(|weight| !weights.contains(weight)) {
            return Err(ErrorDetail::new(
                format!("a weight of {weight} is out of range"),
                "weight",
                "take a number above 0, such as 2: a set of weight 2 gives twice what a set of \
                 weight 1 gives",
            ));
        }
        Ok(())
    }
}

/// The query of an upload of prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsQuery {
    /// The share of the set that evaluation keeps, from 0 to below 1. By default the set's own, and
    /// 0 for a new set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<f64>,
    /// Its priority; by default the set's own, and 0 for a new set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Its weight; by default the set's own, and 1 for a new set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
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
