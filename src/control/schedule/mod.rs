//! Scheduling: which ready unit goes to which lease, which device gets a lease, which lease goes.
//!
//! In: devices, leases, ready units. Out: [`Placement`]s, best first. Pure, so that a bad plan seen
//! in production is reproduced by pasting its inputs into a test. May not enter: NVML
//! (`crate::gpu`), processes (`crate::workers`), time, actors, SQL.

mod plan;
mod spread;
pub mod standing;

pub use plan::plan;
pub use spread::{Spread, ever_fits};
pub use standing::Duty;

/// How many units a lease holds at once: the one that runs and the one that comes next, so that the
/// next is there before the present one ends.
pub const QUEUE_DEPTH: usize = 2;

/// How often a unit may be passed over for one whose models are loaded before it goes first.
pub const PASSES_MAX: u32 = 32;

/// A device as the plan sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// The GPU's UUID, or `cpu`.
    pub uuid: String,
    /// What is free for our work, where it is known: what our own worker holds counts as free.
    pub memory_free_mib: Option<u64>,
    /// What is due on it.
    pub duty: Duty,
}

/// A worker process on its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its row.
    pub id: i64,
    /// The UUIDs that it holds.
    pub devices: Vec<String>,
    /// Over several devices: the rooms by which its worker splits models.
    pub rooms_mib: Vec<u64>,
    /// Sums of the models that it has once everything handed to it is done.
    pub loaded: Vec<String>,
    /// Units handed to it and not yet ended.
    pub queued: usize,
    /// Whether a unit that bears none behind it is among them.
    pub alone: bool,
    /// Where it stands.
    pub state: LeaseState,
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Its process was started and has not answered yet.
    Opening,
    /// It takes units.
    Open,
    /// It finishes what it has and takes nothing more.
    Draining,
}

/// A unit whose inputs exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyUnit {
    /// Its row.
    pub id: i64,
    /// Sums of the models that it needs; empty where it needs none.
    pub models: Vec<String>,
    /// Order of preference, lowest first.
    pub priority: Priority,
    /// What it needs of a single device, where it is known.
    pub memory_mib: Option<u64>,
    /// What it needs of several; none where it cannot be split.
    pub spread: Option<Spread>,
    /// Nothing may queue behind it: it takes long (training).
    pub alone: bool,
    /// How often it was passed over already.
    pub passed: u32,
}

/// Order among ready units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// The class of its work; what drains comes before what fills.
    pub class: u8,
    /// Its first ordinal.
    pub ordinal: i64,
    /// Its row, so that the order is total.
    pub unit: i64,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Hand this unit to this lease.
    Hand {
        /// The unit's row.
        unit: i64,
        /// The lease's row.
        lease: i64,
    },
    /// Start a worker on these devices: there is work for it.
    Open {
        /// UUIDs, in the order of a model's blocks.
        devices: Vec<String>,
        /// Over several: the room of each.
        rooms_mib: Vec<u64>,
    },
    /// Let this lease finish the unit that runs, then end it: a device of its own is to be left.
    Drain {
        /// The lease's row.
        lease: i64,
    },
    /// End this lease at once: a device of its own is lost.
    End {
        /// The lease's row.
        lease: i64,
    },
}
