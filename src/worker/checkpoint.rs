//! Folders that stand or do not stand: written aside, hashed, synced, renamed.
//!
//! In: an empty folder that the caller fills. Out: the same folder under its final name, with a
//! manifest of sums, or nothing at all under that name. The order is files → manifest → sync of
//! each file and folder → rename → sync of the parent, so that a power cut at any point leaves
//! either no folder or a whole one. May not enter: tensors, what the files mean.

mod model_sum;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rlhfd_protocol::manifest::{FORMAT, FileSum, FolderKind, MANIFEST, Manifest};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use model_sum::{is_published, model_sum};

/// Files that a folder may hold; a folder with more is not one of ours.
const FILES_MAX: usize = 10_000;

/// The largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// A folder that could not be written, or that does not hold what its manifest says.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The system refused a read or a write.
    #[error("{path} cannot be {action}\ntry: {}", mend(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// "written", "read", "synced", …
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something lies where the folder should go.
    #[error("{path} exists already\ntry: another --out, or remove it first")]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// A path that cannot name a new folder.
    #[error("{path} cannot name a new folder\ntry: a path that ends in a folder's name")]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// A folder that does not hold what its manifest says.
    #[error("{path} is not as its manifest says: {problem}\ntry: restore it, or remove it")]
    Unsound {
        /// The folder.
        path: PathBuf,
        /// The first thing that does not fit.
        problem: String,
    },
}

impl CheckpointError {
    /// Whether a folder is altered or incomplete, which no disk that recovers mends.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Unsound { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Exists { .. } | Self::NoName { .. } => false,
        }
    }

    /// Whether the fault lies with the place (full, failing or read-only disk), not with the work.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        match self {
            Self::Io { source, .. } => disk_fault(source),
            Self::Exists { .. } | Self::NoName { .. } | Self::Unsound { .. } => false,
        }
    }
}

/// Whether an I/O error says that the disk is full, failing or read-only.
#[must_use]
pub fn disk_fault(error: &io::Error) -> bool {
    use io::ErrorKind;
    // 5 is EIO, which has no kind of its own.
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::FileTooLarge
    ) || error.raw_os_error() == Some(5)
}

fn mend(error: &io::Error) -> &'static str {
    if disk_fault(error) {
        "free space on this disk, or name a folder on another one"
    } else {
        "check that the folder exists and that this user may write to it"
    }
}

/// What a manifest says besides its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// What the folder is.
    pub kind: FolderKind,
    /// The natural key of the unit that makes it; empty in file mode.
    pub unit: String,
    /// The parent checkpoint's manifest sum; empty where there is none.
    pub parent_sha256: String,
    /// The architecture as config.json names it.
    pub architecture: String,
    /// Optimiser steps made.
    pub steps: u64,
}

/// A folder that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The sum of manifest.json, which names the folder's contents.
    pub sha256: String,
    /// Bytes of all files, manifest included.
    pub bytes: u64,
    /// What it holds.
    pub manifest: Manifest,
}

/// A folder in the making, beside its final place (and so on the same file system). Dropped
/// unpublished, it is removed.
#[derive(Debug)]
pub struct Draft {
    out: PathBuf,
    aside: PathBuf,
    parent: PathBuf,
    published: bool,
}

impl Draft {
    /// Opens an empty folder beside `out`. What an earlier attempt left half-written there is
    /// removed: only one unit ever writes to a place.
    ///
    /// # Errors
    /// [`CheckpointError::Exists`] where `out` is anything but an empty folder, else what the
    /// system says.
    pub fn begin(out: &Path) -> Result<Self, CheckpointError> {
        let name = out
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| CheckpointError::NoName { path: out.to_owned() })?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if out.symlink_metadata().is_ok() && !is_empty_folder(out) {
            return Err(CheckpointError::Exists { path: out.to_owned() });
        }
        let aside = parent.join(format!(".{name}.partial"));
        make_folder(&parent).map_err(io_error(&parent, "created"))?;
        if aside.symlink_metadata().is_ok() {
            fs::remove_dir_all(&aside).map_err(io_error(&aside, "removed"))?;
        }
        fs::create_dir(&aside).map_err(io_error(&aside, "created"))?;
        Ok(Self { out: out.to_owned(), aside, parent, published: false })
    }

    /// The folder to fill.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.aside
    }

    /// Writes one file of the folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.aside.join(name);
        write_file(&path, bytes).map_err(io_error(&path, "written"))
    }

    /// Hashes and syncs what was written, and moves it to its place in one step.
    ///
    /// # Errors
    /// What the system says; nothing then stands under the final name.
    pub fn publish(mut self, heading: Heading) -> Result<Standing, CheckpointError> {
        let mut names = Vec::new();
        let mut folders = vec![self.aside.clone()];
        collect(&self.aside, "", &mut names, &mut folders)?;
        names.sort();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = self.aside.join(&name);
            let (bytes, sha256) = hash_and_sync(&path)?;
            files.push(FileSum { path: name, bytes, sha256 });
        }
        let manifest = Manifest {
            format: FORMAT,
            kind: heading.kind,
            unit: heading.unit,
            parent_sha256: heading.parent_sha256,
            architecture: heading.architecture,
            steps: heading.steps,
            files,
        };
        let path = self.aside.join(MANIFEST);
        let text = manifest.to_bytes().map_err(|e| CheckpointError::Io {
            path: path.clone(),
            action: "written",
            source: io::Error::other(e),
        })?;
        write_file(&path, &text).map_err(io_error(&path, "written"))?;
        sync(&path)?;
        // Innermost first, so that a folder's entry is durable only when its contents are.
        for folder in folders.iter().rev() {
            sync(folder)?;
        }
        // An empty folder at the place is replaced by the rename; anything else makes it fail.
        fs::rename(&self.aside, &self.out).map_err(io_error(&self.out, "renamed to"))?;
        self.published = true;
        sync(&self.parent)?;
        Ok(standing(manifest, &text))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // A failure here is harmless: the next attempt removes what is left.
            let _ = fs::remove_dir_all(&self.aside);
        }
    }
}

