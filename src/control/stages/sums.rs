//! Sums of model folders, and of settings: by them models are recognised, not by their paths.
//!
//! In: folders. Out: sha256 sums in lower-case hexadecimal. It reads whole files: call it on the
//! blocking pool. May not enter: what the files mean to an engine.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rlhfd_config::{CheckedConfig, ScorePosition, ScorerConfig};
use rlhfd_protocol::manifest::{FORMAT, MANIFEST, Manifest, is_model_file};
use sha2::{Digest, Sha256};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// The largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// Why a folder has no sum.
#[derive(Debug, thiserror::Error)]
pub enum SumError {
    /// It is not there, or is no model.
    #[error(
        "there is no model folder at {path} (no config.json); put one there, or change the configuration"
    )]
    NoModel {
        /// The place.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("{path} cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not hold what its manifest says.
    #[error("{path} is not as its manifest says: {problem}")]
    Unsound {
        /// The folder.
        path: PathBuf,
        /// The first thing that differs.
        problem: String,
    },
}

impl SumError {
    /// Whether the folder is altered or gone, which no disk that recovers mends.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::NoModel { .. } | Self::Unsound { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// A published folder whose manifest was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The manifest.
    pub manifest: Manifest,
    /// Its sum, by which the folder is known.
    pub sha256: String,
    /// Bytes of the folder's files.
    pub bytes: u64,
}

/// The sum by which a model folder is known: its manifest's, else that of its files.
///
/// Errors: `NoModel`, `Io`.
pub fn model_sum(folder: &Path) -> Result<String, SumError> {
    if !folder.join("config.json").is_file() {
        return Err(SumError::NoModel { path: folder.to_path_buf() });
    }
    if let Ok(published) = read_manifest(folder) {
        return Ok(published.sha256);
    }
    let mut names: Vec<String> = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|source| at(folder, source))?
        .into_iter()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_model_file(name) && folder.join(name).is_file())
        .collect();
    names.sort();
    let mut sum = Sha256::new();
    for name in names {
        let (_, of_file) = file_sum(&folder.join(&name))?;
        sum.update(format!("{name}\0{of_file}\n"));
    }
    Ok(hex(&sum.finalize()))
}

/// Reads a folder's manifest, without looking at the files.
///
/// Errors: `Io` where there is none, `Unsound` where it cannot be understood.
pub fn read_manifest(folder: &Path) -> Result<Published, SumError> {
    let path = folder.join(MANIFEST);
    let file = File::open(&path).map_err(|source| at(&path, source))?;
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes).map_err(|source| at(&path, source))?;
    let unsound = |problem: String| SumError::Unsound { path: folder.to_path_buf(), problem };
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| unsound(error.to_string()))?;
    if manifest.format != FORMAT || !manifest.paths_stay_inside() {
        return Err(unsound("its manifest is not one of ours".into()));
    }
    let of_files: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    Ok(Published { manifest, sha256: hex(&Sha256::digest(&bytes)), bytes: of_files })
}

/// Reads a folder's manifest and holds every file against it.
///
/// Errors: the first thing that differs.
pub fn verify(folder: &Path) -> Result<Published, SumError> {
    verify_some(folder, |_| true)
}

/// As [`verify`], of the files that are `wanted` by their names alone.
///
/// Errors: the first thing that differs.
pub fn verify_some(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Published, SumError> {
    let published = read_manifest(folder)?;
    for file in published.manifest.files.iter().filter(|file| wanted(&file.path)) {
        let (bytes, sha256) = file_sum(&folder.join(&file.path))?;
        if bytes != file.bytes || sha256 != file.sha256 {
            return Err(SumError::Unsound {
                path: folder.to_path_buf(),
                problem: format!("{} has another size or sum", file.path),
            });
        }
    }
    Ok(published)
}

/// The manifest, and every file's size: what can be looked at for all checkpoints at once.
///
/// Errors: the first thing that differs.
pub fn sized(folder: &Path) -> Result<Published, SumError> {
    let published = read_manifest(folder)?;
    for file in &published.manifest.files {
        let found = fs::metadata(folder.join(&file.path)).map(|facts| facts.len()).ok();
        if found != Some(file.bytes) {
            let problem = format!("{} is missing or has another size", file.path);
            return Err(SumError::Unsound { path: folder.to_path_buf(), problem });
        }
    }
    Ok(published)
}

/// A file's length and sum.
pub fn file_sum(path: &Path) -> Result<(u64, String), SumError> {
    let mut file = File::open(path).map_err(|source| at(path, source))?;
    let mut sum = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => return Ok((bytes, hex(&sum.finalize()))),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(at(path, source)),
        };
        sum.update(&chunk[..read]);
        bytes += read as u64;
    }
}

