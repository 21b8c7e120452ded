//! A moving average of policies: a reference that follows them slowly.
//!
//! In: a policy's folder, the folder of the average before it, a decay. Out: a published folder with
//! the policy's files, whose every weight is decay × before + (1 − decay) × policy. Weight by weight,
//! in f64 on the CPU: at most three copies of one tensor are in memory, and the bits depend on the folders alone. May
//! not enter: computation with a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rlhfd_protocol::manifest::FolderKind;
use rlhfd_protocol::worker::{ModelRef, Published};
use tch::{Kind, Tensor};

use super::error::TrainError;
use super::publish::{COPIED, MASTERS, Masters, narrower_than_f32};
use super::weights::{self, Piece};
use crate::checkpoint::{self, CheckpointError, Draft, Heading, Standing};
use crate::errors::ModelError;
use crate::model::ModelFolder;
use crate::model::safetensors::{Entry, WeightFile};
use crate::verifying::{Files, Known};
use crate::watch::Watch;

/// Files of the policy that go over as they are, beside those of [`COPIED`].
const SETTINGS: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
];

/// An average to be made.
#[derive(Debug, Clone, Copy)]
pub struct Average<'a> {
    /// The newest policy; its sum goes into the manifest.
    pub policy: &'a ModelRef,
    /// The average before it.
    pub before: &'a ModelRef,
    /// The share of the average before; in (0, 1).
    pub decay: f64,
    /// The folder to publish.
    pub out: &'a Path,
    /// The unit's natural key.
    pub unit: &'a str,
}

/// Makes an average and publishes it. A folder that this very unit has published is taken as it stands.
///
/// # Errors
/// A folder that is no policy, or that holds other weights than the policy's; what the disk says;
/// `Cancelled`.
pub fn run(average: &Average<'_>, watch: &Watch) -> Result<Published, TrainError> {
    if let Some(standing) = already_published(average)? {
        return Ok(published(standing));
    }
    let verifying = Known::default().begin(&[average.policy, average.before], Files::All);
    let draft = Draft::begin(average.out)?;
    let policy = Source::open(&average.policy.path)?;
    let before = Source::open(&average.before.path)?;
    let blend = Blend { policy: &policy, before: &before, decay: average.decay, watch };
    for file in policy.folder.files() {
        let pieces: Vec<Piece<'_>> =
            file.entries.iter().map(|entry| blend.piece(entry, entry.kind)).collect();
        let name = file.path.file_name().unwrap_or_default();
        weights::write(&draft.path().join(name), &pieces)?;
    }
    if narrower_than_f32(policy.folder.stored_kind) {
        let learnt = policy.masters.entries();
        let masters: Vec<Piece<'_>> =
            learnt.iter().map(|entry| blend.piece(entry, Kind::Float)).collect();
        if !masters.is_empty() {
            weights::write(&draft.path().join(MASTERS), &masters)?;
        }
    }
    for name in COPIED.into_iter().chain(SETTINGS) {
        copy(&policy.folder.dir.join(name), &draft, name)?;
    }
    let heading = Heading {
        kind: FolderKind::Policy,
        unit: average.unit.to_owned(),
        parent_sha256: average.policy.sha256.clone(),
        architecture: policy.folder.config.family.causal.to_owned(),
        steps: 0,
    };
    verifying.end()?;
    Ok(published(draft.publish(heading)?))
}

fn already_published(average: &Average<'_>) -> Result<Option<Standing>, TrainError> {
    let Some(standing) = checkpoint::published(average.out)? else { return Ok(None) };
    let manifest = &standing.manifest;
    if manifest.unit != average.unit || manifest.parent_sha256 != average.policy.sha256 {
        return Err(CheckpointError::Exists { path: average.out.to_owned() }.into());
    }
    Ok(Some(standing))
}

fn published(standing: Standing) -> Published {
    Published {
        steps: 0,
        first_step: 1,
        bytes: standing.bytes,
        sha256: standing.sha256,
        dropped: Vec::new(),
    }
}

fn copy(from: &Path, draft: &Draft, name: &str) -> Result<(), TrainError> {
    if !from.is_file() {
        return Ok(());
    }
    let bytes = fs::read(from).map_err(|source| CheckpointError::Io {
        path: from.to_owned(),
        action: "read",
        source,
    })?;
    Ok(draft.write(name, &bytes)?)
}

/// A folder whose weights are read, by their f32 masters where it has some.
struct Source {
    folder: ModelFolder,
    masters: Masters,
}

impl Source {
    fn open(dir: &Path) -> Result<Self, TrainError> {
        let folder = ModelFolder::open(dir)?.require_policy()?;
        Ok(Self { masters: Masters::open(dir)?, folder })
    }

    /// Its weights by name.
    fn entries(&self) -> BTreeMap<&str, (&WeightFile, &Entry)> {
        let files = self.folder.files().iter();
        let all = files.flat_map(|file| file.entries.iter().map(move |entry| (file, entry)));
        all.map(|(file, entry)| (entry.name.as_str(), (file, entry))).collect()
    }

    /// A weight in f64.
    fn weight(&self, name: &str) -> Result<Option<Tensor>, TrainError> {
        // A second copy of a tied head follows the embedding.
        let tied = name == "lm_head.weight" && self.folder.config.tied;
        let master = if tied { "model.embed_tokens.weight" } else { name };
        let weight = match self.masters.get(master)? {
            Some(master) => Some(master),
            None => match self.entries().get(name) {
                Some((file, entry)) => Some(file.read(entry)?),
                None => None,
            },
        };
        Ok(weight.map(|weight| weight.to_kind(Kind::Double)))
    }
}

struct Blend<'a> {
    policy: &'a Source,
    before: &'a Source,
    decay: f64,
    watch: &'a Watch,
}

impl Blend<'_> {
    fn piece<'a>(&'a self, entry: &Entry, kind: Kind) -> Piece<'a> {
        let (name, shape) = (entry.name.clone(), entry.shape.clone());
        Piece {
            name: name.clone(),
            kind,
            shape: shape.clone(),
            tensor: Box::new(move || self.tensor(&name, &shape)),
        }
    }

    /// before × decay + policy × (1 − decay), so written that equal weights stay what they are; in f32,
    /// of which a narrower weight is the rounding.
    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, TrainError> {
        self.watch.tick(0)?;
        let of = |source: &Source| -> Result<Tensor, TrainError> {
            let weight = source.weight(name)?.filter(|weight| weight.size() == shape);
            weight.ok_or_else(|| {
                let problem = format!("is not there as {shape:?}: no average of two such models");
                let dir = source.folder.dir.clone();
                ModelError::Tensor { name: name.to_owned(), problem, dir }.into()
            })
        };
        let (policy, before) = (of(self.policy)?, of(self.before)?);
        Ok((&policy + (before - &policy) * self.decay).to_kind(Kind::Float))
    }
}
