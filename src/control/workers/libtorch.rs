//! Where libtorch lies, and which program a lease starts.
//!
//! In: the configuration's wishes, the environment, the place of this binary. Out: paths that were
//! looked at. The daemon only looks: it never links or loads libtorch itself. May not enter:
//! starting anything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The worker's file name.
pub const WORKER: &str = "rlhfd-worker-torch";

/// Libraries that a place must hold to be taken for libtorch's; the same in `rlhfd-worker`.
const LIBRARIES: [&str; 2] = ["libtorch_cpu.so", "libc10.so"];

/// No folder held libtorch.
#[derive(Debug, thiserror::Error)]
#[error(
    "libtorch was found in none of: {}; run `rlhfd-fetch-libtorch` (in the source folder `make setup`), or set [worker] libtorch or RLHFD_LIBTORCH to a folder with libtorch_cpu.so and libc10.so, in itself or in its lib",
    .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct NoLibtorch {
    /// Every folder that was looked at, in order.
    pub looked: Vec<PathBuf>,
}

/// The folders to look into, in order: the configuration's, the environment's, the installation's,
/// the project's.
#[must_use]
pub fn candidates(
    configured: Option<&Path>,
    environment: Option<OsString>,
    origin: &Path,
) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::with_capacity(5);
    folders.extend(configured.map(Path::to_path_buf));
    folders.extend(environment.filter(|v| !v.is_empty()).map(PathBuf::from));
    folders.push(origin.join("../lib/rlhfd/libtorch"));
    // A binary of target/debug or target/release: the project's folder is two above. A test binary
    // lies one deeper, in target/debug/deps.
    folders.push(origin.join("../../libtorch"));
    folders.push(origin.join("../../../libtorch"));
    folders
}

/// Takes the first folder that holds libtorch and gives the place of its libraries: its `lib`, or the
/// folder itself, as `rlhfd-worker` does.
///
/// Errors: `NoLibtorch` with every folder that was looked at.
pub fn find(folders: &[PathBuf]) -> Result<PathBuf, NoLibtorch> {
    folders
        .iter()
        .flat_map(|folder| [folder.join("lib"), folder.clone()])
        .find(|place| LIBRARIES.iter().all(|name| place.join(name).exists()))
        .ok_or_else(|| NoLibtorch { looked: folders.to_vec() })
}

/// The program of a lease: the configured one, else the worker beside this binary, else the
/// installation's, else whatever the path finds.
#[must_use]
pub fn program(configured: Option<&Path>, origin: &Path) -> PathBuf {
    if let Some(path) = configured {
        return path.to_path_buf();
    }
    [origin.join(WORKER), origin.join("../lib/rlhfd").join(WORKER), origin.join("..").join(WORKER)]
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(WORKER))
}

/// The folder of the running binary, symlinks resolved.
#[must_use]
pub fn origin() -> PathBuf {
    std::env::current_exe()
        .and_then(|exe| exe.canonicalize())
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf))
        .unwrap_or_else(|| PathBuf::from("/usr/bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(root: &Path, name: &str) -> PathBuf {
        let folder = root.join(name);
        std::fs::create_dir_all(folder.join("lib")).unwrap();
        for name in LIBRARIES {
            std::fs::write(folder.join("lib").join(name), b"").unwrap();
        }
        folder
    }

    #[test]
    fn the_configuration_wins_over_the_environment_and_that_over_the_project() {
        let root = tempfile::tempdir().unwrap();
        let origin = root.path().join("target/debug");
        std::fs::create_dir_all(&origin).unwrap();
        let project = folder(root.path(), "libtorch");
        let environment = folder(root.path(), "environment");
        let configured = folder(root.path(), "configured");
        let both = candidates(Some(&configured), Some(environment.clone().into()), &origin);
        assert_eq!(find(&both).unwrap(), configured.join("lib"));
        let one = candidates(None, Some(environment.clone().into()), &origin);
        assert_eq!(find(&one).unwrap(), environment.join("lib"));
        let none = candidates(None, None, &origin);
        assert_eq!(
            find(&none).unwrap().canonicalize().unwrap(),
            project.join("lib").canonicalize().unwrap()
        );
    }

    #[test]
    fn a_folder_may_hold_the_libraries_itself_but_must_hold_them_all() {
        let root = tempfile::tempdir().unwrap();
        let flat = root.path().to_path_buf();
        std::fs::write(flat.join(LIBRARIES[0]), b"").unwrap();
        assert!(find(std::slice::from_ref(&flat)).is_err());
        std::fs::write(flat.join(LIBRARIES[1]), b"").unwrap();
        assert_eq!(find(std::slice::from_ref(&flat)).unwrap(), flat);
    }

    #[test]
    fn a_missing_libtorch_names_every_folder() {
        let said = find(&[PathBuf::from("/nowhere/a"), PathBuf::from("/nowhere/b")])
            .unwrap_err()
            .to_string();
        assert!(said.contains("/nowhere/a, /nowhere/b") && said.contains("make setup"), "{said}");
    }
}
