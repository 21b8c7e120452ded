//! The order of training: which examples make which step.
//!
//! In: how many examples (pairs, or blocks of conversations) there are, and the seed. Out: indices. Pure and keyed by (seed, epoch), so
//! that a resumed training finds its place from the step number alone, and nothing depends on how
//! often it was interrupted. May not enter: tensors, files.

use crate::philox::philox4x32;

/// How examples become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Examples in the training set.
    pub examples: usize,
    /// Examples of one optimiser step; an epoch's last step may have fewer.
    pub batch: usize,
    /// Passes over the examples.
    pub epochs: u64,
    /// The order within an epoch.
    pub order: Order,
}

/// The order of examples within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the file has them.
    AsGiven,
    /// Shuffled anew each epoch, by the seed.
    Shuffled { seed: u64 },
}

impl BatchPlan {
    /// Steps of one epoch: the last short batch is a step of its own.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.examples.div_ceil(self.batch.max(1)) as u64
    }

    /// Steps of the whole training.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch() * self.epochs
    }

    /// The examples of step `index` (from 0), in order.
    #[must_use]
    pub fn step_examples(&self, index: u64) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch().max(1);
        let order = self.epoch_order(index / per_epoch);
        let within = usize::try_from(index % per_epoch).unwrap_or(usize::MAX);
        let start = within.saturating_mul(self.batch).min(order.len());
        let end = start.saturating_add(self.batch).min(order.len());
        order[start..end].to_vec()
    }

    /// All examples in the order of `epoch` (from 0): Fisher and Yates' shuffle, drawn downwards.
    #[must_use]
    pub fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.examples).collect();
        if let Order::Shuffled { seed } = self.order {
            for last in (1..order.len()).rev() {
                let other = below(draw(seed, epoch, last as u64), last as u64 + 1);
                order.swap(last, usize::try_from(other).unwrap_or(last));
            }
        }
        order
    }
}

/// Sets the shuffle's numbers apart from all others of the same seed.
const SHUFFLE: u32 = 0x5348_5546;

/// One draw of the shuffle: 64 bits from (seed, epoch, place).
fn draw(seed: u64, epoch: u64, place: u64) -> u64 {
    let halves = |x: u64| [(x & 0xffff_ffff) as u32, (x >> 32) as u32];
    let ([place_low, place_high], [epoch_low, _]) = (halves(place), halves(epoch));
    let words = philox4x32([place_low, place_high, epoch_low, SHUFFLE], halves(seed));
    u64::from(words[0]) << 32 | u64::from(words[1])
}

/// A number below `limit` from 64 random bits (Lemire's multiplication; its bias is under 2⁻³²).
fn below(bits: u64, limit: u64) -> u64 {
    ((u128::from(bits) * u128::from(limit)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(examples: usize, batch: usize, order: Order) -> BatchPlan {
        BatchPlan { examples, batch, epochs: 2, order }
    }

    #[test]
    fn the_last_short_batch_is_a_step_of_its_own() {
        let plan = plan(7, 3, Order::AsGiven);
        assert_eq!((plan.steps_per_epoch(), plan.steps()), (3, 6));
        let steps: Vec<_> = (0..6).map(|step| plan.step_examples(step)).collect();
        assert_eq!(steps[..3], [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!(steps[3..], steps[..3]);
    }

    #[test]
    fn each_epoch_is_a_permutation_of_its_own() {
        let plan = plan(50, 8, Order::Shuffled { seed: 3 });
        let (one, two) = (plan.epoch_order(0), plan.epoch_order(1));
        assert_ne!(one, two);
        assert_ne!(one, (0..50).collect::<Vec<_>>());
        for order in [one.clone(), two] {
            let mut sorted = order;
            sorted.sort_unstable();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        let steps: Vec<usize> = (0..7).flat_map(|step| plan.step_examples(step)).collect();
        assert_eq!(steps, one);
        let other = BatchPlan { order: Order::Shuffled { seed: 4 }, ..plan };
        assert_ne!(other.epoch_order(0), one);
    }

    #[test]
    fn every_order_of_three_is_about_as_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            let order = plan(3, 1, Order::Shuffled { seed }).epoch_order(0);
            *counts.entry(order).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // 1000 each, deviation about 29: six deviations either way.
        assert!(counts.values().all(|count| (826..1174).contains(count)), "{counts:?}");
    }

    #[test]
    fn nothing_to_train_on_makes_no_step() {
        assert_eq!(plan(0, 4, Order::AsGiven).steps(), 0);
    }
}
