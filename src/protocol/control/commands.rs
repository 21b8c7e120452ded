//! start, pause, resume, cancel, rollback, pin, unpin, backup: one request and one answer for all.

use serde::{Deserialize, Serialize};

/// The body of a command. Each verb takes the keys that mean something to it and refuses the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// `pause` and `rollback`: why, for `status` and the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `cancel`: the iteration; by default the one that runs. `rollback`: the one whose policy becomes
    /// the head, 0 for the initial policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iteration: Option<u64>,
    /// `cancel`: a training job as `KIND/NAME` instead of an iteration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// `pin` and `unpin`: the checkpoint's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// One sentence for people.
    pub message: String,
}
