//! Checkpoints are held against their manifests before anything is computed with them, on a thread of its own
//! beside the load that reads the same bytes.
//!
//! In: model folders with their sums. Out: nothing, or the first folder that is not as it was admitted. Of a
//! folder that this process has looked at, and that has not changed since, the sums are not computed again. A
//! model of the user's own has no manifest: the daemon itself knows it by its files. May not enter: tensors.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rlhfd_protocol::worker::ModelRef;

use crate::checkpoint::{self, CheckpointError};

/// What a command of ours never loads, only a training that goes on from it.
const MASTERS: &str = "master/";

/// Which files of a folder are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Files {
    /// All: of a training.
    All,
    /// Those that a model is loaded from.
    Model,
    /// Those that texts are rendered with.
    Text,
}

/// What tells that a file is as it was: name, size, inode, times of its data and of its inode.
type Look = Vec<(String, u64, u64, (i64, i64), (i64, i64))>;

/// So many looks are remembered: a run computes with a few folders at a time.
const KNOWN_MAX: usize = 16;

/// What this process has looked at, the oldest first.
#[derive(Debug, Default, Clone)]
pub struct Known(Arc<Mutex<VecDeque<(Key, Look)>>>);

type Key = (ModelRef, Files);

impl Known {
    /// Begins to hold these folders against their manifests.
    pub fn begin(&self, models: &[&ModelRef], files: Files) -> Verifying {
        let known = self.clone();
        let models: Vec<ModelRef> = models.iter().map(|model| (*model).clone()).collect();
        let look = move || models.iter().try_for_each(|model| known.verify(model, files));
        let thread = std::thread::Builder::new().name("verify".to_owned());
        Verifying(match thread.spawn(look.clone()) {
            Ok(thread) => Beside::Runs(thread),
            // No thread to be had: then it is done in turn.
            Err(_) => Beside::Ended(look()),
        })
    }

    /// Holds a folder against its manifest, where it has one and was not looked at as it is.
    ///
    /// # Errors
    /// [`CheckpointError::Unsound`]; what the system says.
    pub fn verify(&self, model: &ModelRef, files: Files) -> Result<(), CheckpointError> {
        if !checkpoint::is_published(&model.path) {
            return Ok(());
        }
        let key = (model.clone(), files);
        let look = look(&model.path);
        if look.as_ref().is_some_and(|look| self.is_as_before(&key, look)) {
            return Ok(());
        }
        let standing = checkpoint::verify_some(&model.path, |name| files.has(name))?;
        if standing.sha256 != model.sha256 {
            return Err(CheckpointError::Unsound {
                path: model.path.clone(),
                problem: "its manifest is another than the one that was admitted".to_owned(),
            });
        }
        if let Some(look) = look {
            self.keep(key, look);
        }
        Ok(())
    }

    fn is_as_before(&self, key: &Key, look: &Look) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(of, before)| of == key && before == look)
    }

    fn keep(&self, key: Key, look: Look) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(of, _)| *of != key);
        if known.len() >= KNOWN_MAX {
            known.pop_front();
        }
        known.push_back((key, look));
    }
}

impl Files {
    fn has(self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Model => !name.starts_with(MASTERS),
            Self::Text => !name.ends_with(".safetensors"),
        }
    }
}

/// A look that may still go on.
#[derive(Debug)]
#[must_use = "what it finds is to be heard before anything is computed"]
pub struct Verifying(Beside);

#[derive(Debug)]
enum Beside {
    Runs(JoinHandle<Result<(), CheckpointError>>),
    Ended(Result<(), CheckpointError>),
}

impl Verifying {
    /// Waits for what was found.
    ///
    /// # Errors
    /// As [`Known::verify`].
    pub fn end(self) -> Result<(), CheckpointError> {
        match self.0 {
            Beside::Ended(found) => found,
            Beside::Runs(thread) => thread.join().unwrap_or_else(|_| {
                let source = io::Error::other("the look at it panicked");
                Err(CheckpointError::Io { path: PathBuf::new(), action: "verified", source })
            }),
        }
    }
}

