//! The daemon's train units: from the words of the protocol to a [`TrainJob`] and back.
//!
//! In: a work that trains. Out: what was published. May not enter: frames,
//! sockets, training itself.

use std::path::Path;

use rlhfd_config::{TrainSettings, Training};
use rlhfd_protocol::manifest::MANIFEST;
use rlhfd_protocol::worker::{ModelRef, Published, TrainTarget};

use super::batches::Order;
use super::error::TrainError;
use super::job::{self, AdapterBase, Outcome, PairSource, PublishedAs, StateKeeping, TrainJob};
use super::mixture::DataFile;
use super::rescore::Stored;
use super::state::Resume;
use super::trainer::Observer;
use crate::checkpoint::{self, CheckpointError};
use crate::device::Compute;
use crate::render::RenderRule;

/// Names of the files in an iteration's or a job's folder.
const SETTINGS: &str = "settings.toml";
const PAIRS: &str = "pairs.jsonl";
const RESCORE: &str = "rescore.jsonl";
const CONVERSATIONS: &str = "conversations.jsonl";
const PREFERENCES: &str = "preferences.jsonl";

/// A DPO update from an iteration folder: pairs.jsonl with token ids and the reference's log-probs,
/// settings.toml, and rescore.jsonl, by which policy and reference are held to what is stored before the
/// first step. Adapters stand on the initial policy.
///
/// # Errors
/// See [`TrainError`].
pub fn train_dpo(
    (policy, reference, initial): (&ModelRef, &ModelRef, &ModelRef),
    (folder, target): (&Path, &TrainTarget),
    compute: Compute,
    observer: &Observer<'_>,
) -> Result<Published, TrainError> {
    whole(folder)?;
    let pairs = PairSource::Ids { path: folder.join(PAIRS) };
    let mut job = job_of(Training::Dpo, (policy, folder), pairs, target)?;
    job.adapter_base =
        Some(AdapterBase { dir: initial.path.clone(), sha256: initial.sha256.clone() });
    let stored = folder.join(RESCORE);
    job.stored = stored.is_file().then(|| Stored {
        path: stored,
        reference: reference.path.clone(),
        reference_sha256: reference.sha256.clone(),
    });
    job::run(&job, compute, observer).map(published)
}

/// A training from a job folder: conversations.jsonl or preferences.jsonl with texts, and
/// settings.toml.
///
/// # Errors
/// See [`TrainError`].
pub fn train_job(
    training: Training,
    (base, folder): (&ModelRef, &Path),
    target: &TrainTarget,
    compute: Compute,
    observer: &Observer<'_>,
) -> Result<Published, TrainError> {
    whole(folder)?;
    let data = match training {
        Training::Sft => {
            PairSource::Conversations { files: vec![DataFile::once(folder.join(CONVERSATIONS))] }
        }
        Training::Dpo | Training::Reward | Training::Preference => PairSource::Text {
            files: vec![DataFile::once(folder.join(PREFERENCES))],
            rule: RenderRule::Conversation,
            reference: None,
        },
    };
    let job = job_of(training, (base, folder), data, target)?;
    job::run(&job, compute, observer).map(published)
}

fn job_of(
    training: Training,
    (base, folder): (&ModelRef, &Path),
    pairs: PairSource,
    target: &TrainTarget,
) -> Result<TrainJob, TrainError> {
    Ok(TrainJob {
        training,
        base: base.path.clone(),
        base_sha256: base.sha256.clone(),
        adapter_base: None,
        published: PublishedAs::Model,
        pairs,
        stored: None,
        settings: settings(training, &folder.join(SETTINGS))?,
        micro_batch: target.micro_batch,
        order: Order::Shuffled { seed: target.seed },
        seed: target.seed,
        out: target.out.clone(),
        unit: target.unit.clone(),
        parent_sha256: target.parent_sha256.clone(),
        state: Some(StateKeeping {
            folder: target.state.clone(),
            resume: if target.resume { Resume::Newest } else { Resume::Never },
            every_steps: target.save_every_steps,
            every_s: target.save_every_s,
        }),
    })
}

/// Holds the folder against its manifest: altered ids would be trained on in silence. A folder that a person
/// made may have none.
fn whole(folder: &Path) -> Result<(), TrainError> {
    if !folder.join(MANIFEST).is_file() {
        return Ok(());
    }
    match checkpoint::verify(folder) {
        Err(error) if error.is_lost() => Err(TrainError::Altered(error)),
        other => Ok(other.map(drop)?),
    }
}

fn settings(training: Training, path: &Path) -> Result<TrainSettings, TrainError> {
    let text = std::fs::read_to_string(path).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    let place = path.display().to_string();
    TrainSettings::read(training, &text, &[])
        .map_err(|problems| TrainError::Settings { place, problems })
}

fn published(outcome: Outcome) -> Published {
    Published {
        steps: outcome.rows.len() as u64,
        first_step: outcome.first_step,
        bytes: outcome.standing.bytes,
        sha256: outcome.standing.sha256,
        dropped: outcome.dropped,
    }
}
