//! What can go wrong with the store: what, where, how to mend; and what a daemon that nobody watches
//! should do about it.
//!
//! In: SQLite's errors and broken rules. Out: `StoreError`. May not enter: retries.

use std::path::PathBuf;

use rlhfd_domain::conservation::Broken;
use rlhfd_domain::{IllegalEvent, UnitId, UnknownWord};
use rusqlite::ErrorCode;

/// The store's results.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What is wrong with the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// No room left.
    Full,
    /// Reading or writing failed.
    Io,
    /// It cannot be written.
    ReadOnly,
}

/// What to do about an error when nobody is there to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again, a bounded number of times, with back-off.
    Retry,
    /// Record it against the request or row, and go on.
    Skip,
    /// Pause with the reason, until the place or a person mends it.
    Pause,
    /// Nobody knows whether the commit happened: the process must end, and the journal be read anew.
    Abort,
}

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or file could not be made or read.
    #[error("cannot {action} {path}: check that the folder exists and that its owner may write it")]
    Place {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Some file that is no SQLite database.
    #[error("{path} is no SQLite database; move it away, or name another state folder")]
    NotADatabase {
        /// Where.
        path: PathBuf,
    },
    /// A database of another program.
    #[error(
        "{path} is a database of another application (id {application_id:#010x}); move it away, or \
         name another state folder"
    )]
    Foreign {
        /// Where.
        path: PathBuf,
        /// The id in its header.
        application_id: u32,
    },
    /// A database that a newer rlhfd wrote.
    #[error(
        "{path} has schema version {found}, and this rlhfd knows up to {known}: install the newer \
         rlhfd again"
    )]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that we know.
        known: u32,
    },
    /// A damaged database.
    #[error("{path} is damaged ({detail}): restore a backup, or move it away to begin anew")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The place cannot be written or read.
    #[error("the database's disk {}", match kind {
        DiskKind::Full => "is full: make room, and it goes on by itself",
        DiskKind::Io => "failed: see the kernel's log, and it goes on by itself when it is well",
        DiskKind::ReadOnly => "is read-only: mount it writable, and it goes on by itself",
    })]
    Disk {
        /// How.
        kind: DiskKind,
        /// SQLite's word.
        #[source]
        source: rusqlite::Error,
    },
    /// Input or output failed within a commit.
    #[error("the disk failed within a commit, so that nobody knows whether it happened")]
    OutcomeUnknown {
        /// SQLite's word.
        #[source]
        source: rusqlite::Error,
    },
    /// Another connection held a lock for too long.
    #[error("the database was busy for too long: end long readers such as an open sqlite3 shell")]
    Busy {
        /// SQLite's word.
        #[source]
        source: rusqlite::Error,
    },
    /// What was asked for is not there.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Its name or number.
        name: String,
    },
    /// A request that contradicts what is stored.
    #[error("{what} `{name}` {why}")]
    Conflict {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// The contradiction, and what to do.
        why: String,
    },
    /// A unit that already has its finished attempt.
    #[error("unit {unit} is done already: a second result is not taken")]
    AlreadyFinished {
        /// The unit.
        unit: UnitId,
    },
    /// An event that cannot happen to a unit.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    /// A unit's result that does not fit its plan.
    #[error("the result of unit {unit} does not fit it: {why}")]
    Misfit {
        /// The unit.
        unit: UnitId,
        /// How it differs.
        why: String,
    },
    /// A law that does not hold. The transaction was rolled back.
    #[error("a conservation law does not hold for iteration {iteration}: {broken}")]
    Conservation {
        /// The iteration.
        iteration: u32,
        /// The law.
        broken: Broken,
    },
    /// A row with a word that this version does not know.
    #[error("a row of the database cannot be read")]
    Word(#[from] UnknownWord),
    /// Anything else that SQLite refused: a defect of ours.
    #[error("SQLite refused a statement")]
    Sqlite(#[source] rusqlite::Error),
}

impl StoreError {
    /// What to do when nobody watches.
    #[must_use]
    pub const fn disposition(&self) -> Disposition {
        match self {
            Self::Busy { .. } => Disposition::Retry,
            Self::OutcomeUnknown { .. } => Disposition::Abort,
            Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::AlreadyFinished { .. }
            | Self::Illegal(_)
            | Self::Misfit { .. } => Disposition::Skip,
            Self::Place { .. }
            | Self::NotADatabase { .. }
            | Self::Foreign { .. }
            | Self::Newer { .. }
            | Self::Damaged { .. }
            | Self::Disk { .. }
            | Self::Conservation { .. }
            | Self::Word(_)
            | Self::Sqlite(_) => Disposition::Pause,
        }
    }

    /// An error within COMMIT: a failing disk leaves open whether the commit happened. A full one
    /// does not: the frames that make a commit were not written.
    pub(crate) fn at_commit(source: rusqlite::Error) -> Self {
        match Self::from(source) {
            Self::Disk { kind: DiskKind::Io, source } => Self::OutcomeUnknown { source },
            other => other,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Disk { kind: DiskKind::Full, source },
            Some(ErrorCode::SystemIoFailure) => Self::Disk { kind: DiskKind::Io, source },
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => {
                Self::Disk { kind: DiskKind::ReadOnly, source }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { source },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path: PathBuf::from("the database"), detail: source.to_string() }
            }
            Some(_) | None => Self::Sqlite(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn a_full_disk_pauses_and_a_failed_sync_in_a_commit_aborts() {
        let full = StoreError::at_commit(failure(ffi::SQLITE_FULL));
        assert!(matches!(full, StoreError::Disk { kind: DiskKind::Full, .. }));
        assert_eq!(full.disposition(), Disposition::Pause);
        let failed_sync = StoreError::at_commit(failure(ffi::SQLITE_IOERR_FSYNC));
        assert_eq!(failed_sync.disposition(), Disposition::Abort);
        let failed_read = StoreError::from(failure(ffi::SQLITE_IOERR_READ));
        assert!(matches!(failed_read, StoreError::Disk { kind: DiskKind::Io, .. }));
        let read_only = StoreError::from(failure(ffi::SQLITE_READONLY));
        assert!(matches!(read_only, StoreError::Disk { kind: DiskKind::ReadOnly, .. }));
        assert_eq!(StoreError::from(failure(ffi::SQLITE_BUSY)).disposition(), Disposition::Retry);
    }
}
