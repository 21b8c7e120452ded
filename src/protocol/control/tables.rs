//! Columns and rows: what `sql` answers, and every view that is passed on as it stands.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The body of `POST /v1/sql`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// One statement that reads.
    pub sql: String,
    /// Stop after this many rows; never above the daemon's own ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<u32>,
}

/// A result. Blobs are lower-case hex.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Names, in order.
    pub columns: Vec<String>,
    /// One array a row, as long as `columns`.
    pub rows: Vec<Vec<Value>>,
    /// Whether there were more rows than the ceiling.
    #[serde(default)]
    pub truncated: bool,
}

impl Table {
    /// The index of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }
}
