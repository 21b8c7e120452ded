//! What the daemon does now: the answer of `GET /v1/status`. Made from memory and a few indexed
//! rows, so that it is quick while an iteration runs.

use serde::{Deserialize, Serialize};

/// The whole answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The state folder.
    pub state: String,
    /// When the daemon started, in milliseconds since the epoch.
    pub started_ms: i64,
    /// The active run; null where the configuration names none that could be opened.
    #[serde(default)]
    pub run: Option<RunStatus>,
    /// What has to happen before work goes on, as sentences; empty while something runs.
    #[serde(default)]
    pub waits_for: Vec<String>,
    /// The iteration that is open.
    #[serde(default)]
    pub iteration: Option<IterationStatus>,
    /// Open training jobs.
    #[serde(default)]
    pub jobs: Vec<JobStatus>,
    /// Queued prompts.
    #[serde(default)]
    pub prompts: PromptsStatus,
    /// Devices that the daemon may use.
    #[serde(default)]
    pub devices: Vec<DeviceStatus>,
    /// Worker processes and what each does.
    #[serde(default)]
    pub leases: Vec<LeaseStatus>,
    /// What a changed configuration changes from the next iteration on.
    #[serde(default)]
    pub config_pending: Option<String>,
    /// The newest event's number.
    #[serde(default)]
    pub last_event: i64,
}

/// The active run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Its name.
    pub name: String,
    /// The name of its head.
    pub head: String,
    /// Iterations that ended well.
    pub iterations_done: u64,
    /// After how many it ends; 0: never.
    pub iterations_max: u64,
    /// Who paused it: `operator` or `daemon`.
    #[serde(default)]
    pub paused_by: Option<String>,
    /// Why it is paused.
    #[serde(default)]
    pub paused_reason: Option<String>,
    /// The name of its best policy by evaluation.
    #[serde(default)]
    pub best: Option<String>,
    /// What the newest iteration's gate said, where it failed.
    #[serde(default)]
    pub gate: Option<String>,
}

/// The open iteration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IterationStatus {
    /// Its number.
    pub iteration: u64,
    /// When it started, in milliseconds since the epoch.
    pub started_ms: i64,
    /// Its stages in the order of the flow.
    pub stages: Vec<StageStatus>,
    /// A guess at the seconds until its end, from the units that are done.
    #[serde(default)]
    pub seconds_left: Option<f64>,
}

/// A stage, counted from its units.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageStatus {
    /// `prompts`, `generate`, `label`, `pair`, `train`, `checkpoint` or `evaluate`.
    pub stage: String,
    /// Units waiting.
    pub open: u64,
    /// Units on a worker.
    pub running: u64,
    /// Units done.
    pub done: u64,
    /// Units set aside.
    pub set_aside: u64,
    /// Seconds of work in the units that are done.
    #[serde(default)]
    pub seconds: f64,
    /// Of `label` with several scorers: each one's share. Every scorer labels all prompts, so that the
    /// stage's units are those of all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scorers: Vec<ScorerStatus>,
}

/// One scorer's share of the labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScorerStatus {
    /// Its name.
    pub scorer: String,
    /// Its units.
    pub units: u64,
    /// Those that are done or set aside.
    pub closed: u64,
}

/// An open training job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// `reward/NAME`.
    pub job: String,
    /// `waiting` or `running`.
    pub state: String,
}

/// Prompts of all sets, as the active run sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptsStatus {
    /// Not reserved and not drawn.
    pub fresh: u64,
    /// Kept for evaluation.
    pub reserved: u64,
    /// What an iteration draws.
    pub per_iteration: u64,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// `cpu`, or the GPU's UUID.
    pub uuid: String,
    /// What it is.
    pub name: String,
    /// Whether it is there now.
    pub present: bool,
    /// Its memory, where that is known.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// Free memory, where that is known.
    #[serde(default)]
    pub memory_free_mib: Option<u64>,
    /// What others than our workers use of it.
    #[serde(default)]
    pub foreign_mib: Option<u64>,
    /// How busy it is, in per cent.
    #[serde(default)]
    pub utilisation_percent: Option<u32>,
    /// Degrees Celsius.
    #[serde(default)]
    pub temperature_c: Option<u32>,
    /// Watts.
    #[serde(default)]
    pub power_w: Option<u32>,
    /// Memory errors that could not be corrected, since the driver was loaded.
    #[serde(default)]
    pub ecc_uncorrected: Option<u64>,
    /// The driver's version.
    #[serde(default)]
    pub driver: Option<String>,
    /// Of a MIG slice: the UUID of its GPU.
    #[serde(default)]
    pub slice_of: Option<String>,
    /// Why it takes no units now; null: it takes them.
    #[serde(default)]
    pub hold: Option<String>,
    /// The others of a lease that stands on several devices, this one among them.
    #[serde(default)]
    pub together_with: Vec<String>,
}

/// A worker process on its devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The lease's id.
    pub lease: i64,
    /// The worker's process id.
    #[serde(default)]
    pub pid: Option<u32>,
    /// UUIDs.
    pub devices: Vec<String>,
    /// `starting`, `loading`, `running`, `idle` or `ending`.
    pub state: String,
    /// The stage it serves.
    #[serde(default)]
    pub stage: Option<String>,
    /// The natural key of the unit that runs.
    #[serde(default)]
    pub unit: Option<String>,
    /// Items of the unit that are answered.
    #[serde(default)]
    pub items_done: u64,
    /// Items of the unit.
    #[serde(default)]
    pub items: u64,
    /// A train unit's step.
    #[serde(default)]
    pub step: Option<u64>,
    /// A train unit's last step.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Its loss.
    #[serde(default)]
    pub loss: Option<f64>,
    /// Tokens a second, over the unit.
    #[serde(default)]
    pub tokens_per_s: Option<f64>,
    /// A guess at the seconds until the unit's end.
    #[serde(default)]
    pub seconds_left: Option<f64>,
    /// The worker's resident memory.
    #[serde(default)]
    pub resident_mib: Option<u64>,
}
