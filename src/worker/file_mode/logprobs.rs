//! `logprobs`: pairs in, the summed log-probs of both responses out.
//!
//! In: `--model` (a policy), `--data` (JSONL of pairs). Out: a line a pair, in the order of the input.
//! May not enter: gradients, losses.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::Output;
use super::progress::Progress;
use super::{CommonArgs, ModelArgs, at_line, batches, check_length, load};
use crate::data::{self, Lines};
use crate::errors::{InputError, WorkerError};
use crate::logprob::{Sequence, response_logprobs};
use crate::render::{RenderRule, Renderer};
use crate::watch::Watch;

/// Options of `logprobs`.
#[derive(Debug, Clone, Args)]
pub struct LogprobsArgs {
    /// The policy
    #[command(flatten)]
    pub source: ModelArgs,
    /// JSONL: {"chosen": [messages], "rejected": [messages]} on each line, or with a "prompt"
    #[arg(long, value_name = "PAIRS")]
    pub data: PathBuf,
    /// How an answer becomes token ids
    #[arg(long, value_enum, default_value_t = Render::Conversation)]
    pub render: Render,
    /// JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Device, seed, threads
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The choice of [`RenderRule`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Render {
    /// The rest of the whole conversation's rendering, as TRL does
    Conversation,
    /// The prompt's rendering, the answer's text and the stop id
    Generation,
}

impl From<Render> for RenderRule {
    fn from(render: Render) -> Self {
        match render {
            Render::Conversation => Self::Conversation,
            Render::Generation => Self::Generation,
        }
    }
}

#[derive(Serialize)]
struct LogprobsLine {
    chosen: f64,
    rejected: f64,
}

/// Tokens that are computed together.
const BATCH_TOKENS: usize = 2048;

/// Runs the command.
///
/// Errors: whatever is wrong with folder, data or device, before anything is written.
pub fn run(args: &LogprobsArgs) -> Result<(), WorkerError> {
    let folder = args.source.open()?.require_policy()?;
    let renderer = Renderer::open(&folder)?;
    let lines = Lines::read_all(&args.data, data::pair)?;
    let mut output = Output::create(&args.out)?;
    let opened = load(&folder, renderer, args.common.open()?)?;
    let mut pairs = Vec::with_capacity(lines.len());
    for (line, text) in &lines {
        let pair = opened
            .renderer
            .pair(text, args.render.into())
            .map_err(|error| at_line(&args.data, *line, error))?;
        let sequence = |response: &[u32]| Sequence {
            ids: [pair.prompt.as_slice(), response].concat(),
            prompt_tokens: pair.prompt.len(),
        };
        let both = [sequence(&pair.chosen), sequence(&pair.rejected)];
        for side in &both {
            check_length(&args.data, *line, side.ids.len(), &opened.model)?;
        }
        pairs.push(both);
    }
    let watch = Watch::default();
    let mut progress = Progress::new("logprobs", pairs.len());
    let mut index = 0;
    let tokens = |pair: &[Sequence; 2]| pair[0].ids.len() + pair[1].ids.len();
    for batch in batches(&pairs, tokens, BATCH_TOKENS) {
        let sequences = batch.as_flattened();
        let logprobs = response_logprobs(&opened.model, sequences, &watch)?;
        for pair in logprobs.chunks(2) {
            let sum = |side: &[f32]| side.iter().map(|logprob| f64::from(*logprob)).sum::<f64>();
            let line = LogprobsLine { chosen: sum(&pair[0]), rejected: sum(&pair[1]) };
            if !(line.chosen.is_finite() && line.rejected.is_finite()) {
                return Err(InputError::Line {
                    path: args.data.clone(),
                    line: lines[index].0,
                    problem: "its log-probs are not finite".to_owned(),
                    mend: "check the model: its weights may be damaged".to_owned(),
                }
                .into());
            }
            output.line(&line)?;
            index += 1;
        }
        progress.advance(batch.len(), watch.tokens());
    }
    Ok(output.publish()?)
}
