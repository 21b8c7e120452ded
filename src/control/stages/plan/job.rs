//! The plan of a training job: an update, and the checkpoint that it publishes.
//!
//! In: the job. Out: its units. Pure.

use rlhfd_domain::{JobKind, Stage, WorkKind};
use rlhfd_store::NewUnit;

/// The units of a training job, by its slug.
#[must_use]
pub fn job(kind: JobKind, slug: &str, micro_batch: u32) -> Vec<NewUnit> {
    let unit = |stage, work: WorkKind, last: &str| NewUnit {
        stage,
        work,
        lane: String::new(),
        key: format!("job/{kind}/{slug}/{last}"),
        plan: None,
        micro_batch: work.trains().then_some(u64::from(micro_batch)),
        policy: None,
        scorer: None,
        detail: None,
    };
    vec![
        unit(Stage::Train, kind.work(), "train"),
        unit(Stage::Checkpoint, WorkKind::Checkpoint, "checkpoint"),
    ]
}
