//! `bench`: how fast this machine does what a run is made of, and how near that is to its limit.
//!
//! In: a model folder (or only a shape), perhaps a Python with transformers and TRL. Out: a table, and
//! a JSON file. Everything is measured in one run, so that ratios hold on a noisy machine. The code
//! paths are those of the units. May not enter: the protocol, the daemon.
//!
//! ```text
//! subject (the model) + work (ids) → gemm (the limit) → stages → parts → peer → report
//! ```

mod clock;
mod flops;
mod gemm;
mod parts;
mod peer;
mod report;
mod stages;
mod subject;
mod work;

use std::path::PathBuf;

use clap::Args;

use crate::errors::WorkerError;
use crate::file_mode::CommonArgs;
use report::Report;
use subject::Subject;
use work::{Sizes, Work};

/// What the benchmark takes.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Model folder of a policy
    #[arg(long, value_name = "DIR", default_value = "models/SmolLM2-135M-Instruct")]
    pub model: PathBuf,
    /// Instead: a config.json, whose shape gets random weights on the device
    #[arg(long, value_name = "FILE", conflicts_with = "peer")]
    pub config: Option<PathBuf>,
    /// A Python with transformers and TRL, which does the same work in turns with ours
    #[arg(long, value_name = "PYTHON")]
    pub peer: Option<PathBuf>,
    /// How often the peer and ours take turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub turns: u32,
    /// The peer's program
    #[arg(long, value_name = "FILE", default_value = "scripts/bench-peer")]
    pub peer_script: PathBuf,
    /// Also train on 16 pairs of 1,000-token prompts and 200-token answers
    #[arg(long)]
    pub long: bool,
    /// Leave training out: for a model that fits the device only for inference
    #[arg(long)]
    pub inference_only: bool,
    /// JSON file to write
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    pub out: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

/// Measures, telling each line as it is known.
///
/// # Errors
/// A model or device that cannot be used, a peer that cannot be run; libtorch's own errors.
pub fn run(args: &BenchArgs, tell: &mut dyn FnMut(&str)) -> Result<(), WorkerError> {
    let compute = args.common.open()?;
    let subject = Subject::open(&args.model, args.config.as_deref(), compute)?;
    let work = Work::new(subject.config.vocabulary, &Sizes::standard());
    let mut report = Report::new(&subject, tell);
    report.gemm(gemm::rate(&subject));
    stages::measure(&subject, &work, args.inference_only, &mut report)?;
    parts::measure(&subject, &mut report)?;
    let long = args.long.then(|| Work::new(subject.config.vocabulary, &Sizes::long()));
    if let Some(python) = &args.peer {
        let works = peer::Works { usual: &work, long: long.as_ref() };
        peer::measure(&subject, &works, (python, args), &mut report)?;
    } else if let Some(long) = &long {
        stages::train_long(&subject, long, &mut report)?;
    }
    report.write(&args.out)
}
