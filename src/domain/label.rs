//! Labels: a finite score, or the reason why there is none; and how the scores of several scorers
//! become one.
//!
//! In: what scorers returned. Out: `Score`, by `compare` that of comparisons, and by `combine` and
//! `penalty` the combined score that pairing goes by. May not enter: which model gave a score.

pub mod combine;
pub mod compare;
pub mod correlation;
pub mod penalty;

/// A finite score of a reward model, unit-free. Only differences within one scorer mean anything.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Score(f64);

/// A score that is none.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the score {found} is not finite: its response is set aside")]
pub struct NotFinite {
    /// What the scorer returned.
    pub found: f64,
}

impl Score {
    /// Checks a score once, at the edge.
    pub fn new(value: f64) -> Result<Self, NotFinite> {
        if value.is_finite() { Ok(Self(value)) } else { Err(NotFinite { found: value }) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_finite() {
        assert!(Score::new(f64::NAN).is_err());
        assert!(Score::new(f64::NEG_INFINITY).is_err());
        assert_eq!(Score::new(-1.5).unwrap().get().to_bits(), (-1.5_f64).to_bits());
    }
}
