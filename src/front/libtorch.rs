//! Chooses the folder that libtorch is taken from, and says what lies there.
//!
//! In: the candidates in their order. Out: a [`Choice`], or why there is none. Reads folders, loads
//! nothing: this program must work where no libtorch is.

use std::path::{Path, PathBuf};

/// The oldest NVIDIA driver (its first number) that CUDA 13 runs on.
pub const DRIVER_MIN: u32 = 580;
/// The version of libtorch that the worker is built for.
pub const VERSION: &str = "2.11.0";
const HOW_TO_GET: &str = "run `rlhfd-fetch-libtorch` where rlhfd is installed, `make setup` in its \
                          source folder, or set RLHFD_LIBTORCH to the folder of a libtorch 2.11.0 \
                          (PyPI's torch 2.11.0 holds one)";

/// Who named a folder, in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `[worker] libtorch` in this configuration file.
    Config(PathBuf),
    /// `RLHFD_LIBTORCH`.
    Environment,
    /// `../lib/rlhfd/libtorch` beside the binary.
    Installed,
    /// The folder of the source tree that the binary was built in.
    Project,
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(file) => write!(out, "[worker] libtorch in {}", file.display()),
            Self::Environment => out.write_str("RLHFD_LIBTORCH"),
            Self::Installed => out.write_str("the installed folder ../lib/rlhfd/libtorch"),
            Self::Project => out.write_str("the project's folder"),
        }
    }
}

/// A folder that may hold libtorch.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub folder: PathBuf,
    pub source: Source,
}

/// CPU only, or with CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Cpu,
    Cuda,
}

/// The folder that was taken.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What the candidate named.
    pub root: PathBuf,
    /// Where the shared libraries lie: the root itself or its `lib`.
    pub libraries: PathBuf,
    pub source: Source,
    pub build: Build,
    /// As the folder itself states it, where it does.
    pub version: Option<String>,
}

/// Why no folder was taken.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// A folder that somebody named on purpose holds no libtorch. Passing it over in silence would
    /// run another libtorch than the one asked for.
    #[error("{folder} ({named}) holds no libtorch_cpu.so, neither itself nor in lib/; correct it, or {HOW_TO_GET}", named = .source_name)]
    Named { folder: PathBuf, source_name: String },
    /// Nothing anywhere.
    #[error("libtorch is not found (looked into {looked}); {HOW_TO_GET}")]
    Nowhere { looked: String },
}

/// The first candidate that holds libtorch; one that was named on purpose must.
///
/// # Errors
/// See [`ChoiceError`].
pub fn choose(candidates: &[Candidate]) -> Result<Choice, ChoiceError> {
    for candidate in candidates {
        if let Some(libraries) = libraries_in(&candidate.folder) {
            let build =
                if libraries.join("libtorch_cuda.so").exists() { Build::Cuda } else { Build::Cpu };
            return Ok(Choice {
                version: stated_version(&candidate.folder),
                root: candidate.folder.clone(),
                libraries,
                source: candidate.source.clone(),
                build,
            });
        }
        if matches!(candidate.source, Source::Config(_) | Source::Environment) {
            return Err(ChoiceError::Named {
                folder: candidate.folder.clone(),
                source_name: candidate.source.to_string(),
            });
        }
    }
    let looked: Vec<_> = candidates.iter().map(|c| c.folder.display().to_string()).collect();
    Err(ChoiceError::Nowhere { looked: looked.join(", ") })
}

fn libraries_in(folder: &Path) -> Option<PathBuf> {
    [folder.join("lib"), folder.to_path_buf()]
        .into_iter()
        .find(|place| ["libtorch_cpu.so", "libc10.so"].iter().all(|name| place.join(name).exists()))
}

/// From what our set-up writes, from the file of a libtorch archive, or from that of Python's torch.
fn stated_version(folder: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(folder.join("rlhfd-setup.json")) {
        let mark: serde_json::Value = serde_json::from_str(&text).ok()?;
        return mark.get("libtorch")?.as_str().map(str::to_owned);
    }
    if let Ok(text) = std::fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = std::fs::read_to_string(folder.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ ="))?;
    Some(line.trim().trim_matches(['\'', '"']).to_owned())
}

/// What the machine has of NVIDIA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub present: bool,
    /// "580.65.06", where the driver tells.
    pub driver: Option<String>,
}

/// Looks at the device node and at what the driver's module says of itself.
pub fn look_for_gpu() -> Gpu {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    Gpu { present: Path::new("/dev/nvidia0").exists(), driver: driver_version(&text) }
}

