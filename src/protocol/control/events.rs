//! Rows of the table `events`, as a stream.

use serde::{Deserialize, Serialize};

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: SSE's `id`, and what `since` and `Last-Event-ID` name.
    pub id: i64,
    /// When, in milliseconds since the epoch.
    pub at_ms: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// A word that can be grouped by, such as `iteration_started`.
    pub kind: String,
    /// The run's name.
    #[serde(default)]
    pub run: Option<String>,
    /// The iteration's number.
    #[serde(default)]
    pub iteration: Option<i64>,
    /// The unit's row.
    #[serde(default)]
    pub unit: Option<i64>,
    /// The user whose request it was.
    #[serde(default)]
    pub uid: Option<i64>,
    /// One sentence for people.
    pub message: String,
    /// Particulars, by kind.
    #[serde(default)]
    pub data: Option<serde_json::Value>,
}

/// The query of `GET /v1/events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only events after this one. The header `Last-Event-ID` means the same and wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Without `since`: begin with this many of the newest events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// Stay and send what happens. SSE always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
}
