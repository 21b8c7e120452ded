//! `init`: a random model as a Hugging Face folder.
//!
//! In: a config.json, a tokenizer's folder, a seed. Out: a model folder, there whole or not at all.
//! May not enter: how numbers are drawn.

use std::path::PathBuf;

use clap::Args;

use crate::errors::WorkerError;
use crate::initial::{self, Recipe};

/// Options of `init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// The config.json that says what model it is
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Folder with tokenizer.json and what belongs to it
    #[arg(long, value_name = "DIR")]
    pub tokenizer: PathBuf,
    /// All weights follow from it
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs the command.
///
/// Errors: whatever is wrong with config, tokenizer or disk; nothing then stands at `--out`.
pub fn run(args: &InitArgs) -> Result<(), WorkerError> {
    let recipe =
        Recipe { config: args.config.clone(), tokenizer: args.tokenizer.clone(), seed: args.seed };
    let made = initial::publish(&recipe, &args.out)?;
    let (out, sum) = (args.out.display(), made.standing.sha256);
    eprintln!("init: {} parameters, seed {}; {out} holds {sum}", made.parameters, args.seed);
    Ok(())
}
