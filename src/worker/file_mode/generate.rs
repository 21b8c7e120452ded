//! `generate`: prompts in, n responses each out.
//!
//! In: `--model`, `--prompts` (JSONL of messages or prompts). Out: a line a prompt, in the order of
//! the input. May not enter: scores, pairs.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use rlhfd_protocol::worker::{Arm, Finish, Purpose};
use serde::Serialize;

use super::output::Output;
use super::progress::Progress;
use super::{CommonArgs, ModelArgs, Opened, at_line, batches, check_length, load, setting};
use crate::data::{self, Lines};
use crate::errors::{InputError, TextError, WorkerError};
use crate::generate::{Generation, PromptTask, Written, generate_batch};
use crate::render::Renderer;
use crate::sample::Sampling;
use crate::watch::Watch;

/// Options of `generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// The policy
    #[command(flatten)]
    pub source: ModelArgs,
    /// JSONL: {"messages": […]}, {"context_messages": […]} or {"prompt": "…"} on each line
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Responses to each prompt
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub n: u32,
    /// The most tokens of a response
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub max_new_tokens: u32,
    /// 0 is greedy
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f64,
    /// Smallest set of tokens whose probability reaches this; 1 keeps all
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f64,
    /// The so many likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: u32,
    /// JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Device, seed, threads
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Serialize)]
struct PromptLine {
    prompt_index: usize,
    responses: Vec<ResponseLine>,
}

#[derive(Serialize)]
struct ResponseLine {
    text: String,
    token_ids: Vec<u32>,
    finish: Finish,
    logprob: f64,
}

/// Rows of a batch, over all prompts: enough that a step's matrix products fill a CPU.
const BATCH_ROWS: usize = 64;

/// Positions of a row up to which a batch has all its rows; longer rows are fewer, so that keys and
/// values stay within 65,536 positions (3 GB for SmolLM2-135M in f32).
const BATCH_COLUMNS: usize = 1024;

/// Runs the command.
///
/// Errors: whatever is wrong with options, folder, data or device, before anything is written.
pub fn run(args: &GenerateArgs) -> Result<(), WorkerError> {
    let arm = Arm {
        name: "file".to_owned(),
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        n: args.n,
        first_sample: 0,
    };
    Sampling::checked(&arm)?;
    if args.max_new_tokens == 0 {
        let rule = "it must be at least 1";
        return Err(setting("--max-new-tokens", 0, rule, "--max-new-tokens 64, say").into());
    }
    let folder = args.source.open()?.require_policy()?;
    let renderer = Renderer::open(&folder)?;
    let lines = Lines::read_all(&args.prompts, data::prompt)?;
    if !renderer.opens_the_answer()? {
        return Err(TextError::Unusable {
            problem: "the chat template has no generation prompt: it does not open the assistant's turn"
                .to_owned(),
            mend: "a template that writes the assistant's header where add_generation_prompt is true",
        }
        .into());
    }
    let mut output = Output::create(&args.out)?;
    let opened = load(&folder, renderer, args.common.open()?)?;
    let tasks = tasks(args, &lines, &opened)?;
    let generation = Generation {
        run_seed: args.common.seed,
        purpose: Purpose::Generate,
        iteration: 0,
        arms: vec![arm],
        max_new_tokens: args.max_new_tokens,
        stop_ids: opened.renderer.tokenizer.stop_ids.clone(),
    };
    let watch = Watch::default();
    let mut progress = Progress::new("generate", tasks.len());
    let mut index = 0;
    let positions = |task: &PromptTask| {
        let columns = task.ids.len() + args.max_new_tokens as usize;
        args.n as usize * columns.max(BATCH_COLUMNS)
    };
    for batch in batches(&tasks, positions, BATCH_ROWS * BATCH_COLUMNS) {
        let written = generate_batch(&opened.model, batch, &generation, &watch)?;
        for result in written {
            output.line(&prompt_line(args, &lines, index, result, &opened)?)?;
            index += 1;
        }
        progress.advance(batch.len(), watch.tokens());
    }
    Ok(output.publish()?)
}

/// The prompts' ids, with equal ones counted.
fn tasks(
    args: &GenerateArgs,
    lines: &[(usize, Vec<rlhfd_protocol::worker::Message>)],
    opened: &Opened,
) -> Result<Vec<PromptTask>, WorkerError> {
    let mut seen: HashMap<Vec<u32>, u32> = HashMap::new();
    let mut tasks = Vec::with_capacity(lines.len());
    for (line, messages) in lines {
        let ids = opened
            .renderer
            .prompt(messages)
            .map_err(|error| at_line(&args.prompts, *line, error))?;
        let tokens = ids.len() + args.max_new_tokens as usize;
        check_length(&args.prompts, *line, tokens, &opened.model)?;
        let count = seen.entry(ids.clone()).or_insert(0);
        tasks.push(PromptTask { ids, occurrence: *count });
        *count += 1;
    }
    Ok(tasks)
}

fn prompt_line(
    args: &GenerateArgs,
    lines: &[(usize, Vec<rlhfd_protocol::worker::Message>)],
    index: usize,
    written: Written,
    opened: &Opened,
) -> Result<PromptLine, WorkerError> {
    let Written::Responses(responses) = written else {
        return Err(InputError::Line {
            path: args.prompts.clone(),
            line: lines[index].0,
            problem: "the model's logits are not finite for this prompt".to_owned(),
            mend: "check the model: its weights may be damaged".to_owned(),
        }
        .into());
    };
    let tokenizer = &opened.renderer.tokenizer;
    let responses = responses
        .into_iter()
        .map(|response| {
            Ok(ResponseLine {
                text: tokenizer.decode(response.text_ids())?,
                finish: response.finish,
                logprob: response.logprob(),
                token_ids: response.ids,
            })
        })
        .collect::<Result<_, crate::errors::TextError>>()?;
    Ok(PromptLine { prompt_index: index, responses })
}
