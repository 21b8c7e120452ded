//! Shares: how a number is divided by weights, and in which order what came of it is taken.
//!
//! In: weights, counts. Out: whole shares by largest remainder, and an order in which every list is
//! spread evenly. May not enter: what is shared.

/// `total` divided in proportion to weights, by largest remainder; equal remainders go to the first.
/// Weights that are not above 0 get nothing, and so does everybody where none is.
#[must_use]
pub fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().filter(|weight| **weight > 0.0).sum();
    if sum <= 0.0 || !sum.is_finite() {
        return vec![0; weights.len()];
    }
    let mut shares = Vec::with_capacity(weights.len());
    let mut remainders = Vec::new();
    let mut given = 0_u64;
    for (place, weight) in weights.iter().enumerate() {
        let exact = if *weight > 0.0 { as_number(total) * weight / sum } else { 0.0 };
        // Rounding may not give more than there is.
        let share = whole(exact).min(total - given);
        given += share;
        shares.push(share);
        if *weight > 0.0 {
            remainders.push((exact - as_number(share), place));
        }
    }
    // A stable sort: the first of equals stays first.
    remainders.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, place) in remainders.iter().cycle() {
        if given >= total {
            break;
        }
        if let Some(share) = shares.get_mut(*place) {
            *share += 1;
            given += 1;
        }
    }
    shares
}

/// The order in which lists of these lengths are merged: of n, the j-th (from 0) stands at
/// (2j + 1) / 2n of the way, so that each list is spread evenly; at the same place the first list is
/// first. Each entry names the list that gives its next item.
#[must_use]
pub fn interleave(lengths: &[u64]) -> Vec<usize> {
    let mut places: Vec<(u64, u64, usize)> = Vec::new();
    for (list, length) in lengths.iter().enumerate() {
        places.extend((0..*length).map(|j| (2 * j + 1, 2 * length, list)));
    }
    places.sort_by(|a, b| {
        let (left, right) = (u128::from(a.0) * u128::from(b.1), u128::from(b.0) * u128::from(a.1));
        left.cmp(&right).then(a.2.cmp(&b.2))
    });
    places.into_iter().map(|(_, _, list)| list).collect()
}

#[expect(clippy::cast_precision_loss, reason = "draws are far below 2^53")]
const fn as_number(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and no more than a count"
)]
const fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_and_order_by_hand() {
        assert_eq!(apportion(10, &[1.0]), [10]);
        assert_eq!(apportion(10, &[3.0, 1.0]), [8, 2], "7.5 and 2.5: the first of equals");
        assert_eq!(apportion(7, &[1.0, 1.0, 1.0]), [3, 2, 2]);
        assert_eq!(apportion(1, &[1.0, 2.0]), [0, 1]);
        assert_eq!(apportion(5, &[0.0, 2.0]), [0, 5]);
        assert_eq!(apportion(5, &[]), [0_u64; 0]);
        // Three of four: places 1/6, 3/6, 5/6, and 1/2 for the one of the second, after its equal.
        assert_eq!(interleave(&[3, 1]), [0, 0, 1, 0]);
        assert_eq!(interleave(&[2, 2]), [0, 1, 0, 1]);
        assert_eq!(interleave(&[0, 2]), [1, 1]);
    }

    proptest! {
        #[test]
        fn all_of_it_is_given_and_nobody_is_off_by_one(
            total in 0_u64..100_000,
            weights in prop::collection::vec(1e-3..1e3_f64, 1..9),
        ) {
            let shares = apportion(total, &weights);
            prop_assert_eq!(shares.iter().sum::<u64>(), total);
            let sum: f64 = weights.iter().sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let exact = as_number(total) * weight / sum;
                prop_assert!((as_number(*share) - exact).abs() < 1.0 + 1e-6, "{share} for {exact}");
            }
        }

        #[test]
        fn every_item_stands_once_and_every_stretch_holds_its_part(
            lengths in prop::collection::vec(0_u64..60, 1..6),
        ) {
            let order = interleave(&lengths);
            let total: u64 = lengths.iter().sum();
            prop_assert_eq!(order.len() as u64, total);
            for (list, length) in lengths.iter().enumerate() {
                let mut seen = 0_u64;
                for (at, of) in order.iter().enumerate() {
                    seen += u64::from(*of == list);
                    let part = as_number(*length) * as_number(at as u64 + 1) / as_number(total);
                    let lists = as_number(lengths.len() as u64);
                    prop_assert!((as_number(seen) - part).abs() <= lists, "{order:?}");
                }
                prop_assert_eq!(seen, *length);
            }
        }
    }
}
