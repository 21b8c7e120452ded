//! What held-out preferences say of a trained reward model.
//!
//! In: figures by source. Out: rows of `training_reports`. May not enter: folders, JSON.

use rlhfd_domain::UnitId;
use rlhfd_domain::train::HeldOut;
use rusqlite::params;

use crate::error::Result;
use crate::open::{Reader, Store};
use crate::rows::{count, int};

impl Store {
    /// Keeps the figures of a train unit, in place of those that an earlier try left.
    pub fn keep_reports(&mut self, unit: UnitId, figures: &[HeldOut]) -> Result<()> {
        self.transact(|conn| {
            conn.execute("DELETE FROM training_reports WHERE unit_id = ?1", [unit.get()])?;
            let mut add = conn.prepare_cached(
                "INSERT INTO training_reports (unit_id, source, pairs, accuracy, calibration_error,
                     responses, length_correlation)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for of in figures {
                add.execute(params![
                    unit.get(),
                    of.source,
                    int(of.pairs),
                    of.accuracy,
                    of.calibration_error,
                    int(of.responses),
                    of.length_correlation,
                ])?;
            }
            Ok(())
        })
    }
}

impl Reader {
    /// The figures of a train unit: those over all first, then by source.
    pub fn reports(&self, unit: UnitId) -> Result<Vec<HeldOut>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT source, pairs, accuracy, calibration_error, responses, length_correlation
             FROM training_reports WHERE unit_id = ?1 ORDER BY source",
        )?;
        let rows = statement.query_map([unit.get()], |row| {
            Ok(HeldOut {
                source: row.get(0)?,
                pairs: count(row.get(1)?),
                accuracy: row.get(2)?,
                calibration_error: row.get(3)?,
                responses: count(row.get(4)?),
                length_correlation: row.get(5)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
