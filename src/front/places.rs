//! Where a libtorch may be named or lie: configuration, environment, beside the binary.
//!
//! In: the environment and one configuration file. Out: candidates in their order. Only
//! `[worker] libtorch` is read from the file; the daemon's own reader checks the rest.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::libtorch::{Candidate, Source};

/// A configuration larger than this is not one.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// All candidates. `config` is the file that the user named; without one the usual places are
/// looked into.
///
/// # Errors
/// A configuration file is there but cannot be read.
pub fn candidates(origin: &Path, config: Option<&Path>) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    let file = match config {
        Some(file) => Some(file.to_path_buf()),
        None => usual_configs().into_iter().find(|file| file.exists()),
    };
    if let Some(file) = file
        && let Some(folder) = libtorch_of(&file)?
    {
        found.push(Candidate { folder, source: Source::Config(file) });
    }
    if let Some(folder) = env::var_os("RLHFD_LIBTORCH").filter(|value| !value.is_empty()) {
        found.push(Candidate { folder: folder.into(), source: Source::Environment });
    }
    found.push(Candidate {
        folder: origin.join("../lib/rlhfd/libtorch"),
        source: Source::Installed,
    });
    found.push(Candidate { folder: origin.join("../../libtorch"), source: Source::Project });
    for candidate in &mut found {
        // A folder that is not there keeps its name as it was given, for the message.
        if let Ok(resolved) = candidate.folder.canonicalize() {
            candidate.folder = resolved;
        }
    }
    Ok(found)
}

fn usual_configs() -> Vec<PathBuf> {
    let home = env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let users = home.map(|home| home.join("rlhfd/rlhfd.toml"));
    users.into_iter().chain([PathBuf::from("/etc/rlhfd/rlhfd.toml")]).collect()
}

/// `[worker] libtorch`, relative paths taken from the file's folder; an empty one counts as none.
fn libtorch_of(file: &Path) -> Result<Option<PathBuf>> {
    let reading = || format!("the configuration {} cannot be read", file.display());
    let size = file.metadata().with_context(reading)?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(anyhow!("{} has {size} bytes: it is no configuration", file.display()));
    }
    let text = std::fs::read_to_string(file).with_context(reading)?;
    let table: toml::Table = text
        .parse()
        .with_context(|| format!("the configuration {} is not TOML", file.display()))?;
    let Some(value) = table.get("worker").and_then(|worker| worker.get("libtorch")) else {
        return Ok(None);
    };
    let folder = value.as_str().ok_or_else(|| {
        anyhow!("[worker] libtorch in {} must be a text: the folder of libtorch", file.display())
    })?;
    if folder.is_empty() {
        return Ok(None);
    }
    let beside = file.parent().unwrap_or(Path::new("."));
    Ok(Some(beside.join(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rlhfd.toml");
        std::fs::write(&file, text).unwrap();
        (folder, file)
    }

    #[test]
    fn the_config_comes_first_and_relative_paths_are_relative_to_it() {
        let (folder, file) = config("[worker]\nlibtorch = \"torch\"\n");
        let found = candidates(Path::new("/opt/rlhfd/bin"), Some(&file)).unwrap();
        assert_eq!(found[0].folder, folder.path().join("torch"));
        assert_eq!(found[0].source, Source::Config(file));
        let last: Vec<_> = found.iter().rev().take(2).map(|c| c.source.clone()).collect();
        assert_eq!(last, [Source::Project, Source::Installed]);
        assert_eq!(found[found.len() - 1].folder, Path::new("/opt/rlhfd/bin/../../libtorch"));
    }

    #[test]
    fn a_config_that_names_none_is_passed_over() {
        for text in ["", "[worker]\nlibtorch = \"\"\n", "[run]\nseed = 1\n"] {
            let (_folder, file) = config(text);
            assert_eq!(libtorch_of(&file).unwrap(), None);
        }
    }

    #[test]
    fn a_config_that_cannot_be_used_is_an_error() {
        let (_folder, file) = config("[worker]\nlibtorch = 3\n");
        assert!(libtorch_of(&file).is_err());
        let (_folder, file) = config("not toml");
        assert!(libtorch_of(&file).is_err());
        assert!(libtorch_of(Path::new("/nowhere/rlhfd.toml")).is_err());
    }
}
