//! When a training saves its own state: every so many steps or seconds, whichever comes first.
//!
//! In: learners and step rows, after each step. Out: saved states ([`super::state`]). May not enter: what
//! a state holds.

use std::time::{Duration, Instant};

use super::error::TrainError;
use super::learners::Learners;
use super::state::{self, StatePlace};
use super::steps::StepRow;

/// Saves every so many steps or seconds.
pub(super) struct Saver {
    place: Option<StatePlace>,
    saved_step: u64,
    saved_at: Instant,
}

impl Saver {
    pub(super) fn new(place: Option<StatePlace>, step: u64) -> Self {
        Self { place, saved_step: step, saved_at: Instant::now() }
    }

    /// Saves where it is time to.
    pub(super) fn save_if_due(
        &mut self,
        learners: &Learners,
        rows: &[StepRow],
    ) -> Result<(), TrainError> {
        let Some(place) = &self.place else { return Ok(()) };
        let steps = rows.len() as u64 - self.saved_step;
        let by_steps = place.every_steps > 0 && steps >= place.every_steps;
        let by_time =
            place.every_s > 0 && self.saved_at.elapsed() >= Duration::from_secs(place.every_s);
        if by_steps || by_time { self.save(learners, rows) } else { Ok(()) }
    }

    /// Saves what is newer than the last save.
    pub(super) fn save(&mut self, learners: &Learners, rows: &[StepRow]) -> Result<(), TrainError> {
        let Some(place) = &self.place else { return Ok(()) };
        if rows.len() as u64 > self.saved_step {
            state::save(place, learners, rows)?;
            self.saved_step = rows.len() as u64;
            self.saved_at = Instant::now();
        }
        Ok(())
    }
}
