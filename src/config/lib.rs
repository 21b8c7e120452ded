//! Configuration: from TOML text to a value that the daemon and the worker may trust.
//!
//! In: the text of a configuration (or of a training's settings), and the folder that its relative
//! paths are meant from. Out: a [`CheckedConfig`] (or [`TrainSettings`]) whose every value lies in
//! its range and whose cross-knob rules hold, or all that is wrong with it at once, with lines.
//!
//! ```text
//! text ──raw──▶ keys with lines ──values──▶ one value a knob ──checked──▶ CheckedConfig
//!                                   ▲                                        │
//!                         knobs: one row a knob                        frozen: canonical text
//! ```
//!
//! May not enter: models, databases, devices, sockets. Whether a path leads anywhere is `check`'s
//! question, not this room's.

mod arm;
mod checked;
mod frozen;
mod hours;
pub mod knobs;
mod micro_batch;
mod problem;
mod raw;
mod reference;
mod sample;
mod sections;
mod setting;
mod spelling;
mod train;
mod values;

pub use arm::ArmPolicy;
pub use checked::CheckedConfig;
pub use hours::Hours;
pub use problem::{ConfigError, Problem, Problems};
pub use reference::{Reference, ReferenceConfig};
pub use sample::commented_toml;
pub use sections::{
    ArmConfig, Compare, ControlConfig, DataFile, DevicesConfig, EvaluateConfig, GateAgainst,
    GateConfig, GateFailure, GenerateConfig, JobConfig, JobData, LabelConfig, LengthUnit,
    Normalise, OnDivergence, PairArms, PairConfig, PairRule, Place, PromptsConfig, RunConfig,
    RunStart, SavePolicy, SchedulerConfig, ScorePosition, ScorerConfig, ScorerKind, ScorerModel,
    ScorerRole, StoreConfig, TrainConfig, Unfinished, UseDevices, WhenShort, WorkerConfig,
};
pub use setting::LoraTargets;
pub use spelling::nearest;
pub use train::{History, Loss, Overlong, Shape, TrainSettings, Training};
