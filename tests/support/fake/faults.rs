//! What goes wrong, and when: a plan in a file, so that it outlives each worker process.
//!
//! A fault fires at most `times` times over all processes: each firing takes a file of its own in
//! the folder beside the plan, created exclusively. So "the first worker dies, the second goes on"
//! is said in one line.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The whole plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// Milliseconds that each item takes.
    #[serde(default)]
    pub ms_per_item: u64,
    /// What it says to hold of its GPU.
    #[serde(default)]
    pub device_mib: Option<u64>,
    /// The most that it says to have held of it, in each unit.
    #[serde(default)]
    pub device_peak_mib: Option<u64>,
    /// Milliseconds that it reckons a save of a training's state to take.
    #[serde(default)]
    pub ms_per_save: u64,
    /// Milliseconds that each training step takes.
    #[serde(default)]
    pub ms_per_step: u64,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Unique in the plan.
    pub name: String,
    /// The kind of work, as the protocol spells it; `*` for any, `hello` for the handshake.
    pub work: String,
    /// How many items (or training steps) of the unit are done before it fires.
    #[serde(default)]
    pub after: u32,
    /// Fires only at an item that holds this text.
    #[serde(default)]
    pub containing: Option<String>,
    /// Fires only for evaluation's responses, or only for the iteration's own.
    #[serde(default)]
    pub purpose: Option<rlhfd_protocol::worker::Purpose>,
    /// How often it fires over all processes; 0 is always.
    #[serde(default = "once")]
    pub times: u32,
    pub act: Act,
}

fn once() -> u32 {
    1
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// The process exits with this code.
    Exit { code: i32 },
    /// The process sends itself this signal: 6 abort, 9 kill, 11 segmentation fault.
    Signal { number: i32 },
    /// Heartbeats go on, the progress counter stands still.
    Stall,
    /// Neither heartbeat nor answer.
    Silent,
    /// Bytes that are no frame.
    Garbage,
    /// A prefix that announces far more than the ceiling.
    Oversized,
    /// A frame whose header is JSON, but no message.
    UnknownVerb,
    /// The protocol's version in the hello is another.
    OtherVersion,
    /// Every answer of this item is sent twice.
    AnswerTwice,
    /// The item is left without an answer, the unit is called done.
    LeaveOut,
    /// An answer under another attempt's number.
    WrongAttempt,
    /// An answer to an item that was never sent.
    WrongIndex,
    /// A score or log-prob that is no number.
    NonFiniteAnswer,
    /// The item is refused as over-long.
    Refuse,
    /// `unit_failed` of this kind; `exit` says whether the process ends after it.
    Fail { failure: rlhfd_protocol::worker::FailureKind, exit: bool },
    /// A finding of the probe.
    Finding { message: String },
    /// Waits, alive and counting, until the test lets it go on; the test sees that it waits.
    Hold,
}

/// The plan with the folder in which its firings are counted.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    plan: Plan,
    fired: Option<PathBuf>,
}

/// Where the firings of a plan are counted.
pub fn fired_folder(plan: &Path) -> PathBuf {
    plan.with_extension("fired")
}

impl Faults {
    /// Reads the plan that `FAKE_WORKER_PLAN` names; none is a plan without faults.
    pub fn from_env() -> Result<Self> {
        let Some(path) = std::env::var_os("FAKE_WORKER_PLAN").map(PathBuf::from) else {
            return Ok(Self::default());
        };
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let plan = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let fired = fired_folder(&path);
        fs::create_dir_all(&fired)?;
        Ok(Self { plan, fired: Some(fired) })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The act that is due at this point, if any; it is counted as fired.
    pub fn due(&self, point: &Point) -> Option<(String, Act)> {
        self.plan
            .faults
            .iter()
            .find(|fault| fault.meets(point) && self.take(fault))
            .map(|fault| (fault.name.clone(), fault.act.clone()))
    }

    fn take(&self, fault: &Fault) -> bool {
        let Some(folder) = &self.fired else { return false };
        if fault.times == 0 {
            return true;
        }
        (0..fault.times).any(|n| {
            let mark = folder.join(format!("{}-{n}", fault.name));
            OpenOptions::new().write(true).create_new(true).open(mark).is_ok()
        })
    }

    /// Tells the test that this worker holds, and waits for its word.
    pub fn hold(&self, name: &str, mut alive: impl FnMut()) {
        let Some(folder) = &self.fired else { return };
        let held = folder.join(format!("{name}.held"));
        let part = folder.join(format!("{name}.part"));
        let said = fs::write(&part, std::process::id().to_string());
        if said.and_then(|()| fs::rename(part, held)).is_err() {
            return;
        }
        let release = folder.join(format!("{name}.release"));
        while !release.exists() {
            alive();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Where in its work the worker stands.
#[derive(Debug, Clone, Copy)]
pub struct Point<'a> {
    pub work: &'a str,
    pub done: u32,
    /// The text of the item at hand.
    pub text: &'a str,
    pub purpose: Option<rlhfd_protocol::worker::Purpose>,
}

impl Fault {
    fn meets(&self, point: &Point) -> bool {
        let work = self.work == "*" || self.work == point.work;
        let purpose = self.purpose.is_none() || self.purpose == point.purpose;
        let place = match &self.containing {
            Some(text) => point.text.contains(text.as_str()),
            None => self.after == point.done,
        };
        work && purpose && place
    }
}

/// Whether a write failed for want of room, or because the place is read-only or broken.
pub(super) fn disk_failed(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let of_place = |e: &std::io::Error| {
        matches!(e.kind(), StorageFull | ReadOnlyFilesystem | QuotaExceeded)
            || e.raw_os_error() == Some(5)
    };
    error.chain().any(|cause| cause.downcast_ref().is_some_and(of_place))
}
