//! `rlhfctl`: the person's side of the daemon's control socket.
//!
//! In: a command line. Out: one or a few requests on the socket, their answers as tables or JSON, and
//! an exit code: 0 done, 1 refused or failed, 2 a command line that makes no sense, 3 nobody answers.
//! May not enter: the store, the state folder, models. What the daemon needs to read, it is sent.

mod args;
mod connect;
mod errors;
mod format;
mod mixture;
mod render;
mod upload;
mod verbs;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::Args;
use crate::errors::ClientError;

fn main() -> ExitCode {
    if let Some(code) = rlhfd_pages::write_if_asked(std::env::args_os().skip(1), Args::command) {
        return code;
    }
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return fail(&ClientError::Local { what: "start the runtime", source }),
    };
    let result = runtime.block_on(verbs::run(args));
    // A read of standard input may still stand in its own thread: nobody waits for it.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &ClientError) -> ExitCode {
    if error.is_closed_output() {
        // `rlhfctl events | head`: the reader has what it wanted.
        return ExitCode::SUCCESS;
    }
    render::complain(error);
    ExitCode::from(error.exit_code())
}