/// The first word of the module's line that is a version number.
fn driver_version(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        word.contains('.')
            && word
                .split('.')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

/// What stands between a GPU that is there and its use: never a silent run on the CPU.
pub fn warning(choice: &Choice, gpu: &Gpu) -> Option<String> {
    if !gpu.present {
        return None;
    }
    if choice.build == Build::Cpu {
        return Some(format!(
            "this machine has an NVIDIA GPU, but the libtorch in {} is for CPU only, so the GPU \
             stays idle; run `rlhfd-fetch-libtorch --cuda` (in the source folder `scripts/setup \
             --cuda`), or pass --device cpu",
            choice.root.display()
        ));
    }
    let driver = gpu.driver.as_ref()?;
    let major: u32 = driver.split('.').next()?.parse().ok()?;
    (major < DRIVER_MIN).then(|| {
        format!(
            "the NVIDIA driver is {driver}, but libtorch {VERSION} for CUDA 13 needs {DRIVER_MIN} \
             or newer, so the GPU cannot be used; update the driver, or pass --device cpu"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(root: &Path, below: &str, names: &[&str]) -> PathBuf {
        let folder = root.join(below);
        std::fs::create_dir_all(&folder).unwrap();
        for name in names {
            std::fs::write(folder.join(name), "").unwrap();
        }
        folder
    }

    fn candidate(folder: &Path, source: Source) -> Candidate {
        Candidate { folder: folder.to_path_buf(), source }
    }

    const CPU: &[&str] = &["libtorch_cpu.so", "libc10.so"];

    #[test]
    fn the_first_that_holds_libtorch_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let empty = folder_with(root.path(), "a", &[]);
        folder_with(root.path(), "b/lib", CPU);
        let project = root.path().join("b");
        let choice =
            choose(&[candidate(&empty, Source::Installed), candidate(&project, Source::Project)])
                .unwrap();
        assert_eq!(choice.libraries, project.join("lib"));
        assert_eq!((choice.source, choice.build), (Source::Project, Build::Cpu));
    }

    #[test]
    fn a_folder_may_hold_the_libraries_itself() {
        let root = tempfile::tempdir().unwrap();
        let flat = folder_with(root.path(), "flat", CPU);
        std::fs::write(flat.join("libtorch_cuda.so"), "").unwrap();
        std::fs::write(flat.join("build-version"), "2.11.0+cu130\n").unwrap();
        let choice = choose(&[candidate(&flat, Source::Environment)]).unwrap();
        assert_eq!(choice.libraries, flat);
        assert_eq!(choice.build, Build::Cuda);
        assert_eq!(choice.version.as_deref(), Some("2.11.0+cu130"));
        std::fs::remove_file(flat.join("build-version")).unwrap();
        let python = "from typing import Optional\n__version__ = '2.9.1+cu128'\ndebug = False\n";
        std::fs::write(flat.join("version.py"), python).unwrap();
        assert_eq!(stated_version(&flat).as_deref(), Some("2.9.1+cu128"));
    }

    #[test]
    fn a_folder_named_on_purpose_is_never_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let good = folder_with(root.path(), "good", CPU);
        let wrong = root.path().join("wrong");
        for source in [Source::Environment, Source::Config("rlhfd.toml".into())] {
            let error = choose(&[candidate(&wrong, source), candidate(&good, Source::Project)])
                .unwrap_err();
            assert!(matches!(error, ChoiceError::Named { .. }));
            assert!(error.to_string().contains("wrong"));
        }
    }

    #[test]
    fn with_nothing_the_error_says_how_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        let error = choose(&[candidate(root.path(), Source::Project)]).unwrap_err();
        assert!(error.to_string().contains("make setup"));
    }

    #[test]
    fn both_kinds_of_driver_lines_are_read() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 2025\nGCC";
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build";
        assert_eq!(driver_version(closed).as_deref(), Some("570.86.15"));
        assert_eq!(driver_version(open).as_deref(), Some("580.82.07"));
        assert_eq!(driver_version(""), None);
    }

    #[test]
    fn a_gpu_that_would_stay_idle_is_told() {
        let choice = |build| Choice {
            root: "x".into(),
            libraries: "x".into(),
            source: Source::Project,
            build,
            version: None,
        };
        let gpu = |driver: &str| Gpu { present: true, driver: Some(driver.to_owned()) };
        assert!(warning(&choice(Build::Cpu), &gpu("580.1.2")).is_some());
        assert!(
            warning(&choice(Build::Cuda), &gpu("570.86.15"))
                .is_some_and(|w| w.contains("570.86.15"))
        );
        assert_eq!(warning(&choice(Build::Cuda), &gpu("580.1.2")), None);
        let none = Gpu { present: false, driver: None };
        assert_eq!(warning(&choice(Build::Cpu), &none), None);
    }
}
