//! The command line: one variant a verb, in the order in which a person meets them.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use rlhfd_protocol::control::SOCKET_ENV;

use crate::mixture::DataFile;

/// Talk to the rlhfd daemon.
#[derive(Debug, Parser)]
#[command(name = "rlhfctl", version, propagate_version = true)]
pub struct Args {
    /// The daemon's socket [default: /run/rlhfd/rlhfd.sock or $XDG_RUNTIME_DIR/rlhfd.sock]
    #[arg(long, global = true, env = SOCKET_ENV, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// One verb each.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Queue prompts, or list the sets
    #[command(subcommand)]
    Prompts(Prompts),
    /// Bring offline preferences for iterations to train on, or list the sets
    #[command(subcommand)]
    Preferences(Preferences),
    /// What runs, how fast, how long still, and what it waits for
    Status {
        /// Show it again every second until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// The runs of the state folder
    Runs,
    /// The iteration history
    Iterations {
        /// All columns
        #[arg(long)]
        wide: bool,
    },
    /// Checkpoints, newest last
    Checkpoints {
        /// The line from the head (or from the checkpoint NAME) back to the initial policy
        #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "head")]
        lineage: Option<String>,
    },
    /// GPUs and what holds them
    Gpus {
        /// The newest so many rows of their timeline: what was seen, what was decided, and why
        #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "50")]
        history: Option<u32>,
    },
    /// What happened
    Events {
        /// Stay and show what happens
        #[arg(long, short)]
        follow: bool,
        /// Begin after the event with this number
        #[arg(long, value_name = "ID")]
        since: Option<i64>,
        /// How many of the newest to begin with
        #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "since")]
        last: u32,
    },
    /// Start an iteration with the prompts that are there
    Start,
    /// Let running units finish, and begin no others
    Pause {
        /// Why, for `status` and the events
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Go on after a pause
    Resume,
    /// Go on from what an earlier iteration trained; what came after it stays in the tables
    Rollback {
        /// The iteration; 0 is the initial policy
        #[arg(value_name = "ITERATION")]
        iteration: u32,
        /// Why, for the events
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Keep a checkpoint's files, however old they are
    Pin {
        /// Its name, as `checkpoints` lists it
        checkpoint: String,
    },
    /// Let a pinned checkpoint's files go once they are old
    Unpin {
        /// Its name
        checkpoint: String,
    },
    /// Look at database, checkpoints, disk, devices and configuration, and tell what to do about each finding
    Doctor,
    /// Copy the database, while it is in use, into the state folder
    Backup,
    /// Cancel the open iteration (its prompts return to the pool), or a training job
    Cancel {
        /// The iteration that is meant: refused where another one is open
        #[arg(long, value_name = "N", conflicts_with = "job")]
        iteration: Option<u64>,
        /// A training job, as KIND/NAME
        #[arg(long, value_name = "KIND/NAME")]
        job: Option<String>,
    },
    /// Train a model beside the iterations
    #[command(subcommand)]
    Train(Train),
    /// Training jobs
    Jobs,
    /// Read the database: one SELECT, through the daemon's read-only connection
    Sql {
        /// The statement
        statement: String,
        /// Print CSV
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        /// Stop after this many rows
        #[arg(long, value_name = "N")]
        rows_max: Option<u32>,
    },
    /// Show progress until something is done (by default: until the daemon has nothing to do)
    Wait {
        /// Until this iteration is done
        #[arg(long, value_name = "N", conflicts_with = "job")]
        iteration: Option<u64>,
        /// Until this training job is done
        #[arg(long, value_name = "KIND/NAME")]
        job: Option<String>,
        /// Give up after so many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
}

/// `rlhfctl prompts …`
#[derive(Debug, Subcommand)]
pub enum Prompts {
    /// Add a JSONL file to a set: {"messages": …}, {"prompt": …} or {"context_messages": …} a line
    Add {
        /// The file; - is standard input
        file: PathBuf,
        /// The set's name; it is made where it does not exist
        #[arg(long, value_name = "NAME")]
        set: String,
        /// The share that is kept for evaluation, from 0 to below 1
        #[arg(long, value_name = "SHARE")]
        reserve: Option<f64>,
        #[command(flatten)]
        order: SetOrder,
        #[command(flatten)]
        upload: Upload,
    },
    /// Give a set another priority or weight, from the next draw on
    Set {
        /// The set's name
        name: String,
        #[command(flatten)]
        order: SetOrder,
    },
    /// The prompt sets
    List,
}

/// When a prompt set's turn is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SetOrder {
    /// Sets of a higher priority are drawn first [default: as the set is; 0 for a new one]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub priority: Option<i64>,
    /// Among sets of one priority a draw is shared by weight [default: as the set is; 1 for a new one]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    pub weight: Option<f64>,
}

/// `rlhfctl preferences …`
#[derive(Debug, Subcommand)]
pub enum Preferences {
    /// Add a JSONL file to a set: {"chosen", "rejected"} or {"prompt", "chosen", "rejected"} a line
    Add {
        /// The file; - is standard input
        file: PathBuf,
        /// The set's name; it is made where it does not exist
        #[arg(long, value_name = "NAME")]
        set: String,
        #[command(flatten)]
        upload: Upload,
    },
    /// The preference sets
    List,
}

/// `rlhfctl train …`
#[derive(Debug, Subcommand)]
pub enum Train {
    /// A policy from conversations, by supervised fine-tuning: {"messages": …} a line
    Sft(Training),
    /// A Bradley-Terry reward model from preferences: {"chosen", "rejected"} or {"prompt", …} a line
    Reward(Training),
    /// A preference model, which compares two responses, from preferences as well
    Preference(Training),
}

/// What all training jobs take.
#[derive(Debug, Clone, clap::Args)]
pub struct Training {
    /// A JSONL file; - is standard input. It may be given several times; a WEIGHT of 2 takes each line
    /// twice, of 0.5 about every second line, as the run's seed draws them
    #[arg(long, value_name = "FILE[:WEIGHT]", required = true)]
    pub data: Vec<DataFile>,
    /// The job's name; a config names a reward model as job = "reward/NAME"
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub name: String,
    #[command(flatten)]
    pub upload: Upload,
}

/// What all uploads share.
#[derive(Debug, Clone, clap::Args)]
pub struct Upload {
    /// Leave bad lines out instead of refusing the whole file
    #[arg(long)]
    pub skip_bad: bool,
    /// A key of your own: a second upload with it answers what the first one did
    #[arg(long, value_name = "KEY")]
    pub client_key: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn lineage_may_name_a_checkpoint_or_mean_the_head() {
        let parse = |words: &[&str]| match Args::try_parse_from(words).unwrap().verb {
            Verb::Checkpoints { lineage } => lineage,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["rlhfctl", "checkpoints"]), None);
        assert_eq!(parse(&["rlhfctl", "checkpoints", "--lineage"]).as_deref(), Some("head"));
        assert_eq!(
            parse(&["rlhfctl", "checkpoints", "--lineage", "iteration-0001"]).as_deref(),
            Some("iteration-0001")
        );
    }
}
