//! What ends a training, as one type.
//!
//! In: the errors of the rooms below. Out: [`TrainError`], which also says what kind of failure it
//! is for the daemon. May not enter: decisions about retrying (the control plane's).

use std::path::PathBuf;

use rlhfd_config::Problems;
use rlhfd_domain::Divergence;
use rlhfd_protocol::worker::FailureKind;
use thiserror::Error;

use crate::checkpoint::{CheckpointError, disk_fault};
use crate::errors::{InputError, ModelError, TextError, WorkerError, is_out_of_memory};

/// Why a training ended without a checkpoint.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The settings.
    #[error("the training settings are wrong\n{problems}\nat: {place}")]
    Settings {
        /// The file, or the words of the command line.
        place: String,
        /// All that is wrong.
        problems: Problems,
    },
    /// A model folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer, template, rendering.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The data.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Device and libtorch.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A folder could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What the daemon wrote for this training was altered since. It writes that again where it can.
    #[error("the training's input was altered since it was written\n{0}")]
    Altered(CheckpointError),
    /// Nothing is left to train on.
    #[error(
        "no pair is left to train on: {dropped} of {pairs} were left out ({reasons})\n\
         try: a larger max_length, or other pairs"
    )]
    NoPairs {
        /// Pairs in the file.
        pairs: usize,
        /// Of them left out.
        dropped: usize,
        /// By reason.
        reasons: String,
    },
    /// The same of conversations.
    #[error(
        "nothing is left to train on: all {conversations} lines were left out ({reasons})\n\
         try: a larger block_tokens (no more than the model has positions), or other data"
    )]
    NoConversations {
        /// Conversations in the file.
        conversations: usize,
        /// Why, by reason.
        reasons: String,
    },
    /// The steps of a training went wrong, and it was stopped.
    #[error("the training went wrong at step {step}: {figures}\n{}", .divergence.likely_cause())]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// How.
        divergence: Divergence,
        /// What says so.
        figures: String,
    },
    /// A loss or a gradient that is NaN or infinite. The step was not applied.
    #[error(
        "step {step} gave {what} that is not finite{}; it was not applied\n\
         try: a lower learning_rate, clipping (max_grad_norm), or look at the data",
        .example.as_ref().map_or(String::new(), |example| format!(" ({example})"))
    )]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// "a loss" or "a gradient norm".
        what: &'static str,
        /// The first pair or conversation whose loss is not finite, in the order of the data.
        example: Option<String>,
    },
    /// The trained model is broken.
    #[error(
        "the trained model gives a response of line {line}, which is held out, a score that is not \
         finite\ntry: a lower learning_rate, clipping (max_grad_norm), or look at the data"
    )]
    NonFiniteScore {
        /// The line of the data, counted from 1.
        line: usize,
    },
    /// The reference is broken.
    #[error(
        "the reference gives pair {pair} (of those trained on, from 1) a log-prob that is not finite\n\
         try: another reference; the weights of this one may be damaged"
    )]
    BrokenReference {
        /// The pair, in the order of the data.
        pair: usize,
    },
    /// What is stored of a response is not what the models give.
    #[error(
        "before the first step, {response}: {what} as it is stored, and {now} under the {under} as it is \
         loaded (more than {limit} apart); nothing was trained\n\
         try: look whether the folder of the {under} was changed, moved or restored from elsewhere, or \
         the rows of the response were, or [devices] since it was written; `rlhfctl resume` checks \
         again, and [train] rescore_responses = 0 goes without"
    )]
    Rescored {
        /// Which response, or pair.
        response: String,
        /// `policy` or `reference`.
        under: &'static str,
        /// What is stored.
        what: String,
        /// What is computed now, in nats.
        now: f64,
        /// How far apart they may be.
        limit: String,
    },
    /// A saved state that belongs to another training.
    #[error(
        "the saved state belongs to another training: {difference}\nat: {path}\n\
         try: another state folder, or remove this one to begin anew"
    )]
    ForeignState {
        /// The state folder.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// More blocks are to learn than the model has.
    #[error(
        "trainable_layers is {asked}, but the model has {layers} layers\ntry: at most {layers}"
    )]
    TooManyLayers {
        /// The setting.
        asked: u32,
        /// The model's.
        layers: usize,
    },
    /// A LoRA target that is the name of nothing.
    #[error(
        "lora_targets: {target:?} matches no linear map of the model\nat: {dir}\n\
         try: {modules}, or \"all-linear\""
    )]
    NoTarget {
        /// The target.
        target: String,
        /// The base's folder.
        dir: PathBuf,
        /// The names that there are.
        modules: String,
    },
    /// The adapter that is to go on is another one than the settings ask for.
    #[error(
        "the adapter cannot go on with other settings: {difference}\nat: {path}\n\
         try: the adapter's own settings, or a new adapter (`--base` and the policy the same folder)"
    )]
    OtherAdapter {
        /// The adapter's folder.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Adapters are asked for, but not on which base.
    #[error("{problem}\nat: {path}\ntry: {mend}")]
    NoBase {
        /// The policy's folder.
        path: PathBuf,
        /// What is missing, or does not fit.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// A file of the job's folder that is not as agreed.
    #[error("{path}: {problem}")]
    Job {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Stopped from outside; the state of the last finished step is saved where a state is kept.
    #[error("cancelled after step {step}")]
    Cancelled {
        /// Steps done.
        step: u64,
    },
}

impl TrainError {
    /// The word that the daemon acts on.
    #[must_use]
    pub fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Diverged { divergence, .. } => FailureKind::Diverged((*divergence).into()),
            Self::NonFinite { .. } | Self::NonFiniteScore { .. } => {
                FailureKind::Diverged(Divergence::NonFinite.into())
            }
            Self::Cancelled { .. } | Self::Worker(WorkerError::Cancelled) => FailureKind::Cancelled,
            Self::Checkpoint(error) if error.is_disk() => FailureKind::Disk,
            Self::Altered(_) => FailureKind::Disk,
            Self::Checkpoint(CheckpointError::Unsound { .. }) => FailureKind::Unsound,
            Self::Worker(WorkerError::OutOfMemory(_)) => FailureKind::OutOfMemory,
            Self::Model(ModelError::Torch { first_line, .. }) if is_out_of_memory(first_line) => {
                FailureKind::OutOfMemory
            }
            Self::Worker(WorkerError::Torch(_)) | Self::Model(ModelError::Torch { .. }) => {
                FailureKind::Crashed
            }
            Self::Model(ModelError::Read { source, .. }) if disk_fault(source) => FailureKind::Disk,
            _ => FailureKind::Input,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_a_matter_of_the_place() {
        let full = CheckpointError::Io {
            path: "x".into(),
            action: "written",
            source: std::io::Error::from_raw_os_error(28),
        };
        let full = TrainError::from(full);
        assert_eq!(full.failure_kind(), FailureKind::Disk);
        let told = crate::errors::with_causes(&full);
        assert!(told.ends_with("because: No space left on device (os error 28)"), "{told}");
        let example = Some("pair 7 of those trained on, from 1".to_owned());
        let error = TrainError::NonFinite { step: 3, what: "a loss", example };
        assert!(error.to_string().starts_with("step 3 gave a loss that is not finite (pair 7"));
        assert_eq!(error.failure_kind(), FailureKind::Diverged(Divergence::NonFinite.into()));
    }
}
