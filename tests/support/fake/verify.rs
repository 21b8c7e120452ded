//! Published models are held against their manifests before anything is computed with them, as the real
//! worker does it.

use std::fs;

use rlhfd_protocol::manifest::{MANIFEST, Manifest};
use rlhfd_protocol::worker::{FailureKind, ModelRef, Work};
use sha2::{Digest, Sha256};

use super::serve::Stop;
use super::train::hex;

/// Errors: `Unsound`, where a file of a model of this work is another, or is gone.
pub(super) fn models_of(work: &Work) -> Result<(), Stop> {
    let unsound = models(work).into_iter().find_map(|model| {
        let problem = problem(model)?;
        Some(format!("{}: {problem} is not as its manifest says", model.path.display()))
    });
    match unsound {
        None => Ok(()),
        Some(message) => Err(Stop::Failed { kind: FailureKind::Unsound, message, exit: false }),
    }
}

/// The first file that is not as it was published; none in a folder without a manifest.
fn problem(model: &ModelRef) -> Option<String> {
    let text = fs::read(model.path.join(MANIFEST)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    let differs = |path: &str, sha256: &str| {
        fs::read(model.path.join(path)).map_or(true, |bytes| hex(&Sha256::digest(bytes)) != sha256)
    };
    let files = manifest.files.into_iter();
    files.filter(|file| differs(&file.path, &file.sha256)).map(|file| file.path).next()
}

fn models(work: &Work) -> Vec<&ModelRef> {
    match work {
        Work::Probe { .. } => Vec::new(),
        Work::Render { policy, .. }
        | Work::RenderPairs { policy, .. }
        | Work::Generate { policy, .. } => vec![policy],
        Work::Score { scorer: model, .. }
        | Work::Prefer { model, .. }
        | Work::Logprobs { model, .. } => vec![model],
        Work::Average { policy, before, .. } => vec![policy, before],
        Work::TrainDpo { policy, reference, initial, .. } => vec![policy, reference, initial],
        Work::TrainSft { base, .. }
        | Work::TrainReward { base, .. }
        | Work::TrainPreference { base, .. } => vec![base],
    }
}
