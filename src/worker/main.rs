//! `rlhfd-worker-torch`: parses the command line, sets up logs, runs one verb, returns an exit code.
//!
//! In: arguments. Out: exit code 0, or 1 with one clear error on stderr
//! (`gpu-check`: 2 where there is no GPU). May not enter: any work.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use rlhfd_worker::bench::{self, BenchArgs};
use rlhfd_worker::errors::with_causes;
use rlhfd_worker::file_mode::{
    self, GenerateArgs, InitArgs, LogprobsArgs, MergeArgs, PreferArgs, ScoreArgs, TrainVerb,
};
use rlhfd_worker::gpu_check::{self, GpuCheckArgs, Verdict};
use rlhfd_worker::guard::{guarded, quiet_panics, size_limits_are_errors};
use rlhfd_worker::{process, serve};

/// Generates, scores and trains with language models, from files to files.
#[derive(Debug, Parser)]
#[command(name = "rlhfd-worker", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a random model folder from a config.json and a tokenizer
    Init(InitArgs),
    /// Write responses to prompts
    Generate(GenerateArgs),
    /// Score conversations with a reward model
    Score(ScoreArgs),
    /// Compare two responses with a preference model
    Prefer(PreferArgs),
    /// Log-probs of the responses of pairs
    Logprobs(LogprobsArgs),
    /// Train a policy, a reward model or a preference model
    #[command(subcommand)]
    Train(TrainVerb),
    /// Merge a PEFT adapter into its base
    Merge(MergeArgs),
    /// Hold a GPU's results against the CPU's; exits 1 if they differ, 2 without a GPU
    GpuCheck(GpuCheckArgs),
    /// Measure generation, scoring and training, against the machine's limit and transformers + TRL
    Bench(BenchArgs),
    /// Work for the daemon, which starts this itself
    #[command(hide = true)]
    Serve,
}

/// What the front program answers itself: described here, where clap is, for the pages alone.
#[derive(Debug, Subcommand)]
enum FrontVerb {
    /// Tell which libtorch is taken, and whether the GPU can be used
    Doctor {
        /// The configuration whose `[worker] libtorch` counts
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Make a Hugging Face folder of a Llama GGUF file
    ConvertGguf {
        /// The GGUF file
        file: PathBuf,
        /// The folder that is made
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    if let Some(code) = rlhfd_pages::write_if_asked(std::env::args_os().skip(1), whole_command) {
        return code;
    }
    logs();
    process::with_patient_threads();
    process::keep_freed_memory();
    quiet_panics();
    size_limits_are_errors();
    let cli = Cli::parse();
    let result = guarded(|| -> Result<ExitCode, Failure> {
        match &cli.verb {
            Verb::Init(args) => file_mode::init(args)?,
            Verb::Generate(args) => file_mode::generate(args)?,
            Verb::Score(args) => file_mode::score(args)?,
            Verb::Prefer(args) => file_mode::prefer(args)?,
            Verb::Logprobs(args) => file_mode::logprobs(args)?,
            Verb::Train(verb) => file_mode::train(verb)?,
            Verb::Merge(args) => file_mode::merge(args)?,
            Verb::GpuCheck(args) => return Ok(exit_code(gpu_check::run(args, &mut say)?)),
            Verb::Bench(args) => bench::run(args, &mut say)?,
            Verb::Serve => match serve::run()? {},
        }
        Ok(ExitCode::SUCCESS)
    });
    match result {
        Ok(code) => code,
        Err(Failure(error)) => {
            tell(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// The command line as a user meets it.
fn whole_command() -> clap::Command {
    FrontVerb::augment_subcommands(Cli::command())
}

fn exit_code(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Good => ExitCode::SUCCESS,
        Verdict::Bad => ExitCode::FAILURE,
        Verdict::NoGpu => ExitCode::from(2),
    }
}

/// One line of a report on stdout; a reader that went away is no reason to stop.
fn say(line: &str) {
    let _told = writeln!(std::io::stdout(), "{line}");
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
    eprintln!("rlhfd-worker: {}", with_causes(error));
}

/// Logs for people, on stderr; `RUST_LOG` chooses.
fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
