//! Nouns and rules of rlhfd, in flow order: prompts → generate → label → pair → train → checkpoint →
//! evaluate.
//!
//! In: plain values. Out: decisions as plain values. Everything here is pure, so that a decision seen
//! in production is reproduced by pasting its inputs into a test.
//! May not enter: I/O, clocks, environment, async, serde, SQL, tensors.

pub mod cause;
pub mod checkpoint;
pub mod conservation;
pub mod counter;
pub mod device;
pub mod divergence;
pub mod evaluation;
pub mod gate;
pub mod ids;
pub mod job;
pub mod label;
pub mod limits;
pub mod offline;
pub mod plan;
pub mod preference;
pub mod prompt;
pub mod response;
pub mod retention;
pub mod room;
pub mod share;
pub mod split;
pub mod stage;
pub mod train;
pub mod unit;
pub mod work;

pub use cause::Cause;
pub use divergence::Divergence;
pub use ids::{
    AttemptId, CheckpointId, DeviceId, EventId, JobId, LeaseId, Name, NameError, OfflineId,
    PreferenceId, PreferenceSetId, PromptId, ResponseId, RunId, ScorerId, SetId, UnitId, UploadId,
};
pub use job::{JobKind, JobName};
pub use plan::BatchPlan;
pub use stage::Stage;
pub use unit::{Effect, Event, IllegalEvent, State, Transition, Unit};
pub use work::WorkKind;

/// A word that an enum does not know, met in a row or a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no {what}; the {what}s are: {known}")]
pub struct UnknownWord {
    /// What kind of word was expected.
    pub what: &'static str,
    /// The word that was found.
    pub found: String,
    /// All the right words, with commas.
    pub known: &'static str,
}
