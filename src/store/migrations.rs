//! The migrations of the top-level folder, in order: a list that is only appended to.
//!
//! In: a connection. Out: the same at the newest schema, each step in one IMMEDIATE transaction with
//! its `user_version`. May not enter: rewriting of a released file.

use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Result, StoreError};

/// The text `rLHF`, at offset 68 of every database of ours.
pub const APPLICATION_ID: u32 = 0x724C_4846;

const STEPS: &[&str] = &[include_str!("../../migrations/0001_initial.sql")];

/// The newest schema version.
#[must_use]
pub fn newest() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// Brings a database of ours to the newest version; returns the version that it had.
pub(crate) fn migrate(conn: &mut Connection) -> Result<u32> {
    let found: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (version, step) in (1_u32..).zip(STEPS).skip_while(|(version, _)| *version <= found) {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.commit().map_err(StoreError::at_commit)?;
    }
    Ok(found)
}
