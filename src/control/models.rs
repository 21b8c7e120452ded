//! The model folders that the configuration names, by place and content.
//!
//! In: paths. Out: sums, computed once a folder as long as nothing in it changes: hashing sixteen
//! gigabytes takes a while. May not enter: what is in them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rlhfd_domain::ScorerId;
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
}

impl Models {
    /// The identity of a model folder. It blocks, and for large folders long.
    ///
    /// Errors: there is no model, or it cannot be read.
    pub fn identity(&self, places: &Places, folder: &Path) -> Result<ModelIdentity, SumError> {
        let path = places.relative(folder);
        let look = look(folder)?;
        let known = self.known().get(folder).filter(|(known, _)| *known == look).cloned();
        if let Some((_, sha256)) = known {
            return Ok(ModelIdentity { path, sha256 });
        }
        let sha256 = sums::model_sum(folder)?;
        self.known().insert(folder.to_path_buf(), (look, sha256.clone()));
        Ok(ModelIdentity { path, sha256 })
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
        let name = entry.file_name().to_string_lossy().into_owned();
        look.push((name, facts.len(), facts.mtime(), facts.ino()));
    }
    look.sort();
    Ok(look)
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
