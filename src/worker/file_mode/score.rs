//! `score`: whole conversations in, a score each out.
//!
//! In: `--model` (a reward model), `--data` (JSONL of messages). Out: a line a conversation, in the
//! order of the input. May not enter: the policy's template: a reward model has its own.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rlhfd_protocol::worker::ScorePosition;
use serde::Serialize;

use super::output::Output;
use super::progress::Progress;
use super::{CommonArgs, ModelArgs, at_line, batches, check_length, load};
use crate::data::{self, Lines};
use crate::errors::{InputError, WorkerError};
use crate::render::Renderer;
use crate::score::{score_batch, scored_position};
use crate::watch::Watch;

/// Options of `score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    /// The reward model
    #[command(flatten)]
    pub source: ModelArgs,
    /// JSONL: {"messages": […]} on each line
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Where the score is read
    #[arg(long, value_enum, default_value_t = Position::Transformers)]
    pub score_position: Position,
    /// JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Device, seed, threads
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The choice of [`ScorePosition`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Position {
    /// The last position whose id is not the pad id, where transformers reads it
    Transformers,
    /// The last position
    Last,
}

#[derive(Serialize)]
struct ScoreLine {
    score: f64,
}

/// Tokens that are computed together.
const BATCH_TOKENS: usize = 2048;

/// Runs the command.
///
/// Errors: whatever is wrong with folder, data or device, before anything is written.
pub fn run(args: &ScoreArgs) -> Result<(), WorkerError> {
    let folder = args.source.open()?.require_reward_model()?;
    let renderer = Renderer::open(&folder)?;
    let lines = Lines::read_all(&args.data, data::conversation)?;
    let mut output = Output::create(&args.out)?;
    let opened = load(&folder, renderer, args.common.open()?)?;
    let mut sequences = Vec::with_capacity(lines.len());
    for (line, messages) in &lines {
        let ids = opened
            .renderer
            .conversation(messages)
            .map_err(|error| at_line(&args.data, *line, error))?;
        check_length(&args.data, *line, ids.len(), &opened.model)?;
        sequences.push(ids);
    }
    let rule = match args.score_position {
        Position::Transformers => ScorePosition::Transformers,
        Position::Last => ScorePosition::Last,
    };
    warn_of_positions(&sequences, opened.model.config.pad_id, rule);
    let watch = Watch::default();
    let mut progress = Progress::new("score", sequences.len());
    let mut index = 0;
    for batch in batches(&sequences, Vec::len, BATCH_TOKENS) {
        for score in score_batch(&opened.model, batch, rule, &watch)? {
            if !score.is_finite() {
                return Err(InputError::Line {
                    path: args.data.clone(),
                    line: lines[index].0,
                    problem: format!("its score is {score}"),
                    mend: "check the reward model: its weights may be damaged".to_owned(),
                }
                .into());
            }
            output.line(&ScoreLine { score: f64::from(score) })?;
            index += 1;
        }
        progress.advance(batch.len(), watch.tokens());
    }
    Ok(output.publish()?)
}

/// Says so where the two rules read different positions.
fn warn_of_positions(sequences: &[Vec<u32>], pad_id: Option<u32>, rule: ScorePosition) {
    let differ = |ids: &&Vec<u32>| {
        scored_position(ids, pad_id, ScorePosition::Transformers) + 1 != ids.len()
    };
    let count = sequences.iter().filter(differ).count();
    if count > 0 {
        tracing::warn!(
            "{count} of {} texts end in the pad id: transformers reads their score before it, \
             `--score-position last` at it; {rule:?} is used",
            sequences.len()
        );
    }
}
