//! `train dpo`, `train sft`, `train reward` and `train preference`: pairs or conversations in, a checkpoint folder out.
//!
//! In: a model folder, data, settings. Out: a Hugging Face folder with manifest.json and
//! steps.jsonl. The same code as the daemon's train units. May not enter: training itself.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rlhfd_config::{TrainSettings, Training};

use super::logprobs::Render;
use super::progress::Progress;
use super::{CommonArgs, setting};
use crate::errors::{InputError, WorkerError};
use crate::model::adapter_folder;
use crate::train::TrainError;
use crate::train::batches::Order;
use crate::train::job::{self, AdapterBase, Outcome, PairSource, PublishedAs, TrainJob};
use crate::train::mixture::{self, DataFile};
use crate::train::trainer::Observer;
use crate::watch::Watch;

/// What is trained.
#[derive(Debug, Clone, Subcommand)]
pub enum TrainVerb {
    /// Train a policy on preferences (DPO)
    Dpo(TrainDpoArgs),
    /// Train a policy on the assistant's turns of conversations
    Sft(TrainSftArgs),
    /// Train a Bradley-Terry reward model on preferences
    Reward(TrainRewardArgs),
    /// Train a preference model, which compares two responses
    Preference(TrainPreferenceArgs),
}

/// Options of `train dpo`.
#[derive(Debug, Clone, Args)]
pub struct TrainDpoArgs {
    /// Model folder of the policy to start from
    #[arg(long, value_name = "DIR")]
    pub policy: PathBuf,
    /// Model folder of the reference; with lora_rank it may be left out: the base without adapters
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// How an answer becomes token ids
    #[arg(long, value_enum, default_value_t = Render::Conversation)]
    pub render: Render,
    /// Pairs, settings, output
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Options of `train sft`.
#[derive(Debug, Clone, Args)]
pub struct TrainSftArgs {
    /// Model folder of the policy to start from
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Conversations, settings, output
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Options of `train reward`.
#[derive(Debug, Clone, Args)]
pub struct TrainRewardArgs {
    /// Model folder to start from: a policy (a score head is added) or a reward model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Pairs, settings, output
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Options of `train preference`.
#[derive(Debug, Clone, Args)]
pub struct TrainPreferenceArgs {
    /// Model folder to start from: a policy or a preference model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Pairs, settings, output
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// What all trainings take.
#[derive(Debug, Clone, Args)]
pub struct SharedArgs {
    /// JSONL: {"messages": […]} on each line for sft; {"chosen": [messages], "rejected": [messages]}
    /// for the others, or with a "prompt". It may be given several times; a WEIGHT of 2 takes each line
    /// twice, of 0.5 about every second line, as the seed draws them
    #[arg(long, value_name = "FILE[:WEIGHT]", required = true)]
    pub data: Vec<String>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// With lora_rank: the model that adapters are made on; new ones where training starts from it
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// With lora_rank: write the adapter alone, not the model merged with it
    #[arg(long)]
    pub adapter_only: bool,
    /// Settings, as in the daemon's [train], [sft], [reward] and [preference] tables
    #[arg(long, value_name = "TOML")]
    pub config: Option<PathBuf>,
    /// Override one setting
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Take the pairs (of sft and preference: the blocks) in their order
    #[arg(long)]
    pub no_shuffle: bool,
    /// Device, seed, threads
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Runs the command.
///
/// Errors: whatever is wrong with settings, folders, data or device; nothing then stands at `--out`.
pub fn run(verb: &TrainVerb) -> Result<(), WorkerError> {
    match verb {
        TrainVerb::Dpo(args) => {
            let pairs = PairSource::Text {
                files: files(&args.shared)?,
                rule: args.render.into(),
                reference: Some(reference(args)?),
            };
            train(Training::Dpo, &args.policy, pairs, &args.shared)
        }
        TrainVerb::Sft(args) => {
            let data = PairSource::Conversations { files: files(&args.shared)? };
            train(Training::Sft, &args.model, data, &args.shared)
        }
        TrainVerb::Reward(args) => {
            train(Training::Reward, &args.model, texts(&args.shared)?, &args.shared)
        }
        TrainVerb::Preference(args) => {
            train(Training::Preference, &args.model, texts(&args.shared)?, &args.shared)
        }
    }
}

/// Pairs without a reference.
fn texts(args: &SharedArgs) -> Result<PairSource, TrainError> {
    let files = files(args)?;
    Ok(PairSource::Text { files, rule: Render::Conversation.into(), reference: None })
}

/// The files with their weights: what stands behind the last colon, where it is a number. A file whose
/// own name ends so is given with `:1` behind it.
fn files(args: &SharedArgs) -> Result<Vec<DataFile>, TrainError> {
    args.data.iter().map(|given| file(given)).collect()
}

fn file(given: &str) -> Result<DataFile, TrainError> {
    let weighted =
        given.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
    match weighted {
        None => Ok(DataFile::once(given.into())),
        Some((path, weight)) if mixture::is_weight(weight) => {
            Ok(DataFile { path: path.into(), weight })
        }
        Some((_, weight)) => {
            let rule = "a file's weight lies above 0";
            let mend = format!("a weight of at most {}", mixture::WEIGHT_MAX);
            Err(setting("--data", weight, rule, &mend).into())
        }
    }
}

fn train(
    training: Training,
    base: &Path,
    pairs: PairSource,
    args: &SharedArgs,
) -> Result<(), WorkerError> {
    let seed = args.common.seed;
    let job = TrainJob {
        training,
        base: base.to_owned(),
        base_sha256: String::new(),
        adapter_base: args.base.clone().map(|dir| AdapterBase { dir, sha256: String::new() }),
        published: published(training, args)?,
        pairs,
        stored: None,
        micro_batch: None,
        settings: settings(training, args)?,
        order: if args.no_shuffle { Order::AsGiven } else { Order::Shuffled { seed } },
        seed,
        out: args.out.clone(),
        unit: String::new(),
        parent_sha256: String::new(),
        state: None,
    };
    let compute = args.common.open()?;
    let watch = Watch::default();
    let shown: RefCell<Option<Shown>> = RefCell::new(None);
    let advance = |label: &'static str, total: usize| {
        let mut shown = shown.borrow_mut();
        let tokens = watch.tokens();
        match &mut *shown {
            Some(shown) if shown.label == label => {
                shown.progress.advance(1, tokens - shown.tokens_before);
            }
            // What was computed before the first report is not in the time since it.
            other => {
                let mut progress = Progress::new(label, total);
                progress.advance(1, 0);
                *other = Some(Shown { label, progress, tokens_before: tokens });
            }
        }
    };
    let observer = Observer {
        watch: &watch,
        filled: &|_, pairs| advance("reference", pairs),
        stepped: &|_, steps| advance("train", usize::try_from(steps).unwrap_or(usize::MAX)),
    };
    let outcome = job::run(&job, compute, &observer)?;
    drop(shown);
    tell(&outcome, &args.out);
    Ok(())
}

fn published(training: Training, args: &SharedArgs) -> Result<PublishedAs, TrainError> {
    if !args.adapter_only {
        return Ok(PublishedAs::Model);
    }
    if settings(training, args)?.lora_rank == 0 {
        let rule = "without lora_rank there is no adapter";
        return Err(setting("--adapter-only", "given", rule, "--set lora_rank=16, say").into());
    }
    Ok(PublishedAs::Adapter)
}

/// The reference's folder: where none is named, the base of the adapters, which switched off leave it.
fn reference(args: &TrainDpoArgs) -> Result<PathBuf, TrainError> {
    if let Some(reference) = &args.reference {
        return Ok(reference.clone());
    }
    if settings(Training::Dpo, &args.shared)?.lora_rank == 0 {
        let rule = "only with lora_rank is the reference the base without its adapters";
        let mend = "--reference with the model that the policy was at first";
        return Err(setting("--reference", "left out", rule, mend).into());
    }
    match &args.shared.base {
        Some(base) => Ok(base.clone()),
        None if adapter_folder::place_in(&args.policy).is_none() => Ok(args.policy.clone()),
        None => {
            let rule = "the policy holds an adapter, so that it is not its own base";
            let mend = "--base with the model that the adapter was made on";
            Err(setting("--base", "left out", rule, mend).into())
        }
    }
}

fn settings(training: Training, args: &SharedArgs) -> Result<TrainSettings, TrainError> {
    let text = match &args.config {
        Some(path) => std::fs::read_to_string(path).map_err(|source| InputError::File {
            path: path.clone(),
            action: "read",
            mend: "name a TOML file with the keys of the training's table, or leave --config away",
            source,
        })?,
        None => String::new(),
    };
    let place = args.config.as_ref().map_or("--set".to_owned(), |path| path.display().to_string());
    TrainSettings::read(training, &text, &args.overrides)
        .map_err(|problems| TrainError::Settings { place, problems })
}

/// The progress of one part of the work.
struct Shown {
    label: &'static str,
    progress: Progress,
    tokens_before: u64,
}

/// What came out, in one line for a person.
fn tell(outcome: &Outcome, out: &Path) {
    let (Some(first), Some(last)) = (outcome.rows.first(), outcome.rows.last()) else { return };
    let numbers = [
        ("accuracy", last.accuracy),
        ("margin", last.margin),
        ("token accuracy", last.token_accuracy),
    ];
    let told = numbers.into_iter().filter_map(|(name, number)| Some((name, number?)));
    let told: String = told.map(|(name, number)| format!(", {name} {number:.4}")).collect();
    eprintln!(
        "train: {} steps, loss {:.4} to {:.4}{told}; {} holds {}",
        last.step,
        first.loss,
        last.loss,
        out.display(),
        outcome.standing.sha256,
    );
    for line in outcome.report.iter().flat_map(|report| report.told()) {
        eprintln!("train: {line}");
    }
}
