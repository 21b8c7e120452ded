//! Memory factors: how far the memory plan is off, by kind of work, as finished units measured it.
//!
//! In: what a unit was planned to need, and its peak. Out: a factor for the next plan: it rises at once
//! and falls slowly, for too little costs an attempt and too much only room. May not enter: the plan.

use rlhfd_domain::WorkKind;
use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::open::{Reader, Store};
use crate::rows::int;

/// No single measurement may make a work unplaceable, or let it be planned with next to nothing.
const FACTORS: (f64, f64) = (0.25, 4.0);
/// The share of a fall that is believed at once.
const FALL: f64 = 0.125;

impl Reader {
    /// By what the plan for this work is to be multiplied; 1 before anything was measured.
    pub fn memory_factor(&self, work: WorkKind) -> Result<f64> {
        let factor = self
            .conn
            .prepare_cached("SELECT factor FROM memory_factors WHERE work = ?1")?
            .query_row([work.label()], |row| row.get(0))
            .optional()?;
        Ok(factor.unwrap_or(1.0))
    }
}

impl Store {
    /// A unit whose plan was `planned_mib`, as it was before any correction, had this peak.
    pub fn measure_memory(
        &mut self,
        work: WorkKind,
        planned_mib: u64,
        peak_mib: u64,
        now_ms: i64,
    ) -> Result<()> {
        let known = self.memory_factor(work)?;
        #[expect(clippy::cast_precision_loss, reason = "MiB are far below 2^52")]
        let measured = peak_mib as f64 / planned_mib.max(1) as f64;
        let factor = if measured > known { measured } else { known + (measured - known) * FALL };
        let factor = factor.clamp(FACTORS.0, FACTORS.1);
        self.transact(|conn| {
            conn.prepare_cached(
                "INSERT INTO memory_factors (work, factor, planned_mib, peak_mib, measured, at_ms)
                 VALUES (?1, ?2, ?3, ?4, 1, ?5)
                 ON CONFLICT (work) DO UPDATE SET factor = excluded.factor,
                     planned_mib = excluded.planned_mib, peak_mib = excluded.peak_mib,
                     measured = measured + 1, at_ms = excluded.at_ms",
            )?
            .execute(params![
                work.label(),
                factor,
                int(planned_mib),
                int(peak_mib),
                now_ms
            ])?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_rises_at_once_falls_slowly_and_keeps_its_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let work = WorkKind::Generate;
        assert_eq!(store.memory_factor(work).unwrap(), 1.0);
        store.measure_memory(work, 1000, 1500, 7).unwrap();
        assert_eq!(store.memory_factor(work).unwrap(), 1.5);
        // Another that was handed out before the first ended adds nothing to that.
        store.measure_memory(work, 1000, 1500, 7).unwrap();
        assert_eq!(store.memory_factor(work).unwrap(), 1.5);
        // Three quarters of the plan sufficed: 1.5 + (0.75 - 1.5) / 8.
        store.measure_memory(work, 1000, 750, 8).unwrap();
        assert_eq!(store.memory_factor(work).unwrap(), 1.406_25);
        store.measure_memory(work, 1, 1_000_000, 9).unwrap();
        assert_eq!(store.memory_factor(work).unwrap(), 4.0);
        assert_eq!(store.memory_factor(WorkKind::Score).unwrap(), 1.0);
    }
}
