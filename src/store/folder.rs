//! Folders that a power cut does not take.
//!
//! In: paths. Out: folders whose names last. A sync of a file says nothing of its name, nor one of a
//! folder of that folder's own name: each new name lasts once the folder that it stands in is synced.
//! May not enter: what lies in them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes a folder, and what is missing above it; each new name lasts before anything is put below.
///
/// # Errors
/// The system's.
pub fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make(parent)?;
    match fs::create_dir(folder) {
        // Made by somebody else meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    match sync(parent) {
        // It may be written but not read, and so not synced: no reason not to work in it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Makes the names in a folder last.
///
/// # Errors
/// The system's.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_with_all_above_them_and_again_without_harm() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b/c");
        make(&folder).unwrap();
        make(&folder).unwrap();
        assert!(folder.is_dir());
        fs::write(root.path().join("file"), "").unwrap();
        make(&root.path().join("file")).unwrap_err();
        make(&root.path().join("file/below")).unwrap_err();
    }
}
