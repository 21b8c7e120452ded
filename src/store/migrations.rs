//! The migrations of the top-level folder, in order: a list that is only appended to.
//!
//! In: a connection. Out: the same at the newest schema, each step in one IMMEDIATE transaction with
//! its `user_version`, after a copy of what it was. May not enter: rewriting of a released file.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use crate::backup;
use crate::error::{Result, StoreError};

/// The text `rLHF`, at offset 68 of every database of ours.
pub const APPLICATION_ID: u32 = 0x724C_4846;

const STEPS: &[&str] = &[include_str!("../../migrations/0001_initial.sql")];

/// The newest schema version.
#[must_use]
pub fn newest() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// Brings a new database to the newest version.
pub(crate) fn migrate(conn: &mut Connection) -> Result<()> {
    by_steps(conn, STEPS)
}

/// Brings a database that is in use to the newest version. One that would change is copied first, into
/// `backups` and under the name of its version; gives the place of that copy.
pub(crate) fn upgrade(conn: &mut Connection, backups: &Path) -> Result<Option<PathBuf>> {
    upgrade_by(conn, backups, STEPS)
}

pub(crate) fn upgrade_by(
    conn: &mut Connection,
    backups: &Path,
    steps: &[&str],
) -> Result<Option<PathBuf>> {
    let found: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let newest = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    if found >= newest {
        return Ok(None);
    }
    // A copy that an earlier start made of the same version is of the same rows: nothing else writes
    // before the migration is done.
    let copy = backup::into_place(conn, backups, &format!("schema-{found:04}.db"))?;
    by_steps(conn, steps)?;
    Ok(Some(copy))
}

fn by_steps(conn: &mut Connection, steps: &[&str]) -> Result<()> {
    let found: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (version, step) in (1_u32..).zip(steps).skip_while(|(version, _)| *version <= found) {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.commit().map_err(StoreError::at_commit)?;
    }
    Ok(())
}
