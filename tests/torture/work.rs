//! How long the work of each stage takes undisturbed, so that instants can be drawn uniformly over it.
//!
//! Comes in: the database of an undisturbed round. Goes out: for a part of a stage's work, after how many
//! of its units that is, and how long after.

use std::collections::BTreeMap;
use std::path::Path;

use rlhfd_tests::dump;

use crate::faults::{Moment, PARTS, STAGES};

/// Milliseconds of each unit, in the order in which they ended, by iteration and stage.
#[derive(Default)]
pub struct Work {
    units: BTreeMap<(u64, usize), Vec<u64>>,
    /// From a daemon's beginning until it serves.
    pub start_ms: u64,
}

impl Work {
    pub fn measured(database: &Path, start_ms: u64) -> Self {
        let mut work = Self { units: BTreeMap::new(), start_ms };
        let connection = dump::open(database);
        let mut statement = connection
            .prepare(
                "SELECT u.iteration, u.stage, max(a.ended_ms - a.started_ms, 1)
                 FROM attempts a JOIN units u ON u.id = a.unit_id
                 WHERE a.outcome = 'finished' AND u.iteration IS NOT NULL AND u.work <> 'probe'
                 ORDER BY a.ended_ms, a.id",
            )
            .expect("the attempts");
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))
            .expect("the attempts");
        for row in rows {
            let (iteration, stage, ms): (i64, String, i64) = row.expect("an attempt");
            if let Some(stage) = STAGES.iter().position(|known| *known == stage) {
                let units = work.units.entry((iteration.unsigned_abs(), stage)).or_default();
                units.push(ms.unsigned_abs());
            }
        }
        work
    }

    /// Whether nothing was measured yet.
    pub fn is_unknown(&self) -> bool {
        self.units.is_empty()
    }

    /// After how many done units of its stage a moment is, and how many milliseconds after that.
    pub fn instant(&self, moment: Moment) -> (u64, u64) {
        let key = (moment.iteration, moment.stage);
        let Some(units) = self.units.get(&key) else { return (0, 0) };
        let mut left = units.iter().sum::<u64>() * moment.part / PARTS;
        for (done, ms) in units.iter().enumerate() {
            if left < *ms {
                return (done as u64, left);
            }
            left -= ms;
        }
        (units.len() as u64, 0)
    }

    /// What was measured, in a line.
    pub fn told(&self) -> String {
        let of = |stage: usize| -> u64 {
            let own = self.units.iter().filter(|((_, own), _)| *own == stage);
            own.flat_map(|(_, units)| units).sum()
        };
        let all: Vec<String> =
            STAGES.iter().enumerate().map(|(n, name)| format!("{name} {} ms", of(n))).collect();
        format!("{}, start {} ms", all.join(", "), self.start_ms)
    }
}
