//! `rlhfd`: parse, wire, run, return an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rlhfd_control::places::Asked;
use rlhfd_control::platform::{self, LogFormat};
use rlhfd_control::{check, daemon, exit};

/// Online iterative RLHF, unattended.
#[derive(Debug, Parser)]
#[command(name = "rlhfd", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve, and run what is queued, until SIGTERM
    Run {
        #[command(flatten)]
        places: PlaceOptions,
        /// How log lines look
        #[arg(long, env = "RLHFD_LOG_FORMAT", value_enum, default_value = "text")]
        log_format: LogFormat,
    },
    /// Tell everything that is wrong with configuration, models, database, devices and disk
    Check {
        #[command(flatten)]
        places: PlaceOptions,
        /// Tell too what the shipped system service needs: which drop-ins, and what it cannot see
        #[arg(long)]
        as_service: bool,
    },
}

#[derive(Debug, Args)]
struct PlaceOptions {
    /// The configuration [default: /etc/rlhfd/rlhfd.toml or ~/.config/rlhfd/rlhfd.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The state folder [default: $STATE_DIRECTORY or ~/.local/state/rlhfd]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The socket [default: /run/rlhfd/rlhfd.sock or $XDG_RUNTIME_DIR/rlhfd.sock]
    #[arg(long, value_name = "PATH", env = "RLHFD_SOCKET")]
    socket: Option<PathBuf>,
}

impl From<PlaceOptions> for Asked {
    fn from(options: PlaceOptions) -> Self {
        Self { config: options.config, state: options.state, socket: options.socket }
    }
}

fn main() -> ExitCode {
    if let Some(code) = rlhfd_pages::write_if_asked(std::env::args_os().skip(1), Cli::command) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed stderr is nobody's.
            let _ = error.print();
            let usage = error.use_stderr();
            return if usage { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.verb {
        Verb::Run { places, log_format } => {
            platform::start_log(log_format);
            daemon::run(&places.into())
        }
        Verb::Check { places, as_service } => {
            let runner = if as_service { check::Runner::Service } else { check::Runner::Oneself };
            check::run(&places.into(), runner)
        }
    }
}
