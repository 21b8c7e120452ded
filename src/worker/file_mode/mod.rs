//! The file mode: one command, files in, files out, the same code as the daemon's units.
//!
//! In: the command line. Out: a JSONL file or a model folder, under its name only once it is whole.
//! Progress goes to stderr. May not enter: the protocol's frames.

mod generate;
mod init;
mod logprobs;
mod merge;
mod output;
mod prefer;
mod progress;
mod score;
mod train;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

pub use generate::GenerateArgs;
pub use init::InitArgs;
pub use logprobs::LogprobsArgs;
pub use merge::MergeArgs;
pub use prefer::PreferArgs;
pub use score::ScoreArgs;
pub use train::TrainVerb;

use crate::device::{self, Compute};
use crate::errors::{InputError, WorkerError};
use crate::model::{LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use crate::render::Renderer;

pub use generate::run as generate;
pub use init::run as init;
pub use logprobs::run as logprobs;
pub use merge::run as merge;
pub use prefer::run as prefer;
pub use score::run as score;
pub use train::run as train;

/// What every command of the file mode takes.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Where to compute: auto, cpu, or cuda:N; with commas, one model spread over several GPUs
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// What to compute in: f32 on CPU and bf16 on GPU by default
    #[arg(long, value_enum, value_name = "TYPE")]
    pub precision: Option<PrecisionChoice>,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Threads on CPU; all cores by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl CommonArgs {
    /// Opens the device and sets the threads.
    ///
    /// Errors: the device's; `Setting` for 0 threads.
    pub fn open(&self) -> Result<Compute, WorkerError> {
        if self.threads == Some(0) {
            return Err(setting("--threads", 0, "it must be at least 1", "leave it away").into());
        }
        let compute = device::open(&self.device, &[], self.threads)?;
        Ok(match self.precision {
            Some(PrecisionChoice::F32) => device::with_precision(compute, Precision::Float32)?,
            Some(PrecisionChoice::Bf16) => device::with_precision(compute, Precision::Bfloat16)?,
            None => compute,
        })
    }
}

/// A model folder, or an adapter and the base that it was made on.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model folder; or, with --base, the folder of a PEFT adapter
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The model that the adapter was made on; the two are merged as they are loaded
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the folder, or the base with its adapter.
    ///
    /// Errors: what is wrong with either, or with the two together.
    pub fn open(&self) -> Result<ModelFolder, WorkerError> {
        Ok(match &self.base {
            Some(base) => ModelFolder::open(base)?.with_adapter(&self.model)?,
            None => ModelFolder::open(&self.model)?,
        })
    }
}

/// The choice of [`Precision`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionChoice {
    /// 32 bits
    F32,
    /// 16 bits with the range of f32; on CPU only where it has AMX or AVX512-BF16
    Bf16,
}

/// A model loaded for inference, with its tokenizer and template.
struct Opened {
    model: Transformer,
    renderer: Renderer,
}

/// Loads the tensors of a folder that was opened and checked.
fn load(folder: &ModelFolder, renderer: Renderer, compute: Compute) -> Result<Opened, WorkerError> {
    let options = LoadOptions {
        devices: compute.devices,
        precision: compute.precision,
        trainable: Trainable::Nothing,
    };
    let model = Transformer::load(folder, &options)?;
    for setting in &renderer.tokenizer.suggested_sampling {
        tracing::info!("generation_config.json suggests {setting}; it is not applied");
    }
    Ok(Opened { model, renderer })
}

/// An option out of its range.
fn setting(name: &str, value: impl ToString, rule: &str, mend: &str) -> InputError {
    InputError::Setting {
        name: name.to_owned(),
        value: value.to_string(),
        rule: rule.to_owned(),
        mend: mend.to_owned(),
    }
}

/// A text error of one line of a data file.
fn at_line(path: &Path, line: usize, error: crate::errors::TextError) -> WorkerError {
    let refusal = crate::data::Refusal::from(error);
    InputError::Line {
        path: PathBuf::from(path),
        line,
        problem: refusal.problem,
        mend: refusal.mend,
    }
    .into()
}

/// Refuses a sequence that the model has no positions for.
fn check_length(
    path: &Path,
    line: usize,
    tokens: usize,
    model: &Transformer,
) -> Result<(), WorkerError> {
    let most = model.config.positions_max;
    if tokens <= most {
        return Ok(());
    }
    Err(InputError::Line {
        path: PathBuf::from(path),
        line,
        problem: format!("it needs {tokens} positions, the model has {most}"),
        mend: "shorten the text, or lower --max-new-tokens".to_owned(),
    }
    .into())
}

/// Cuts `items` into consecutive batches of about `tokens_max` tokens each, at least one item.
fn batches<T>(items: &[T], tokens_of: impl Fn(&T) -> usize, tokens_max: usize) -> Vec<&[T]> {
    let mut batches = Vec::new();
    let (mut first, mut tokens) = (0, 0);
    for (index, item) in items.iter().enumerate() {
        let own = tokens_of(item);
        if index > first && tokens + own > tokens_max {
            batches.push(&items[first..index]);
            (first, tokens) = (index, 0);
        }
        tokens += own;
    }
    if first < items.len() {
        batches.push(&items[first..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_item_once_and_keep_to_their_tokens() {
        let items = [3, 4, 5, 100, 1, 1];
        let cut: Vec<Vec<usize>> =
            batches(&items, |n| *n, 8).into_iter().map(<[usize]>::to_vec).collect();
        assert_eq!(cut, [vec![3, 4], vec![5], vec![100], vec![1, 1]]);
        assert!(batches(&[], |n: &usize| *n, 8).is_empty());
    }
}
