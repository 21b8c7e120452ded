//! SQLite, and all of the SQL: one module a noun, in flow order.
//!
//! In: values of `rlhfd-domain`, and the time as a number. Out: rows as plain structs. [`Store`] owns
//! the one writing connection, [`Reader`] a read-only one; every method of `Store` that writes is one
//! IMMEDIATE transaction, and who calls it may acknowledge once it returned. Unit and attempt rows
//! are the journal, and every change of a unit goes through `rlhfd_domain::unit::next`.
//! May not enter: clocks, actors, tensors, files other than the database and its folder.

pub mod arms;
pub mod backup;
pub mod checkpoints;
pub mod combined;
pub mod compared;
pub mod device_events;
pub mod diverged;
pub mod draws;
pub mod error;
pub mod evaluations;
pub mod events;
pub mod folder;
pub mod generate;
pub mod history;
pub mod items;
pub mod iterations;
pub mod jobs;
pub mod journal;
pub mod labels;
pub mod leases;
pub mod log;
pub mod memory;
pub mod migrations;
pub mod offline;
pub mod offline_pairs;
pub mod open;
pub mod overlap;
pub mod pairs;
pub mod preferences;
pub mod prompts;
pub mod publish;
pub mod ready;
pub mod references;
pub mod reports;
pub mod retention;
pub mod runs;
pub mod spoiled;
pub mod sql;
pub mod status;
pub mod summaries;
pub mod tables;
pub mod train;
pub mod units;
pub mod uploads;

mod bytes;
mod probe;
mod rows;
mod set_aside;

#[cfg(test)]
mod checks;

pub use arms::{Arm, NewArm};
pub use checkpoints::{Checkpoint, NewCheckpoint, Scorer};
pub use combined::{Penalty, ScorerUse, Scoring};
pub use compared::{Compared, VersusItem};
pub use device_events::{DeviceEventRow, NewDeviceEvent};
pub use diverged::WentWrong;
pub use error::{DiskKind, Disposition, Result, StoreError};
pub use evaluations::{Evaluation, LaneShape, NewEvaluation, PairedAnswers};
pub use events::{EventRow, Level, NewEvent};
pub use generate::{Generated, NewResponse, Rendered};
pub use history::{HistoryRow, LineageRow};
pub use items::{GenerateItem, LogprobItem, RenderItem, ScoreItem};
pub use iterations::{Drawn, Iteration, NewIteration};
pub use jobs::{Job, JobStatus, NewJob};
pub use labels::{Logprobs, Scored};
pub use leases::{DeviceRow, Lease};
pub use log::Log;
pub use offline::{NewOffline, PreferenceSet};
pub use offline_pairs::{
    OfflineDrawn, OfflineLogprobItem, OfflineRenderItem, OfflineUse, PairIds, PairLogprobs,
    RenderedPair,
};
pub use open::{Reader, Store, database};
pub use overlap::ExamplePrompts;
pub use pairs::{StoredPair, TrainingPair};
pub use preferences::PairTotals;
pub use prompts::PromptSet;
pub use references::{Average, NextReference, Replayed};
pub use retention::Kept;
pub use runs::{ModelIdentity, Paused, PausedBy, Run, RunIdentity};
pub use sql::{SqlAnswer, SqlError, SqlLimits, SqlReader, SqlValue};
pub use status::{Progress, RunStatus, RunningUnit, ScorerProgress, StageProgress};
pub use summaries::NewSummary;
pub use units::{Attempt, AttemptRow, Finish, NewUnit, Outcome, Recovered, UnitRow};
pub use uploads::{
    Appended, NewPrompt, NewUpload, Publish, SetAsked, Upload, UploadKind, UploadOpened,
};
