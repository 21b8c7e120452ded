//! Where things lie: configuration, state folder, socket, and the folders within the state folder.
//!
//! In: command line and environment. Out: [`Places`], and the lock that makes the state folder ours.
//! A client never has a say in any of these. May not enter: what is written there.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rlhfd_store::folder;
use rustix::fs::FlockOperation;

use crate::rights::{self, Groups};

/// The longest path that a Unix socket's address holds.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The folder of all runs, in the state folder.
const RUNS: &str = "runs";

/// What can be wrong with a place. [`PlaceError::exit_code`] tells the service manager.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No configuration anywhere.
    #[error("no configuration at {}; write one (configs/rlhfd.toml shows every knob), or name it by --config", .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or "))]
    NoConfig {
        /// Where one was looked for.
        looked: Vec<PathBuf>,
    },
    /// Neither an option nor the environment names a place.
    #[error("no place for the {what}: the environment names none; use {option}")]
    Nowhere {
        /// What was to be placed.
        what: &'static str,
        /// The option that names it.
        option: &'static str,
    },
    /// The socket's path is too long for an address.
    #[error(
        "the socket path {path} has {bytes} bytes, and an address holds {SOCKET_PATH_BYTES_MAX}; name a shorter one by --socket"
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Another daemon has the state folder.
    #[error(
        "another rlhfd works on the state folder {state}; stop that one first, or name another folder by --state"
    )]
    Locked {
        /// The folder.
        state: PathBuf,
    },
    /// A folder could not be made or opened.
    #[error("the place {path} cannot be used; look at its owner, its mode and the disk")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl PlaceError {
    /// The daemon's exit code: 75 (try later) for a lock and an ill disk, 78 (configuration) else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Locked { .. } => crate::exit::BUSY,
            Self::Io { source, .. } => crate::exit::of_place(source),
            Self::NoConfig { .. } | Self::Nowhere { .. } | Self::SocketPath { .. } => {
                crate::exit::CONFIG
            }
        }
    }
}

/// What the command line asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--state`
    pub state: Option<PathBuf>,
    /// `--socket`, or RLHFD_SOCKET
    pub socket: Option<PathBuf>,
}

/// Where everything lies. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The configuration file.
    pub config: PathBuf,
    /// The state folder.
    pub state: PathBuf,
    /// The socket.
    pub socket: PathBuf,
}

impl Places {
    /// Finds all three by option, environment and habit.
    ///
    /// Errors: `NoConfig`, `Nowhere`, `SocketPath`, and `Io` where the working folder is gone.
    pub fn find(
        asked: &Asked,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, PlaceError> {
        let home = |rest: &str| variable("HOME").map(|home| PathBuf::from(home).join(rest));
        let state = match (&asked.state, variable("STATE_DIRECTORY")) {
            (Some(path), _) => path.clone(),
            // systemd joins several by colons; the first is ours.
            (None, Some(paths)) => {
                PathBuf::from(paths.to_string_lossy().split(':').next().unwrap_or_default())
            }
            (None, None) => home(".local/state/rlhfd")
                .ok_or(PlaceError::Nowhere { what: "state folder", option: "--state" })?,
        };
        let socket = match &asked.socket {
            Some(path) => path.clone(),
            None => default_socket(&variable)
                .ok_or(PlaceError::Nowhere { what: "socket", option: "--socket" })?,
        };
        let found = Self {
            config: absolute(&Self::config(asked, home)?)?,
            state: absolute(&state)?,
            socket: absolute(&socket)?,
        };
        let bytes = found.socket.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(PlaceError::SocketPath { path: found.socket, bytes });
        }
        Ok(found)
    }

    fn config(
        asked: &Asked,
        home: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<PathBuf, PlaceError> {
        let looked: Vec<PathBuf> = match &asked.config {
            Some(path) => vec![path.clone()],
            None => {
                [Some(PathBuf::from("/etc/rlhfd/rlhfd.toml")), home(".config/rlhfd/rlhfd.toml")]
                    .into_iter()
                    .flatten()
                    .collect()
            }
        };
        match looked.iter().find(|path| path.is_file()) {
            Some(path) => Ok(path.clone()),
            None => Err(PlaceError::NoConfig { looked }),
        }
    }

    /// The lock file.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state.join("db/rlhfd.db")
    }

    /// Copies of the database.
    #[must_use]
    pub fn backups(&self) -> PathBuf {
        self.state.join(rlhfd_store::open::BACKUPS)
    }

