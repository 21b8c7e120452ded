//! Preference sets and what an upload into one answers. The lines themselves: [`super::lines`].

use serde::{Deserialize, Serialize};

use super::BadLine;

/// The answer of `GET /v1/preference-sets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceSets {
    /// In order of their making.
    pub preference_sets: Vec<PreferenceSet>,
}

/// One set of offline preferences; its count is of published ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceSet {
    /// Its name; `[train] offline` names it.
    pub name: String,
    /// Its preferences.
    pub preferences: u64,
    /// Whether the configuration in force names it.
    pub used: bool,
    /// Milliseconds since the epoch.
    pub created_ms: i64,
}

/// What an upload of offline preferences did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencesAdded {
    /// The set's name.
    pub set: String,
    /// Lines read, blank ones left out.
    pub lines: u64,
    /// Preferences added.
    pub added: u64,
    /// Exact duplicates, of this upload or of the set; not added again.
    pub duplicates: u64,
    /// Bad lines that were left out.
    pub bad: u64,
    /// Preferences left out, for their prompt is kept for evaluation.
    #[serde(default)]
    pub evaluation_prompts: u64,
    /// The first of the bad lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_lines: Vec<BadLine>,
    /// Whether this is the answer to an earlier upload with the same client key.
    #[serde(default)]
    pub repeated: bool,
}
