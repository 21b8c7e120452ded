//! What travels between the threads of a serving worker.
//!
//! In: nothing. Out: plain types. May not enter: threads, channels, computation.

use std::sync::Arc;

use rlhfd_protocol::worker::{FailureKind, ItemResult, Message, ModelRef, Reason, Summary, Work};

use crate::checkpoint::{CheckpointError, disk_fault};
use crate::errors::{ModelError, TextError, WorkerError, with_causes};
use crate::generate::Response;
use crate::model::labels::Labels;
use crate::model::{ModelFolder, ModelKind};
use crate::render::Renderer;

/// The text side of a model: what rendering and decoding need, and the bounds that ids must keep.
pub(super) struct TextSide {
    pub(super) renderer: Renderer,
    pub(super) positions_max: usize,
    pub(super) vocabulary: usize,
    pub(super) kind: ModelKind,
    /// What a preference model answers with.
    pub(super) labels: Option<Labels>,
}

impl TextSide {
    pub(super) fn open(model: &ModelRef) -> Result<Self, WorkerError> {
        let folder = ModelFolder::open(&model.path)?;
        let renderer = Renderer::open(&folder)?;
        if let Some(labels) = folder.labels {
            renderer.require_labels(labels)?;
        }
        Ok(Self {
            renderer,
            positions_max: folder.config.positions_max,
            vocabulary: folder.config.vocabulary,
            kind: folder.kind(),
            labels: folder.labels,
        })
    }
}

/// From the tokeniser to the compute thread.
pub(super) enum ToCompute {
    Load(Vec<ModelRef>),
    Begin(Box<Unit>),
    /// Items that are computed together.
    Batch(Vec<Prepared>),
    /// The unit that began cannot be prepared; no batch of it follows, but its end does.
    Unready(Failure),
    End,
    Unload,
    Drain,
}

/// A unit that begins.
pub(super) struct Unit {
    pub(super) attempt: u64,
    pub(super) work: Work,
    /// For works that turn text to ids or back.
    pub(super) text: Option<Arc<TextSide>>,
}

/// One item, ready to compute or answered already.
pub(super) struct Prepared {
    pub(super) index: u32,
    pub(super) task: Task,
}

/// What is to be done with an item.
pub(super) enum Task {
    /// Ids; `extra` is the occurrence of a prompt, or the length of a response's prompt.
    Ids { ids: Vec<u32>, extra: u32 },
    /// A prompt and responses to it, which are rendered pair by pair as they are asked.
    Compare { context: Vec<Message>, responses: Vec<String> },
    /// Nothing: the tokeniser knew the answer.
    Answered { result: ItemResult, payload: Vec<u8> },
}

/// From the compute thread to the decoder.
pub(super) enum Answer {
    /// Any frame that needs no more work.
    Frame { message: rlhfd_protocol::worker::FromWorker, payload: Vec<u8> },
    /// The responses to one prompt, to be decoded.
    Responses { attempt: u64, index: u32, responses: Vec<Response>, text: Arc<TextSide> },
    /// End the process with this code once all is written.
    Exit(i32),
}

/// Why a unit failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn input(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Input, message: message.into() }
    }
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        let kind = match &error {
            WorkerError::Cancelled => FailureKind::Cancelled,
            WorkerError::OutOfMemory(_) => FailureKind::OutOfMemory,
            WorkerError::Torch(_) => FailureKind::Crashed,
            WorkerError::Model(ModelError::Torch { first_line, .. }) => {
                if crate::errors::is_out_of_memory(first_line) {
                    FailureKind::OutOfMemory
                } else {
                    FailureKind::Crashed
                }
            }
            WorkerError::Model(ModelError::Read { source, .. }) if disk_fault(source) => {
                FailureKind::Disk
            }
            _ => FailureKind::Input,
        };
        Self { kind, message: with_causes(&error) }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let kind = if error.is_disk() { FailureKind::Disk } else { FailureKind::Unsound };
        Self { kind, message: with_causes(&error) }
    }
}

impl From<crate::train::TrainError> for Failure {
    fn from(error: crate::train::TrainError) -> Self {
        Self { kind: error.failure_kind(), message: with_causes(&error) }
    }
}

/// An item that is set aside.
pub(super) fn refused(reason: Reason, message: impl Into<String>) -> ItemResult {
    ItemResult::Refused { reason, message: message.into() }
}

/// Whether a text error is about the one conversation, not about the model's folder.
pub(super) fn concerns_item(error: &TextError) -> bool {
    match error {
        TextError::Template { .. }
        | TextError::PromptChanges { .. }
        | TextError::TurnChanges { .. }
        | TextError::PromptsDiffer { .. }
        | TextError::EmptyResponse
        | TextError::Unusable { .. } => true,
        TextError::Tokenizer { .. } | TextError::Misfit { .. } | TextError::NoTemplate { .. } => {
            false
        }
    }
}

/// The summary of a unit that is done.
pub(super) fn summary(seconds: f64, tokens: u64, devices: &crate::model::Devices) -> Summary {
    Summary {
        seconds,
        tokens,
        peak_mib: crate::device::peak_mib(),
        device_peak_mib: crate::device_memory::peak_mib(devices),
        findings: Vec::new(),
        checkpoint: None,
    }
}
