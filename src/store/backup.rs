//! Backup and the whole check of integrity.
//!
//! In: a place for the copy. Out: a database of its own there, or what is wrong with this one.
//! May not enter: when to make one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::Backup;

use crate::error::{Result, StoreError};
use crate::open::{Reader, database};
use crate::{folder, probe};

/// Pages copied at once, between which others may write.
const PAGES: i32 = 1_000;
/// Findings that the check returns at most.
const FINDINGS_MAX: usize = 100;

/// The whole check of a state folder's database, by reading alone: the header and the version first,
/// then every page and every reference.
///
/// Errors: why it cannot be read at all (another application's, newer, damaged).
pub fn examine(state: &Path) -> Result<Vec<String>> {
    probe::check(&database(state))?;
    Reader::open(state)?.integrity()
}

/// Copies a database into a folder, which is made where it is missing. The name is there only once the
/// copy is whole; what stood under it is replaced.
pub(crate) fn into_place(conn: &Connection, folder: &Path, name: &str) -> Result<PathBuf> {
    let place = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Place { action, path, source }
    };
    folder::make(folder).map_err(place("make", folder))?;
    let whole = folder.join(name);
    let part = whole.with_extension("part");
    // Left by a copy that was cut off.
    let _ = std::fs::remove_file(&part);
    let made = copy(conn, &part).and_then(|()| {
        std::fs::rename(&part, &whole).map_err(place("rename", &part))?;
        folder::sync(folder).map_err(place("sync", folder))
    });
    if made.is_err() {
        // What is wrong was told; a piece that stays behind is not worth a second error.
        let _ = std::fs::remove_file(&part);
    }
    made.map(|()| whole)
}

fn copy(conn: &Connection, path: &Path) -> Result<()> {
    let mut copy = Connection::open(path)?;
    let backup = Backup::new(conn, &mut copy)?;
    backup.run_to_completion(PAGES, Duration::from_millis(5), None)?;
    drop(backup);
    copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    copy.close().map_err(|(_, error)| StoreError::from(error))?;
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|source| StoreError::Place {
        action: "sync",
        path: path.to_owned(),
        source,
    })
}

impl Reader {
    /// Copies the database, while it is in use, to a file that must not exist.
    pub fn backup_to(&self, path: &Path) -> Result<()> {
        if path.exists() {
            return Err(StoreError::Conflict {
                what: "backup",
                name: path.display().to_string(),
                why: "stands already: choose another place".to_owned(),
            });
        }
        copy(&self.conn, path)
    }

    /// As [`Self::backup_to`], in a folder that is made where it is missing and under a name of its
    /// own. The name is there only once the copy is whole.
    ///
    /// Errors: the place's; what was copied of a copy that failed is taken away again.
    pub fn backup_into(&self, folder: &Path, now_ms: i64) -> Result<PathBuf> {
        into_place(&self.conn, folder, &format!("rlhfd-{now_ms}.db"))
    }

    /// SQLite's whole check and that of the foreign keys: what is wrong, one sentence each; empty is
    /// well. It reads the whole file.
    pub fn integrity(&self) -> Result<Vec<String>> {
        let mut check = self.conn.prepare(&format!("PRAGMA integrity_check({FINDINGS_MAX})"))?;
        let mut findings: Vec<String> =
            check.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        findings.retain(|finding| finding != "ok");
        let mut keys =
            self.conn.prepare("SELECT \"table\", parent FROM pragma_foreign_key_check")?;
        let mut rows = keys.query([])?;
        while let Some(row) = rows.next()? {
            let (table, parent): (String, String) = (row.get(0)?, row.get(1)?);
            findings.push(format!("a row of {table} points to no row of {parent}"));
            if findings.len() >= 2 * FINDINGS_MAX {
                break;
            }
        }
        Ok(findings)
    }
}
