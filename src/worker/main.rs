//! `rlhfd-worker-torch`: parses the command line, sets up logs, runs one verb, returns an exit code.
//!
//! In: arguments. Out: exit code 0, or 1 with one clear error on stderr. May not enter: any work.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rlhfd_worker::errors::WorkerError;
use rlhfd_worker::file_mode::{self, GenerateArgs, LogprobsArgs, ScoreArgs, TrainVerb};
use rlhfd_worker::guard::{guarded, quiet_panics};

/// Generates, scores and trains with language models, from files to files.
#[derive(Debug, Parser)]
#[command(name = "rlhfd-worker", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write responses to prompts
    Generate(GenerateArgs),
    /// Score conversations with a reward model
    Score(ScoreArgs),
    /// Log-probs of the responses of pairs
    Logprobs(LogprobsArgs),
    /// Train a policy or a reward model on preferences
    #[command(subcommand)]
    Train(TrainVerb),
}

fn main() -> ExitCode {
    logs();
    quiet_panics();
    let cli = Cli::parse();
    let result = guarded(|| match &cli.verb {
        Verb::Generate(args) => file_mode::generate(args),
        Verb::Score(args) => file_mode::score(args),
        Verb::Logprobs(args) => file_mode::logprobs(args),
        Verb::Train(verb) => file_mode::train(verb),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

/// The error, and beneath it what caused it.
fn tell(error: &WorkerError) {
    eprintln!("rlhfd-worker: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        eprintln!("because: {source}");
        cause = source.source();
    }
}

/// Logs for people, on stderr; `RUST_LOG` chooses.
fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}
