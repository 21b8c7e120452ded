//! Batch plans: which items a unit covers and how they are computed together.
//!
//! In: a number of items, a batch size, a token budget. Out: `BatchPlan`s. On a CPU the bits of a
//! unit depend on its batches, so a plan keeps them: ranges begin at a multiple of `batch_items`, and
//! neither unit size nor splitting moves a boundary. Only when the last single batch must be cut are
//! its items computed in other company; such a plan is `replanned`.
//! May not enter: what the items are.

use std::ops::Range;

/// Items `from..to` of a draw, in batches of `batch_items` counted from `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchPlan {
    /// The first item's ordinal.
    pub from: u64,
    /// One after the last item's ordinal; above `from`.
    pub to: u64,
    /// Items computed together; at least 1.
    pub batch_items: u64,
    /// Whether a batch was cut, so that its items stand outside the bit promise.
    pub replanned: bool,
}

/// Why numbers are no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("items {from}..{to} in batches of {batch_items} are no plan: it needs items and a batch")]
pub struct PlanError {
    /// First item.
    pub from: u64,
    /// One after the last.
    pub to: u64,
    /// Batch size asked for.
    pub batch_items: u64,
}

impl BatchPlan {
    /// A plan over `from..to`.
    pub fn new(from: u64, to: u64, batch_items: u64) -> Result<Self, PlanError> {
        if from < to && batch_items > 0 {
            Ok(Self { from, to, batch_items, replanned: false })
        } else {
            Err(PlanError { from, to, batch_items })
        }
    }

    /// How many items it covers.
    #[must_use]
    pub const fn items(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// How many batches that makes.
    #[must_use]
    pub const fn batches(&self) -> u64 {
        if self.batch_items == 0 { 0 } else { self.items().div_ceil(self.batch_items) }
    }

    /// The ranges computed together, in order.
    pub fn batch_ranges(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let plan = *self;
        (0..plan.batches()).map(move |batch| {
            let from = plan.from + batch * plan.batch_items;
            from..(from + plan.batch_items).min(plan.to)
        })
    }

    /// The two halves of a plan, along a batch boundary while it has more than one batch, else through
    /// the middle of its only batch. A single item has no halves.
    #[must_use]
    pub fn halves(&self) -> Option<(Self, Self)> {
        if self.items() < 2 {
            return None;
        }
        if self.batches() > 1 {
            let middle = self.from + self.batches().div_ceil(2) * self.batch_items;
            return Some((Self { to: middle, ..*self }, Self { from: middle, ..*self }));
        }
        let middle = self.from + self.items().div_ceil(2);
        let cut = |from: u64, to: u64| Self { from, to, batch_items: to - from, replanned: true };
        Some((cut(self.from, middle), cut(middle, self.to)))
    }

    /// The same items in batches of half the size, at least one item each; none where they are computed
    /// one by one already. They stand outside the bit promise then.
    #[must_use]
    pub const fn in_smaller_batches(&self) -> Option<Self> {
        let together =
            if self.batch_items < self.items() { self.batch_items } else { self.items() };
        match together {
            0 | 1 => None,
            _ => Some(Self { batch_items: together / 2, replanned: true, ..*self }),
        }
    }

    /// Whether it has items in common with `other`.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.from < other.to && other.from < self.to
    }
}

/// How many items a unit takes so that it stays within a token budget: whole batches, at least one.
#[must_use]
pub fn unit_items(unit_tokens: u64, tokens_per_item: u64, batch_items: u64) -> u64 {
    let batch = batch_items.max(1);
    let fitting = unit_tokens / tokens_per_item.max(1);
    (fitting / batch).max(1) * batch
}

