//! The write-ahead log: how large it is, and folding it back into the database.
//!
//! In: nothing. Out: [`Log`]. Readers hold their part of the log: what was written after a reader began
//! cannot be folded back until it ends. May not enter: who reads, when to look.

use std::fs;
use std::time::Duration;

use crate::error::Result;
use crate::open::{BUSY, Store};

/// The log after it was folded back as far as readers let it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Bytes of its file.
    pub bytes: u64,
    /// Whether all of it is in the database; false: a reader holds the rest.
    pub folded: bool,
}

impl Store {
    /// Bytes of the log's file; 0 where there is none.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        let mut name = self.path().as_os_str().to_owned();
        name.push("-wal");
        fs::metadata(name).map_or(0, |facts| facts.len())
    }

    /// Folds the log back as far as readers let it, and cuts the file where nothing of it is needed.
    /// It waits for no reader.
    pub fn fold_log(&mut self) -> Result<Log> {
        let (pages, moved): (i64, i64) =
            self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get(1)?, row.get(2)?))
            })?;
        let folded = moved >= pages;
        if folded {
            self.conn.busy_timeout(Duration::ZERO)?;
            let cut = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            self.conn.busy_timeout(BUSY)?;
            cut?;
        }
        Ok(Log { bytes: self.log_bytes(), folded })
    }
}
