//! A training's own state: saved every few steps, resumed to the bit.
//!
//! In: learners and step rows. Out: folders `step-NNNNNNNN` in the state folder, each whole or
//! absent, the newest two kept; and back. A state names the training it belongs to by a
//! fingerprint of all that shapes it, so that it is never resumed by another. Whatever else a step
//! needs (order of pairs, rate) follows from the step number. May not enter: models' folders, losses.

use std::path::{Path, PathBuf};

use rlhfd_protocol::manifest::FolderKind;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::error::TrainError;
use super::learners::Learners;
use super::steps::StepRow;
use super::weights::{self, Piece};
use crate::checkpoint::{self, CheckpointError, Draft, Heading};
use crate::model::safetensors::WeightFile;

/// Saved states that are kept: the newest, and the one before in case it does not verify.
const KEPT: usize = 2;

const TENSORS: &str = "state.safetensors";
const ROWS: &str = "state.json";

/// Where a training keeps its state, and when it saves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePlace {
    /// The folder; made when first needed.
    pub folder: PathBuf,
    /// Whether a state found there is taken up.
    pub resume: Resume,
    /// Save after so many steps; 0 never by steps.
    pub every_steps: u64,
    /// Save after so many seconds; 0 never by time.
    pub every_s: u64,
    /// What the training is: see [`fingerprint`].
    pub fingerprint: String,
}

/// Whether to take up a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Go on from the newest sound state.
    Newest,
    /// Begin anew, whatever lies there.
    Never,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    fingerprint: String,
    step: u64,
    rows: Vec<StepRow>,
}

/// One sum over all parts that shape a training: settings, seed, pairs, model. Equal parts give
/// equal steps.
#[must_use]
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    checkpoint::sha256_hex(&all)
}

/// About how many bytes a saved state has: masters and two moments.
#[must_use]
pub fn bytes(learners: &Learners) -> u64 {
    let weights: usize = learners.all().iter().map(|learner| learner.master.numel()).sum();
    3 * Kind::Float.elt_size_in_bytes() as u64 * weights as u64
}

/// Saves the state after `rows.len()` steps, and removes older ones once it is durable.
///
/// # Errors
/// What the disk says.
pub fn save(place: &StatePlace, learners: &Learners, rows: &[StepRow]) -> Result<(), TrainError> {
    let step = rows.len() as u64;
    let out = place.folder.join(format!("step-{step:08}"));
    if out.exists() {
        // Left by an attempt that did not resume; the same step of the same training.
        std::fs::remove_dir_all(&out).map_err(|source| CheckpointError::Io {
            path: out.clone(),
            action: "removed",
            source,
        })?;
    }
    let draft = Draft::begin(&out)?;
    let mut pieces = Vec::new();
    for learner in learners.all() {
        let moments = &learner.moments;
        for (part, tensor) in
            [("master", &learner.master), ("first", &moments.first), ("second", &moments.second)]
        {
            pieces.push(Piece::of(format!("{part}/{}", learner.name), Kind::Float, tensor));
        }
    }
    weights::write(&draft.path().join(TENSORS), &pieces)?;
    let saved = Saved { fingerprint: place.fingerprint.clone(), step, rows: rows.to_vec() };
    let text = serde_json::to_vec(&saved).map_err(|error| unreadable(&out, &error))?;
    draft.write(ROWS, &text)?;
    draft.publish(Heading {
        kind: FolderKind::TrainState,
        unit: String::new(),
        parent_sha256: String::new(),
        architecture: String::new(),
        steps: step,
    })?;
    for old in found(&place.folder).into_iter().skip(KEPT) {
        // A state too many does no harm; the next save tries again.
        let _ = std::fs::remove_dir_all(&old);
    }
    Ok(())
}

/// Brings `learners` to the newest sound state and returns its rows; no rows where there is none.
///
/// # Errors
/// [`TrainError::ForeignState`] where the newest sound state is another training's.
pub fn resume(place: &StatePlace, learners: &mut Learners) -> Result<Vec<StepRow>, TrainError> {
    if place.resume == Resume::Never {
        return Ok(Vec::new());
    }
    for folder in found(&place.folder) {
        if let Err(error) = checkpoint::verify(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "a saved state is passed over");
            continue;
        }
        return restore(&folder, place, learners);
    }
    Ok(Vec::new())
}

fn restore(
    folder: &Path,
    place: &StatePlace,
    learners: &mut Learners,
) -> Result<Vec<StepRow>, TrainError> {
    let foreign = |difference: &str| TrainError::ForeignState {
        path: folder.to_owned(),
        difference: difference.to_owned(),
    };
    let path = folder.join(ROWS);
    let text = std::fs::read(&path).map_err(|source| CheckpointError::Io {
        path: path.clone(),
        action: "read",
        source,
    })?;
    let saved: Saved = serde_json::from_slice(&text).map_err(|error| unreadable(&path, &error))?;
    if saved.fingerprint != place.fingerprint || saved.step != saved.rows.len() as u64 {
        return Err(foreign("its settings, pairs, seed or model are not these"));
    }
    let file = WeightFile::open(&folder.join(TENSORS))?;
    let _no_grad = tch::no_grad_guard();
    for learner in learners.all_mut() {
        let parts = [
            ("master", &mut learner.master),
            ("first", &mut learner.moments.first),
            ("second", &mut learner.moments.second),
        ];
        for (part, tensor) in parts {
            let name = format!("{part}/{}", learner.name);
            let entry = file.entries.iter().find(|entry| entry.name == name);
            let entry = entry.ok_or_else(|| foreign("it holds other tensors"))?;
            if entry.shape != tensor.size() {
                return Err(foreign("its tensors have other shapes"));
            }
            tensor.copy_(&file.read(entry)?);
        }
        learner.publish_master();
    }
    Ok(saved.rows)
}

/// State folders, the newest first.
fn found(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

fn unreadable(path: &Path, error: &serde_json::Error) -> TrainError {
    TrainError::Job { path: path.to_owned(), problem: format!("no state can be read ({error})") }
}