/// A folder's files as they are now; none where they cannot be listed.
fn look(folder: &Path) -> Option<Look> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((at, prefix)) = folders.pop() {
        for entry in fs::read_dir(at).ok()? {
            let path = entry.ok()?.path();
            let name = format!("{prefix}{}", path.file_name()?.to_string_lossy());
            let facts = fs::metadata(&path).ok()?;
            if facts.is_dir() {
                folders.push((path, format!("{name}/")));
            } else {
                let changed = (facts.ctime(), facts.ctime_nsec());
                found.push((
                    name,
                    facts.len(),
                    facts.ino(),
                    (facts.mtime(), facts.mtime_nsec()),
                    changed,
                ));
            }
        }
    }
    found.sort();
    Some(found)
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::manifest::FolderKind;

    use super::*;
    use crate::checkpoint::{Draft, Heading};

    fn published(out: &Path) -> ModelRef {
        let draft = Draft::begin(out).unwrap();
        for (name, bytes) in [("config.json", "{}"), ("model.safetensors", "123")] {
            draft.write(name, bytes.as_bytes()).unwrap();
        }
        draft.write("master/weights.safetensors", b"1234").unwrap();
        let heading = Heading {
            kind: FolderKind::Policy,
            unit: "1/train".into(),
            parent_sha256: String::new(),
            architecture: String::new(),
            steps: 1,
        };
        let sha256 = draft.publish(heading).unwrap().sha256;
        ModelRef { path: out.to_owned(), sha256 }
    }

    /// Other bytes of the same number, by the same inode; its size tells nothing.
    fn alter(path: &Path) {
        let length = fs::metadata(path).unwrap().len() as usize;
        fs::write(path, "x".repeat(length)).unwrap();
    }

    fn found(known: &Known, model: &ModelRef, files: Files) -> Result<(), CheckpointError> {
        known.begin(&[model], files).end()
    }

    #[test]
    fn an_altered_file_is_found_by_whoever_reads_it_also_after_a_first_look() {
        let place = tempfile::tempdir().unwrap();
        let (known, model) = (Known::default(), published(&place.path().join("a")));
        for files in [Files::All, Files::Model, Files::Text] {
            found(&known, &model, files).unwrap();
        }
        alter(&model.path.join("master/weights.safetensors"));
        found(&known, &model, Files::Model).unwrap();
        assert!(found(&known, &model, Files::All).unwrap_err().is_lost());
        alter(&model.path.join("model.safetensors"));
        assert!(found(&known, &model, Files::Model).unwrap_err().is_lost());
        found(&known, &model, Files::Text).unwrap();
        alter(&model.path.join("config.json"));
        assert!(found(&known, &model, Files::Text).unwrap_err().is_lost());
    }

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let place = tempfile::tempdir().unwrap();
        let (known, model) = (Known::default(), published(&place.path().join("a")));
        found(&known, &model, Files::Model).unwrap();
        // A sum that would be refused if it were looked at.
        let wrong = ModelRef { sha256: "ab".into(), ..model.clone() };
        known.keep((wrong.clone(), Files::Model), look(&model.path).unwrap());
        found(&known, &wrong, Files::Model).unwrap();
        assert!(found(&Known::default(), &wrong, Files::Model).unwrap_err().is_lost());
    }

    #[test]
    fn a_model_of_the_users_own_has_nothing_to_be_held_to() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("config.json"), "{}").unwrap();
        let model = ModelRef { path: place.path().to_owned(), sha256: "ab".into() };
        found(&Known::default(), &model, Files::All).unwrap();
        fs::write(place.path().join("manifest.json"), "{\"name\": \"mine\"}").unwrap();
        found(&Known::default(), &model, Files::All).unwrap();
    }
}
