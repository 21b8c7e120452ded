//! Learning-rate schedule: the rate of each optimiser step, as transformers' schedulers give it.
//!
//! In: the base rate, the shape, the warm-up share and the number of steps planned. Out: the rate
//! that is applied at a step, counted from 0. Pure, so that a resumed training computes the same
//! rate from its step number alone. May not enter: tensors, files, time.

use rlhfd_config::Shape;

/// A schedule over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    base: f64,
    shape: Shape,
    warmup_steps: u64,
    steps: u64,
}

impl Schedule {
    /// A schedule that warms up over `ceil(warmup_ratio × steps)` steps.
    #[must_use]
    pub fn new(base: f64, shape: Shape, warmup_ratio: f64, steps: u64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "steps are bounded far below 2^52 and the ratio lies in [0, 1]"
        )]
        let warmup_steps = (warmup_ratio * steps as f64).ceil() as u64;
        Self { base, shape, warmup_steps, steps }
    }

    /// The rate of step `index` (from 0). With warm-up the first step's rate is 0.
    ///
    /// Source: `get_{cosine,linear}_schedule_with_warmup` and `get_constant_schedule_with_warmup`
    /// of transformers, which read the multiplier before the step is counted.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "steps are bounded far below 2^52")]
    pub fn rate(&self, index: u64) -> f64 {
        if index < self.warmup_steps {
            return self.base * (index as f64 / self.warmup_steps.max(1) as f64);
        }
        let after = (self.steps.saturating_sub(self.warmup_steps)).max(1) as f64;
        let factor = match self.shape {
            Shape::Cosine => {
                let progress = (index - self.warmup_steps) as f64 / after;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
            Shape::Linear => (self.steps.saturating_sub(index) as f64 / after).max(0.0),
            Shape::Constant => 1.0,
        };
        self.base * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, ratio: f64, steps: u64) -> Vec<f64> {
        let schedule = Schedule::new(1.0, shape, ratio, steps);
        (0..steps).map(|index| schedule.rate(index)).collect()
    }

    fn close(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (a, b) in found.iter().zip(wanted) {
            assert!((a - b).abs() < 1e-12, "{found:?} is not {wanted:?}");
        }
    }

    #[test]
    fn the_first_step_of_a_warm_up_has_rate_zero() {
        // 5 steps, ratio 0.25: ceil(1.25) = 2 warm-up steps, then 3 of decay.
        close(&rates(Shape::Linear, 0.25, 5), &[0.0, 0.5, 1.0, 2.0 / 3.0, 1.0 / 3.0]);
        // cos(0) = 1, cos(π/3) = 1/2, cos(2π/3) = −1/2.
        close(&rates(Shape::Cosine, 0.25, 5), &[0.0, 0.5, 1.0, 0.75, 0.25]);
        close(&rates(Shape::Constant, 0.25, 5), &[0.0, 0.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_base_rate() {
        close(&rates(Shape::Cosine, 0.0, 2), &[1.0, 0.5]);
        close(&rates(Shape::Linear, 0.0, 4), &[1.0, 0.75, 0.5, 0.25]);
        close(&rates(Shape::Constant, 0.0, 2), &[1.0, 1.0]);
    }

    #[test]
    fn a_schedule_that_is_all_warm_up_stays_finite() {
        close(&rates(Shape::Cosine, 1.0, 2), &[0.0, 0.5]);
    }
}
