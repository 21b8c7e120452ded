//! How a model folder is known: by the manifest of ours that it has, else by its files.
//!
//! In: a folder. Out: a sum, and whether it was published. May not enter: what the files mean.

use std::fs;
use std::path::Path;

use rlhfd_protocol::manifest::{FORMAT, MANIFEST, Manifest, is_model_file};
use sha2::{Digest, Sha256};

use super::{CheckpointError, MANIFEST_BYTES_MAX, hash, hex, io_error, read_bounded, sha256_hex};

/// The sum by which a model folder is known, here and to the daemon: its manifest's, else that of its
/// files.
///
/// # Errors
/// What the system says.
pub fn model_sum(folder: &Path) -> Result<String, CheckpointError> {
    let path = folder.join(MANIFEST);
    if path.is_file() {
        let text = read_bounded(&path, MANIFEST_BYTES_MAX)?;
        if is_ours(&text) {
            return Ok(sha256_hex(&text));
        }
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder, "read"))? {
        let name = entry.map_err(io_error(folder, "read"))?.file_name();
        names.extend(name.into_string().ok().filter(|name| is_model_file(name)));
    }
    names.retain(|name| folder.join(name).is_file());
    names.sort();
    let mut sum = Sha256::new();
    for name in names {
        let (_, of_file) = hash(&folder.join(&name))?;
        sum.update(format!("{name}\0{of_file}\n"));
    }
    Ok(hex(&sum.finalize()))
}

/// Whether a folder was published by a unit or a command of ours: it has a manifest that says so.
#[must_use]
pub fn is_published(folder: &Path) -> bool {
    let text = read_bounded(&folder.join(MANIFEST), MANIFEST_BYTES_MAX);
    text.is_ok_and(|text| is_ours(&text))
}

fn is_ours(manifest: &[u8]) -> bool {
    let read = serde_json::from_slice::<Manifest>(manifest).ok();
    read.is_some_and(|own| own.format == FORMAT && own.paths_stay_inside())
}
