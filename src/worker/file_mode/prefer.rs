//! `prefer`: prompts with two responses in, how likely the first one is better out.
//!
//! In: `--model` (a preference model), `--data` (JSONL of prompts with two responses). Out: a line a
//! pair, in the order of the input. May not enter: scores of single responses.

use std::path::PathBuf;

use clap::Args;
use rlhfd_protocol::worker::Message;
use serde::Serialize;
use serde_json::{Map, Value};

use super::output::Output;
use super::progress::Progress;
use super::{CommonArgs, ModelArgs, at_line, batches, check_length, load};
use crate::data::{self, Lines, Refusal};
use crate::errors::{InputError, WorkerError};
use crate::prefer::{Preference, Questions, prefer_batch};
use crate::render::Renderer;
use crate::watch::Watch;

/// Options of `prefer`.
#[derive(Debug, Clone, Args)]
pub struct PreferArgs {
    /// The preference model
    #[command(flatten)]
    pub source: ModelArgs,
    /// JSONL: {"messages": […] or "prompt": "…", "responses": ["…", "…"]} on each line
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Device, seed, threads
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A conversation and two ways to answer it.
struct Compared {
    context: Vec<Message>,
    responses: [String; 2],
}

#[derive(Serialize)]
struct PreferenceLine {
    preference: f64,
    forward: f64,
    backward: f64,
}

/// Tokens that are computed together.
const BATCH_TOKENS: usize = 2048;

/// Runs the command.
///
/// Errors: whatever is wrong with folder, data or device, before anything is written.
pub fn run(args: &PreferArgs) -> Result<(), WorkerError> {
    let folder = args.source.open()?;
    let labels = folder.preference_labels()?;
    let renderer = Renderer::open(&folder)?;
    renderer.require_labels(labels)?;
    let lines = Lines::read_all(&args.data, compared)?;
    let mut output = Output::create(&args.out)?;
    let opened = load(&folder, renderer, args.common.open()?)?;
    let mut pairs = Vec::with_capacity(lines.len());
    for (line, compared) in &lines {
        let responses = compared.responses.each_ref().map(String::as_str);
        let questions = Questions::of(&opened.renderer, &compared.context, responses)
            .map_err(|error| at_line(&args.data, *line, error))?;
        for ids in [&questions.first_as_a, &questions.first_as_b] {
            check_length(&args.data, *line, ids.len(), &opened.model)?;
        }
        pairs.push(questions);
    }
    let watch = Watch::default();
    let mut progress = Progress::new("prefer", pairs.len());
    let mut index = 0;
    for batch in batches(&pairs, Questions::tokens, BATCH_TOKENS) {
        for preference in prefer_batch(&opened.model, labels, batch, &watch)? {
            if !preference.mean().is_finite() {
                return Err(InputError::Line {
                    path: args.data.clone(),
                    line: lines[index].0,
                    problem: "the model's logits are not finite for this pair".to_owned(),
                    mend: "check the preference model: its weights may be damaged".to_owned(),
                }
                .into());
            }
            output.line(&line_of(preference))?;
            index += 1;
        }
        progress.advance(batch.len(), watch.tokens());
    }
    Ok(output.publish()?)
}

fn line_of(preference: Preference) -> PreferenceLine {
    PreferenceLine {
        preference: preference.mean(),
        forward: preference.forward,
        backward: preference.backward,
    }
}

/// A line: a prompt as `generate` takes it, and `"responses": [first, second]`.
fn compared(object: &Map<String, Value>) -> Result<Compared, Refusal> {
    let context = data::prompt(object)?;
    let texts = object.get("responses").and_then(Value::as_array);
    let texts: Option<Vec<&str>> = texts.and_then(|list| list.iter().map(Value::as_str).collect());
    match texts.as_deref() {
        Some([first, second]) => {
            Ok(Compared { context, responses: [(*first).to_owned(), (*second).to_owned()] })
        }
        _ => Err(Refusal {
            problem: "its \"responses\" are not two texts".to_owned(),
            mend: "write {\"prompt\": \"…\", \"responses\": [\"…\", \"…\"]}".to_owned(),
        }),
    }
}