fn at(path: &Path, source: io::Error) -> SumError {
    SumError::Io { path: path.to_path_buf(), source }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sum of a text.
#[must_use]
pub fn text_sum(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Eight digits that name the settings under which policies are compared: answers under other
/// settings are never set against each other. Which scorers there are is not among them: one that
/// comes later scores the answers that stand.
#[must_use]
pub fn evaluation_settings(config: &CheckedConfig) -> String {
    let evaluate = &config.evaluate;
    // A label says whose it is, and not where its score was read.
    let read_last = |scorer: &&ScorerConfig| scorer.score_position == ScorePosition::Last;
    let last: BTreeSet<&str> =
        config.label.scorers.iter().filter(read_last).map(|scorer| scorer.name.as_str()).collect();
    let text =
        format!("{:?} {} {} {last:?}", evaluate.temperatures, evaluate.n, evaluate.max_new_tokens,);
    text_sum(&text)[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::manifest::{FileSum, FolderKind};

    use super::*;

    #[test]
    fn a_model_is_known_by_its_files_and_not_by_its_place_or_its_readme() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        for folder in [&a, &b] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("config.json"), "{}").unwrap();
            fs::write(folder.join("model.safetensors"), [1, 2, 3]).unwrap();
        }
        fs::write(b.join("README.md"), "words").unwrap();
        assert_eq!(model_sum(&a).unwrap(), model_sum(&b).unwrap());
        fs::write(b.join("model.safetensors"), [1, 2, 4]).unwrap();
        assert_ne!(model_sum(&a).unwrap(), model_sum(&b).unwrap());
        assert!(matches!(model_sum(root.path()), Err(SumError::NoModel { .. })));
    }

    #[test]
    fn a_new_scorer_scores_the_answers_that_stand_but_no_label_changes_its_position() {
        let settings = |scorers: &str| {
            let text = format!("[run]\npolicy = 'p'\n{scorers}");
            evaluation_settings(&CheckedConfig::from_text(&text, Path::new("/")).unwrap())
        };
        let one = "[[label.scorers]]\nname = 'a'\nmodel = 'm'\n";
        let two = format!("{one}[[label.scorers]]\nname = 'b'\nmodel = 'n'\ncanary = true\n");
        assert_eq!(settings(one), settings(&two));
        assert_ne!(settings(&two), settings(&format!("{two}score_position = 'last'\n")));
    }

    #[test]
    fn an_altered_file_is_found() {
        let root = tempfile::tempdir().unwrap();
        let weights = root.path().join("model.safetensors");
        fs::write(&weights, [1, 2, 3]).unwrap();
        let (bytes, sha256) = file_sum(&weights).unwrap();
        let manifest = Manifest {
            format: FORMAT,
            kind: FolderKind::Policy,
            unit: "1/train".into(),
            parent_sha256: String::new(),
            architecture: String::new(),
            steps: 1,
            files: vec![FileSum { path: "model.safetensors".into(), bytes, sha256 }],
        };
        fs::write(root.path().join(MANIFEST), manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(verify(root.path()).unwrap().bytes, 3);
        fs::write(&weights, [1, 2, 4]).unwrap();
        assert!(matches!(verify(root.path()), Err(SumError::Unsound { .. })));
    }
}
