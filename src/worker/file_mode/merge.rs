//! `merge`: a PEFT adapter and its base in, one model folder out.
//!
//! In: `--base`, `--adapter`. Out: a Hugging Face folder whose weights hold what the adapter adds, in
//! the base's own type and files, with manifest.json. May not enter: training.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use rlhfd_protocol::manifest::FolderKind;

use crate::checkpoint::{Draft, Heading};
use crate::errors::WorkerError;
use crate::model::{AdapterFolder, Head, ModelFolder, ModelKind};
use crate::render::Renderer;
use crate::train::TrainError;
use crate::train::adamw::AdamConfig;
use crate::train::learners::Learners;
use crate::train::publish::{Masters, Publication, RewardFolder};
use crate::train::reward_head;

/// Options of `merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Model folder that the adapter was made on
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Folder of the PEFT adapter, or of a model that holds one in adapter/
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs the command.
///
/// Errors: whatever is wrong with base, adapter or place; nothing then stands at `--out`.
pub fn run(args: &MergeArgs) -> Result<(), WorkerError> {
    let base = ModelFolder::open(&args.base)?;
    let merged = base.clone().with_adapter(&args.adapter)?;
    let Some(adapter) = merged.adapter() else { return Ok(()) };
    let draft = Draft::begin(&args.out).map_err(TrainError::from)?;
    let adam = AdamConfig { beta1: 0.0, beta2: 0.0, epsilon: 1.0, weight_decay: 0.0 };
    let publication = Publication {
        base: &base,
        masters: &Masters::none(),
        learners: &Learners::none(adam),
        adapters: Some(&adapter.adapters),
        adapter_files: None,
        rows: &[],
        reward: reward_folder(&base, adapter)?,
        report: None,
        labels: merged.labels,
    };
    let architecture = publication.fill(&draft)?;
    let kind = match merged.kind() {
        ModelKind::Policy => FolderKind::Policy,
        ModelKind::RewardModel => FolderKind::RewardModel,
        ModelKind::PreferenceModel => FolderKind::PreferenceModel,
    };
    let heading =
        Heading { kind, unit: String::new(), parent_sha256: String::new(), architecture, steps: 0 };
    let standing = draft.publish(heading).map_err(TrainError::from)?;
    eprintln!("merge: {} holds {}", args.out.display(), standing.sha256);
    Ok(())
}

/// What a reward model's folder says of padding, where the adapter makes one of a policy.
fn reward_folder(
    base: &ModelFolder,
    adapter: &AdapterFolder,
) -> Result<Option<RewardFolder>, WorkerError> {
    if adapter.adapters.score_head.is_none() {
        return Ok(None);
    }
    let tokenizer = Renderer::open(base)?.tokenizer;
    let noted = adapter.base.as_ref().and_then(|note| note.pad_id);
    let own = base.config.pad_id.filter(|_| base.config.head == Head::Score);
    let found = noted.or(own);
    let pad_id =
        found.or_else(|| reward_head::pad_id(&tokenizer, base.config.vocabulary, &BTreeSet::new()));
    Ok(pad_id.map(|pad_id| {
        let pad_token = tokenizer.has(pad_id).then(|| tokenizer.token(pad_id));
        RewardFolder { pad_id, pad_token }
    }))
}