/// Cuts `from..to` into plans of `unit_items` items (rounded up to whole batches). `from` should be a
/// multiple of `batch_items`, so that boundaries do not depend on the cut.
pub fn cut(
    from: u64,
    to: u64,
    batch_items: u64,
    unit_items: u64,
) -> Result<Vec<BatchPlan>, PlanError> {
    if batch_items == 0 || from > to {
        return Err(PlanError { from, to, batch_items });
    }
    let step = unit_items.max(1).div_ceil(batch_items) * batch_items;
    let mut plans = Vec::new();
    let mut at = from;
    while at < to {
        let end = at.saturating_add(step).min(to);
        plans.push(BatchPlan::new(at, end, batch_items)?);
        at = end;
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn single_items(plan: BatchPlan, leaves: &mut Vec<BatchPlan>) {
        match plan.halves() {
            Some((left, right)) => {
                single_items(left, leaves);
                single_items(right, leaves);
            }
            None => leaves.push(plan),
        }
    }

    proptest! {
        #[test]
        fn cutting_covers_all_items_once_on_batch_boundaries(
            to in 0_u64..500, batch in 1_u64..20, unit in 0_u64..90
        ) {
            let plans = cut(0, to, batch, unit).unwrap();
            let mut at = 0;
            for plan in &plans {
                prop_assert_eq!(plan.from, at);
                prop_assert_eq!(plan.from % batch, 0);
                at = plan.to;
            }
            prop_assert_eq!(at, to);
        }

        #[test]
        fn neither_unit_size_nor_halving_moves_a_batch(
            to in 1_u64..400, batch in 1_u64..20, unit in 1_u64..90
        ) {
            let whole: Vec<_> = BatchPlan::new(0, to, batch).unwrap().batch_ranges().collect();
            let cut_ranges: Vec<_> = cut(0, to, batch, unit).unwrap().iter()
                .flat_map(BatchPlan::batch_ranges).collect();
            prop_assert_eq!(&whole, &cut_ranges);
            for plan in cut(0, to, batch, unit).unwrap() {
                if let Some((left, right)) = plan.halves() {
                    if plan.batches() > 1 {
                        let halves: Vec<_> =
                            left.batch_ranges().chain(right.batch_ranges()).collect();
                        prop_assert_eq!(plan.batch_ranges().collect::<Vec<_>>(), halves);
                        prop_assert!(!left.replanned && !right.replanned);
                    } else {
                        prop_assert!(left.replanned && right.replanned);
                    }
                }
            }
        }

        #[test]
        fn halving_to_the_end_keeps_every_item_once(
            from in 0_u64..50, items in 1_u64..300, batch in 1_u64..20
        ) {
            let plan = BatchPlan::new(from * batch, from * batch + items, batch).unwrap();
            let mut leaves = Vec::new();
            single_items(plan, &mut leaves);
            let kept: Vec<u64> = leaves.iter().map(|l| l.from).collect();
            prop_assert_eq!(kept, (plan.from..plan.to).collect::<Vec<_>>());
            prop_assert!(leaves.iter().all(|l| l.items() == 1));
        }
    }

    #[test]
    fn a_budget_gives_whole_batches() {
        assert_eq!(unit_items(1000, 100, 4), 8); // 10 items fit: two batches of 4.
        assert_eq!(unit_items(100, 100, 4), 4); // One item fits, but a batch is never cut.
        assert_eq!(unit_items(0, 0, 0), 1);
    }

    #[test]
    fn halves_follow_the_batches_then_cut_the_last_one() {
        let plan = BatchPlan::new(16, 40, 8).unwrap();
        let (left, right) = plan.halves().unwrap();
        assert_eq!((left.from, left.to, right.from, right.to), (16, 32, 32, 40));
        let (a, b) = right.halves().unwrap();
        assert_eq!((a.from, a.to, a.batch_items), (32, 36, 4));
        assert_eq!((b.from, b.to, b.replanned), (36, 40, true));
        assert!(BatchPlan::new(3, 3, 1).is_err());
        assert!(BatchPlan::new(0, 3, 0).is_err());
    }
}