    /// Uploads while they arrive.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.state.join("uploads")
    }

    /// The lines of a training job's upload: written by the verb that takes it, read by the job's train
    /// unit, removed once the job's folder stands.
    #[must_use]
    pub fn upload_file(&self, upload: i64) -> PathBuf {
        self.uploads().join(format!("{upload}.jsonl"))
    }

    /// Folders without a row that fit no open unit.
    #[must_use]
    pub fn orphans(&self) -> PathBuf {
        self.state.join("orphans")
    }

    /// A run's own folder.
    #[must_use]
    pub fn run(&self, run: &str) -> PathBuf {
        self.state.join(RUNS).join(run)
    }

    /// A run's checkpoints.
    #[must_use]
    pub fn checkpoints(&self, run: &str) -> PathBuf {
        self.run(run).join("checkpoints")
    }

    /// An iteration's immutable training input.
    #[must_use]
    pub fn iteration(&self, run: &str, iteration: u32) -> PathBuf {
        self.run(run).join("iterations").join(format!("{iteration:04}"))
    }

    /// A training job's immutable input.
    #[must_use]
    pub fn job(&self, run: &str, kind: &str, name: &str) -> PathBuf {
        self.run(run).join("jobs").join(format!("{kind}-{name}"))
    }

    /// A train unit's own state.
    #[must_use]
    pub fn unit_state(&self, run: &str, unit: i64) -> PathBuf {
        self.run(run).join("state").join(unit.to_string())
    }

    /// A path of a row: as it stands, or below the state folder where it is relative.
    #[must_use]
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.state.join(path)
    }

    /// How a path is written into a row: relative where it lies in the state folder.
    #[must_use]
    pub fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.state).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// Whether a row's path lies among what the daemon publishes itself, with a manifest. A model that the
    /// user keeps elsewhere in the state folder is the user's own, as one outside of it.
    #[must_use]
    pub fn is_published(path: &str) -> bool {
        Path::new(path).starts_with(RUNS)
    }

    /// Makes the state folder's own folders, the database's for `groups`, and takes the lock. The daemon
    /// keeps the file open for as long as it lives; the kernel drops the lock with it, however it ends.
    ///
    /// Errors: `Locked` where another daemon has it, `Io` else.
    pub fn lock(&self, groups: Groups) -> Result<File, PlaceError> {
        rights::make_state(&self.state).map_err(|source| io_at(&self.state, source))?;
        let database = self.state.join("db");
        rights::make_database(&database, groups.look).map_err(|s| io_at(&database, s))?;
        for place in [&self.uploads(), &self.orphans()] {
            folder::make(place).map_err(|source| io_at(place, source))?;
        }
        let path = self.lock_file();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| io_at(&path, source))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(PlaceError::Locked { state: self.state.clone() });
            }
            Err(errno) => return Err(io_at(&path, errno.into())),
        }
        Ok(file)
    }
}

fn io_at(path: &Path, source: io::Error) -> PlaceError {
    PlaceError::Io { path: path.to_path_buf(), source }
}

fn absolute(path: &Path) -> Result<PathBuf, PlaceError> {
    std::path::absolute(path).map_err(|source| io_at(path, source))
}

/// `/run/rlhfd` where it may be written (the service, or root), else the user's own folder.
fn default_socket(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let system = Path::new("/run/rlhfd");
    if rustix::process::geteuid().is_root() {
        // A folder that cannot be made is met again, with its reason, at the bind.
        let _ = fs::create_dir(system);
    }
    let usable = rustix::fs::access(system, rustix::fs::Access::WRITE_OK).is_ok();
    if usable {
        return Some(system.join("rlhfd.sock"));
    }
    variable("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("rlhfd.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(root: &Path) -> Asked {
        let config = root.join("rlhfd.toml");
        fs::write(&config, "").unwrap();
        Asked {
            config: Some(config),
            state: Some(root.join("state")),
            socket: Some(root.join("s")),
        }
    }

    #[test]
    fn a_second_daemon_on_the_folder_is_refused_and_the_first_leaves_it_free() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::find(&asked(root.path()), |_| None).unwrap();
        let first = places.lock(Groups::default()).unwrap();
        let refused = places.lock(Groups::default()).unwrap_err();
        assert!(matches!(refused, PlaceError::Locked { .. }));
        assert_eq!(refused.exit_code(), 75);
        drop(first);
        places.lock(Groups::default()).unwrap();
    }

    #[test]
    fn a_socket_path_that_no_address_holds_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut asked = asked(root.path());
        asked.socket = Some(root.path().join("x".repeat(120)));
        let error = Places::find(&asked, |_| None).unwrap_err();
        assert!(error.to_string().contains("107"), "{error}");
    }

    #[test]
    fn the_service_managers_folder_comes_before_the_home() {
        let root = tempfile::tempdir().unwrap();
        let mut asked = asked(root.path());
        asked.state = None;
        let places = Places::find(&asked, |name| match name {
            "STATE_DIRECTORY" => Some("/var/lib/rlhfd:/var/lib/other".into()),
            "HOME" => Some("/home/someone".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(places.state, Path::new("/var/lib/rlhfd"));
        assert_eq!(places.relative(&places.checkpoints("main")), "runs/main/checkpoints");
        assert_eq!(places.resolve("/models/x"), Path::new("/models/x"));
    }

    #[test]
    fn a_missing_configuration_says_where_it_was_looked_for() {
        let error = Places::find(
            &Asked { config: Some("/nowhere.toml".into()), ..Asked::default() },
            |_| Some("/x".into()),
        )
        .unwrap_err();
        assert!(error.to_string().contains("/nowhere.toml"), "{error}");
        assert_eq!(error.exit_code(), 78);
    }
}
