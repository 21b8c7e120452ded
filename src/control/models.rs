//! The model folders and data that the configuration names, by place and content.
//!
//! In: paths. Out: sums, computed once a folder as long as nothing in it changes: hashing sixteen
//! gigabytes takes a while. May not enter: what is in them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rlhfd_domain::{JobKind, ScorerId};
use rlhfd_store::ModelIdentity;

use crate::places::Places;
use crate::stages::sums::{self, SumError};

/// What tells that a folder is as it was: names, sizes, times and inodes of its files.
type Look = Vec<(String, u64, i64, u64)>;

/// Known sums, and the rows of known scorers.
#[derive(Debug, Default)]
pub struct Models {
    sums: Mutex<HashMap<PathBuf, (Look, String)>>,
    scorers: Mutex<HashMap<(String, String, String), ScorerId>>,
    refused: Mutex<HashMap<JobKind, (String, String)>>,
}

impl Models {
    /// The identity of a model folder. It blocks, and for large folders long.
    ///
    /// Errors: there is no model, or it cannot be read.
    pub fn identity(&self, places: &Places, folder: &Path) -> Result<ModelIdentity, SumError> {
        let path = places.relative(folder);
        let sha256 = self.sum(folder, look(folder)?, sums::model_sum)?;
        Ok(ModelIdentity { path, sha256 })
    }

    /// The sum of a file of data. It blocks.
    ///
    /// Errors: it cannot be read.
    pub fn data_sum(&self, file: &Path) -> Result<String, SumError> {
        let io = |source| SumError::Io { path: file.to_path_buf(), source };
        let facts = fs::metadata(file).map_err(io)?;
        self.sum(file, vec![entry(String::new(), &facts)], |file| Ok(sums::file_sum(file)?.1))
    }

    fn sum(
        &self,
        path: &Path,
        look: Look,
        sum: impl Fn(&Path) -> Result<String, SumError>,
    ) -> Result<String, SumError> {
        let known = self.known().get(path).filter(|(known, _)| *known == look).cloned();
        if let Some((_, sha256)) = known {
            return Ok(sha256);
        }
        let sha256 = sum(path)?;
        self.known().insert(path.to_path_buf(), (look, sha256.clone()));
        Ok(sha256)
    }

    /// Why data under this key were refused: they are not read again as long as they stay the same.
    #[must_use]
    pub fn refused(&self, kind: JobKind, key: &str) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(&kind).filter(|(known, _)| known == key).map(|(_, why)| why.clone())
    }

    /// Keeps why data were refused.
    pub fn refuse(&self, kind: JobKind, key: &str, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.insert(kind, (key.to_owned(), why.to_owned()));
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Look, String)>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The row of a scorer, once it was told: an idle daemon asks each second and writes nothing.
    pub fn scorer(&self, name: &str, model: &ModelIdentity) -> Option<ScorerId> {
        let key = (name.to_owned(), model.path.clone(), model.sha256.clone());
        self.scorers.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    /// Keeps the row of a scorer.
    pub fn keep_scorer(&self, name: &str, model: &ModelIdentity, id: ScorerId) {
        let key = (name.to_owned(), model.path.clone(), model.sha256.clone());
        self.scorers.lock().unwrap_or_else(PoisonError::into_inner).insert(key, id);
    }
}

fn look(folder: &Path) -> Result<Look, SumError> {
    let missing = || SumError::NoModel { path: folder.to_path_buf() };
    let mut look = Vec::new();
    for entry in fs::read_dir(folder).map_err(|_| missing())? {
        let io = |source| SumError::Io { path: folder.to_path_buf(), source };
        let entry = entry.map_err(io)?;
        // Through links: the Hugging Face cache is made of them.
        let Ok(facts) = fs::metadata(entry.path()) else { continue };
        look.push(self::entry(entry.file_name().to_string_lossy().into_owned(), &facts));
    }
    look.sort();
    Ok(look)
}

fn entry(name: String, facts: &fs::Metadata) -> (String, u64, i64, u64) {
    (name, facts.len(), facts.mtime(), facts.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::Asked;

    #[test]
    fn a_sum_is_kept_until_the_folder_changes() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("rlhfd.toml"), "").unwrap();
        let asked = Asked {
            config: Some(root.path().join("rlhfd.toml")),
            state: Some(root.path().join("state")),
            socket: Some(root.path().join("s")),
        };
        let places = Places::find(&asked, |_| None).unwrap();
        let model = root.path().join("state/runs/main/checkpoints/reward-main");
        let models = Models::default();
        assert!(matches!(models.identity(&places, &model), Err(SumError::NoModel { .. })));
        fs::create_dir_all(&model).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        let first = models.identity(&places, &model).unwrap();
        assert_eq!(first.path, "runs/main/checkpoints/reward-main");
        assert_eq!(models.identity(&places, &model).unwrap(), first);
        fs::write(model.join("config.json"), "{\"a\": 1}").unwrap();
        assert_ne!(models.identity(&places, &model).unwrap(), first);
    }
}