/// Reads a folder's manifest and holds every file against it.
///
/// # Errors
/// [`CheckpointError::Unsound`] with the first thing that does not fit.
pub fn verify(folder: &Path) -> Result<Standing, CheckpointError> {
    verify_some(folder, |_| true)
}

/// As [`verify`], of the files that are `wanted` by their names.
///
/// # Errors
/// As [`verify`].
pub fn verify_some(
    folder: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Standing, CheckpointError> {
    let unsound = |problem: String| CheckpointError::Unsound { path: folder.to_owned(), problem };
    let path = folder.join(MANIFEST);
    let text = read_bounded(&path, MANIFEST_BYTES_MAX)?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| unsound(format!("manifest.json cannot be parsed ({error})")))?;
    if manifest.format != FORMAT {
        return Err(unsound(format!("format {} is not {FORMAT}", manifest.format)));
    }
    if !manifest.paths_stay_inside() || manifest.files.len() > FILES_MAX {
        return Err(unsound("its file names lead out of the folder, or are too many".into()));
    }
    for file in manifest.files.iter().filter(|file| wanted(&file.path)) {
        let path = folder.join(&file.path);
        let size = fs::metadata(&path).map_err(|e| unsound(format!("{}: {e}", file.path)))?.len();
        if size != file.bytes {
            return Err(unsound(format!("{} has {size} bytes, not {}", file.path, file.bytes)));
        }
        let (_, sha256) = hash(&path)?;
        if sha256 != file.sha256 {
            return Err(unsound(format!("{} has the sum {sha256}", file.path)));
        }
    }
    Ok(standing(manifest, &text))
}

/// What an earlier attempt has published at this place: its manifest, held against every file, and its name
/// durable, which that attempt may not have come to. None where nothing stands there; a folder that is not
/// as its manifest says is removed, since only one unit ever writes to a place and can write it again.
///
/// # Errors
/// What the system says.
pub fn published(out: &Path) -> Result<Option<Standing>, CheckpointError> {
    if !out.is_dir() || is_empty_folder(out) {
        return Ok(None);
    }
    match verify(out) {
        Ok(standing) => {
            sync(out.parent().unwrap_or(out))?;
            Ok(Some(standing))
        }
        Err(error @ CheckpointError::Unsound { .. }) => {
            tracing::warn!(%error, "what was published is made again");
            fs::remove_dir_all(out).map_err(io_error(out, "removed"))?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The sum of a file and its size.
///
/// # Errors
/// What the system says.
pub fn hash(path: &Path) -> Result<(u64, String), CheckpointError> {
    let mut file = File::open(path).map_err(io_error(path, "read"))?;
    hash_reader(&mut file).map_err(io_error(path, "read"))
}

/// Lowercase hexadecimal of a sum of bytes in memory.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn standing(manifest: Manifest, text: &[u8]) -> Standing {
    let bytes = manifest.files.iter().map(|file| file.bytes).sum::<u64>() + text.len() as u64;
    Standing { sha256: sha256_hex(text), bytes, manifest }
}

fn hash_and_sync(path: &Path) -> Result<(u64, String), CheckpointError> {
    let mut file = File::open(path).map_err(io_error(path, "read"))?;
    let sum = hash_reader(&mut file).map_err(io_error(path, "read"))?;
    file.sync_all().map_err(io_error(path, "synced"))?;
    Ok(sum)
}

fn hash_reader(reader: &mut impl Read) -> io::Result<(u64, String)> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hex(&sum.finalize())));
        }
        sum.update(&buffer[..read]);
        bytes += read as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CheckpointError> {
    let file = File::open(path).map_err(io_error(path, "read"))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(io_error(path, "read"))?;
    Ok(bytes)
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)
}

/// Makes a folder, and what is missing above it, whose names last.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_folder(parent)?;
    match fs::create_dir(folder) {
        // Made by somebody else meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    File::open(parent)?.sync_all()
}

fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error(path, "synced"))
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) && !path.is_symlink()
}

/// Lists files (relative names) and folders below `folder`, refusing what is neither.
fn collect(
    folder: &Path,
    prefix: &str,
    names: &mut Vec<String>,
    folders: &mut Vec<PathBuf>,
) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder, "read"))? {
        let entry = entry.map_err(io_error(folder, "read"))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(io_error(&path, "read"))?;
        if kind.is_dir() {
            folders.push(path.clone());
            collect(&path, &format!("{name}/"), names, folders)?;
        } else {
            names.push(name);
        }
        if names.len() + folders.len() > FILES_MAX {
            let problem = format!("it holds more than {FILES_MAX} files");
            return Err(CheckpointError::Unsound { path: folder.to_owned(), problem });
        }
    }
    Ok(())
}

fn io_error<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
