//! When a training saves its own state: every so many steps or seconds, whichever comes first, and when it
//! is to leave and has the time.
//!
//! In: learners and step rows, after each step. Out: saved states ([`super::state`]). May not enter: what
//! a state holds.

use std::time::{Duration, Instant};

use super::error::TrainError;
use super::learners::Learners;
use super::state::{self, StatePlace};
use super::steps::StepRow;

/// What a training's first save is reckoned with, written, hashed and synced: a disk of the slower sort. A
/// save that is begun and not ended in time loses nothing but the wait.
const BYTES_PER_S: u64 = 200 << 20;

/// Saves every so many steps or seconds.
pub(super) struct Saver {
    place: Option<StatePlace>,
    saved_step: u64,
    saved_at: Instant,
    /// How long the last save took.
    lasted: Option<Duration>,
}

impl Saver {
    pub(super) fn new(place: Option<StatePlace>, step: u64) -> Self {
        Self { place, saved_step: step, saved_at: Instant::now(), lasted: None }
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

    /// Saves what is newer than the last save, where that is done in the time that is left; no time given is
    /// all the time there is.
    pub(super) fn save_in_time(
        &mut self,
        learners: &Learners,
        rows: &[StepRow],
        left: Option<Duration>,
    ) -> Result<(), TrainError> {
        let needs = self.lasted.unwrap_or_else(|| by_size(state::bytes(learners)));
        if left.is_none_or(|left| fits(needs, left)) {
            return self.save(learners, rows);
        }
        tracing::warn!(
            "a save takes about {} s and {} s are left: the training goes on from step {}, not from {}",
            needs.as_secs(),
            left.unwrap_or_default().as_secs(),
            self.saved_step,
            rows.len()
        );
        Ok(())
    }

    /// Saves what is newer than the last save.
    fn save(&mut self, learners: &Learners, rows: &[StepRow]) -> Result<(), TrainError> {
        let Some(place) = &self.place else { return Ok(()) };
        if rows.len() as u64 > self.saved_step {
            let begun = Instant::now();
            state::save(place, learners, rows)?;
            self.lasted = Some(begun.elapsed());
            self.saved_step = rows.len() as u64;
            self.saved_at = Instant::now();
        }
        Ok(())
    }
}

/// How long a first save of so many bytes is reckoned to take.
fn by_size(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_S)
}

/// Whether what needs about so long is done in the time that is left: a disk that others use too is slower
/// than it was.
fn fits(needs: Duration, left: Duration) -> bool {
    needs.saturating_mul(3) / 2 < left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_that_would_hardly_end_in_time_is_not_begun() {
        let s = Duration::from_secs;
        assert!(fits(s(10), s(16)));
        assert!(!fits(s(10), s(15)));
        assert!(!fits(Duration::ZERO, Duration::ZERO), "no time is too little for anything");
    }

    #[test]
    fn a_first_save_is_reckoned_by_its_size() {
        assert_eq!(by_size(0), Duration::ZERO);
        assert_eq!(by_size(100 << 30), Duration::from_secs(512));
    }
}
