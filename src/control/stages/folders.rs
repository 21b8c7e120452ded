//! The folders that control gives to training: written aside, synced, renamed, never changed.
//!
//! In: pairs of the store, or an uploaded file, and settings. Out: a folder with pairs.jsonl (or
//! preferences.jsonl), settings.toml and manifest.json: the one contract for any trainer; an update's has
//! rescore.jsonl beside them, by which a trainer may see that its models are the right ones. It holds no
//! time and no path. Everything here blocks: call it on the blocking pool. May not enter: tensors.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rlhfd_protocol::manifest::{FORMAT, FileSum, FolderKind, MANIFEST, Manifest};
use rlhfd_store::{StoredPair, TrainingPair};
use serde::Serialize;

use super::sums::{self, SumError};

/// A pair of pairs.jsonl. A trainer needs the first six keys; the others say where it comes from.
#[derive(Debug, Serialize)]
struct PairLine<'a> {
    prompt_ids: &'a [u32],
    chosen_ids: &'a [u32],
    rejected_ids: &'a [u32],
    reference_logprob_chosen: f64,
    reference_logprob_rejected: f64,
    weight: f64,
    iteration: u32,
    ordinal: u64,
    rank: u64,
}

/// A pair of rescore.jsonl: a line of pairs.jsonl with the log-probs of each token that are stored of
/// both sides.
#[derive(Debug, Serialize)]
struct StoredLine<'a> {
    #[serde(flatten)]
    pair: PairLine<'a>,
    /// Null of an offline pair.
    sample_chosen: Option<u32>,
    sample_rejected: Option<u32>,
    /// Null where the policy did not write the response.
    policy_logprobs_chosen: Option<&'a [f32]>,
    policy_logprobs_rejected: Option<&'a [f32]>,
    reference_logprobs_chosen: &'a [f32],
    reference_logprobs_rejected: &'a [f32],
}

/// A folder that is being written, beside the place where it will stand.
#[derive(Debug)]
pub struct Draft {
    target: PathBuf,
    aside: PathBuf,
}

impl Draft {
    /// Begins anew: what an earlier try left is removed.
    ///
    /// Errors: the system's.
    pub fn begin(target: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        rlhfd_store::folder::make(parent)?;
        let aside = parent.join(format!(".{}.part", name.to_string_lossy()));
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::create_dir(&aside)?;
        Ok(Self { target: target.to_path_buf(), aside })
    }

    /// Opens one of its files for writing.
    pub fn file(&self, name: &str) -> io::Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(self.aside.join(name))?))
    }

    /// Writes the manifest, syncs files and folder, renames, syncs the parent. A folder that stands
    /// already is kept where it is the same, else replaced: only the unit that owns the place
    /// writes there, and it does so before any trainer reads it.
    ///
    /// Errors: the system's.
    pub fn publish(
        self,
        kind: FolderKind,
        unit: &str,
        parent_sha256: &str,
    ) -> Result<(), SumError> {
        let io = |source| SumError::Io { path: self.aside.clone(), source };
        let manifest = self.manifest(kind, unit, parent_sha256)?;
        let bytes = manifest.to_bytes().map_err(|error| io(error.into()))?;
        if fs::read(self.target.join(MANIFEST)).is_ok_and(|standing| standing == bytes)
            && sums::verify(&self.target).is_ok()
        {
            return fs::remove_dir_all(&self.aside).map_err(io);
        }
        self.rename(&bytes).map_err(io)
    }

    fn rename(&self, manifest: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.aside.join(MANIFEST))?;
        file.write_all(manifest)?;
        drop(file);
        for entry in fs::read_dir(&self.aside)? {
            File::open(entry?.path())?.sync_all()?;
        }
        rlhfd_store::folder::sync(&self.aside)?;
        if self.target.exists() {
            fs::remove_dir_all(&self.target)?;
        }
        fs::rename(&self.aside, &self.target)?;
        if let Some(parent) = self.target.parent() {
            rlhfd_store::folder::sync(parent)?;
        }
        Ok(())
    }

    fn manifest(
        &self,
        kind: FolderKind,
        unit: &str,
        parent_sha256: &str,
    ) -> Result<Manifest, SumError> {
        let io = |source| SumError::Io { path: self.aside.clone(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.aside).map_err(io)? {
            let entry = entry.map_err(io)?;
            let (bytes, sha256) = sums::file_sum(&entry.path())?;
            let path = entry.file_name().to_string_lossy().into_owned();
            files.push(FileSum { path, bytes, sha256 });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Manifest {
            format: FORMAT,
            kind,
            unit: unit.to_owned(),
            parent_sha256: parent_sha256.to_owned(),
            architecture: String::new(),
            steps: 0,
            files,
        })
    }
}

/// Writes one pair as a line.
pub fn write_pair(out: &mut impl Write, pair: &TrainingPair) -> io::Result<()> {
    write_line(out, &line_of(pair))
}

/// Writes one pair with what is stored of its tokens.
pub fn write_stored(out: &mut impl Write, stored: &StoredPair) -> io::Result<()> {
    let line = StoredLine {
        pair: line_of(&stored.pair),
        sample_chosen: stored.samples.map(|samples| samples[0]),
        sample_rejected: stored.samples.map(|samples| samples[1]),
        policy_logprobs_chosen: stored.policy[0].as_deref(),
        policy_logprobs_rejected: stored.policy[1].as_deref(),
        reference_logprobs_chosen: &stored.reference[0],
        reference_logprobs_rejected: &stored.reference[1],
    };
    write_line(out, &line)
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn line_of(pair: &TrainingPair) -> PairLine<'_> {
    PairLine {
        prompt_ids: &pair.prompt_ids,
        chosen_ids: &pair.chosen_ids,
        rejected_ids: &pair.rejected_ids,
        reference_logprob_chosen: pair.reference_chosen,
        reference_logprob_rejected: pair.reference_rejected,
        weight: pair.weight,
        iteration: pair.iteration,
        ordinal: pair.ordinal,
        rank: u64::from(pair.rank),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(target: &Path, text: &str) {
        let draft = Draft::begin(target).unwrap();
        draft.file("settings.toml").unwrap().write_all(text.as_bytes()).unwrap();
        draft.publish(FolderKind::Iteration, "1/train", "ab").unwrap();
    }

    #[test]
    fn a_folder_stands_whole_and_writing_it_again_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("iterations/0001");
        write(&target, "beta = 0.1\n");
        let first = sums::verify(&target).unwrap();
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&target).unwrap());
        let before = inode();
        write(&target, "beta = 0.1\n");
        assert_eq!((sums::verify(&target).unwrap(), inode()), (first.clone(), before));
        assert_eq!(first.manifest.unit, "1/train");
        assert_eq!(fs::read_dir(root.path().join("iterations")).unwrap().count(), 1);
    }

    #[test]
    fn a_half_written_or_altered_folder_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("0001");
        drop(Draft::begin(&target).unwrap());
        write(&target, "beta = 0.1\n");
        fs::write(target.join("settings.toml"), "beta = 9\n").unwrap();
        write(&target, "beta = 0.1\n");
        sums::verify(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("settings.toml")).unwrap(), "beta = 0.1\n");
    }
}
