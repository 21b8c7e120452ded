//! `rlhfd-worker-torch`: parses the command line, sets up logs, runs one verb, returns an exit code.
//!
//! In: arguments. Out: exit code 0, or 1 with one clear error on stderr. May not enter: any work.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rlhfd_worker::file_mode::{self, GenerateArgs, LogprobsArgs, ScoreArgs, TrainVerb};
use rlhfd_worker::guard::{guarded, quiet_panics};
use rlhfd_worker::serve;

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
    /// Work for the daemon, which starts this itself
    #[command(hide = true)]
    Serve,
}

fn main() -> ExitCode {
    logs();
    quiet_panics();
    let cli = Cli::parse();
    let result = guarded(|| -> Result<(), Failure> {
        match &cli.verb {
            Verb::Generate(args) => Ok(file_mode::generate(args)?),
            Verb::Score(args) => Ok(file_mode::score(args)?),
            Verb::Logprobs(args) => Ok(file_mode::logprobs(args)?),
            Verb::Train(verb) => Ok(file_mode::train(verb)?),
            Verb::Serve => match serve::run()? {},
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(error)) => {
            tell(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Any room's error on its way to the terminal.
struct Failure(Box<dyn Error>);

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

/// The error, and beneath it what caused it.
fn tell(error: &dyn Error) {
    eprintln!("rlhfd-worker: {error}");
    let mut cause = error.source();
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
