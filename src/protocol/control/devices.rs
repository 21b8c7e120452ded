//! Devices and their timeline.

use serde::{Deserialize, Serialize};

use super::DeviceStatus;

/// The query of `GET /v1/devices`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicesQuery {
    /// How many of the newest rows of the timeline; by default none.
    #[serde(default)]
    pub history: Option<u32>,
}

/// The answer of `GET /v1/devices`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Devices {
    /// Devices that the configuration names.
    pub devices: Vec<DeviceStatus>,
    /// What happened to them, the oldest first.
    #[serde(default)]
    pub history: Vec<DeviceEvent>,
}

/// A row of the timeline: something that changed, what was decided, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEvent {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// The UUID, `cpu`, or `driver`.
    pub device: String,
    /// `found`, `free`, `hot`, `silent`, `quiet`, `yielded`, `broken`, `lost`, `xid`, `lease`, `driver` or
    /// `out_of_memory`.
    pub kind: String,
    /// What was seen.
    pub seen: String,
    /// What follows.
    pub decision: String,
    /// Why.
    pub reason: String,
    /// The lease that it touches.
    #[serde(default)]
    pub lease: Option<i64>,
    /// The unit that it touches.
    #[serde(default)]
    pub unit: Option<i64>,
}
