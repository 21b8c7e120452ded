//! manifest.json: what a published folder holds, by name, size and sha256.
//!
//! In: plain values. Out: bytes that are the same for the same contents, so that the sum of the
//! manifest names the folder. It holds neither a time nor an absolute path: the same training done
//! twice gives the same sum. May not enter: I/O, hashing.

use serde::{Deserialize, Serialize};

/// The file's name in each folder.
pub const MANIFEST: &str = "manifest.json";

/// The version of this format.
pub const FORMAT: u32 = 1;

/// What a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderKind {
    /// A policy's Hugging Face folder.
    Policy,
    /// A reward model's Hugging Face folder.
    RewardModel,
    /// A preference model's Hugging Face folder.
    PreferenceModel,
    /// A train unit's own state; of no use to anyone else.
    TrainState,
    /// The input of an iteration's training.
    Iteration,
    /// The input of a training job.
    Job,
}

/// What makes a model; a folder of the Hugging Face cache holds more, and some of it changes.
const MODEL_FILES: [&str; 5] = ["safetensors", "json", "jinja", "model", "txt"];

/// Whether a file of a folder without a manifest has a part in the sum by which the folder is known:
/// sha256 over `NAME\0SUM\n` of each such file, by name, SUM being its own in hexadecimal.
#[must_use]
pub fn is_model_file(name: &str) -> bool {
    let end = name.rsplit_once('.').map(|(_, end)| end);
    !name.starts_with('.') && end.is_some_and(|end| MODEL_FILES.contains(&end))
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the folder is.
    pub kind: FolderKind,
    /// The natural key of the unit that made it; empty where no unit did.
    pub unit: String,
    /// The manifest sum of the checkpoint that it was trained from; empty where there is none.
    pub parent_sha256: String,
    /// The architecture as config.json names it; empty where there is no model.
    pub architecture: String,
    /// Optimiser steps made from the parent; 0 where nothing was trained.
    pub steps: u64,
    /// Every other file of the folder, sorted by path.
    pub files: Vec<FileSum>,
}

/// One file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Relative to the folder, with `/` between parts.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Of its contents, in lowercase hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The bytes of manifest.json: indented JSON that ends in a newline.
    ///
    /// # Errors
    /// Never for a manifest of strings and numbers; kept so that no caller has to unwrap.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Whether every path stays inside the folder: relative, and without `..`.
    #[must_use]
    pub fn paths_stay_inside(&self) -> bool {
        self.files.iter().all(|file| {
            !file.path.is_empty()
                && !file.path.starts_with('/')
                && file.path.split('/').all(|part| !part.is_empty() && part != ".." && part != ".")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(path: &str) -> Manifest {
        Manifest {
            format: FORMAT,
            kind: FolderKind::Policy,
            unit: "1/train".into(),
            parent_sha256: "ab".into(),
            architecture: "LlamaForCausalLM".into(),
            steps: 3,
            files: vec![FileSum { path: path.into(), bytes: 2, sha256: "cd".into() }],
        }
    }

    #[test]
    fn bytes_come_back_as_the_same_manifest() {
        let one = manifest("config.json");
        let bytes = one.to_bytes().unwrap();
        assert_eq!(bytes.last(), Some(&b'\n'));
        assert_eq!(serde_json::from_slice::<Manifest>(&bytes).unwrap(), one);
    }

    #[test]
    fn paths_that_leave_the_folder_are_seen() {
        assert!(manifest("master/weights.safetensors").paths_stay_inside());
        for path in ["/etc/passwd", "../x", "a/../b", "", "a//b", "./a"] {
            assert!(!manifest(path).paths_stay_inside(), "{path}");
        }
    }
}
