//! Rank correlation: whether two quantities rise together, whatever their shapes.
//!
//! In: numbers in pairs. Out: Spearman's coefficient, or none where one of them does not vary. May
//! not enter: what is correlated.

/// Spearman's rank correlation: Pearson's of the ranks, where equal numbers share the mean of their
/// ranks. Dimensionless, from −1 to 1.
///
/// `None` where the lengths differ, a number is not finite, or one side is constant.
/// Source: Spearman, "The proof and measurement of association between two things", 1904.
#[must_use]
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() || a.iter().chain(b).any(|value| !value.is_finite()) {
        return None;
    }
    of_ranks(&ranks(a), &ranks(b))
}

/// Ranks from 1 in the order of the numbers; equal ones share the mean of theirs.
#[must_use]
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let value = |i: &usize| values.get(*i).copied().unwrap_or_default();
    // −0 and 0 are equal numbers: adding 0 makes them the same bits.
    order.sort_by(|a, b| (value(a) + 0.0).total_cmp(&(value(b) + 0.0)));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for run in order.chunk_by(|a, b| value(a) == value(b)) {
        // Places first+1 … first+length have the mean first + (length + 1) / 2.
        let rank = float(first) + (float(run.len()) + 1.0) / 2.0;
        for index in run {
            if let Some(place) = ranks.get_mut(*index) {
                *place = rank;
            }
        }
        first += run.len();
    }
    ranks
}

/// Pearson's correlation of two lists of ranks of the same length.
pub(crate) fn of_ranks(a: &[f64], b: &[f64]) -> Option<f64> {
    // Sharing keeps the sum of ranks, so that both have this mean.
    let mean = (float(a.len()) + 1.0) / 2.0;
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean, b - mean);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    (aa > 0.0 && bb > 0.0).then(|| (ab / (aa * bb).sqrt()).clamp(-1.0, 1.0))
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows are far below 2^53")]
fn float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranks_share_their_places() {
        assert_eq!(ranks(&[10.0, 20.0, 10.0, 30.0]), [1.5, 3.0, 1.5, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0, 1.0]), [1.5, 1.5, 3.0]);
        assert!(ranks(&[]).is_empty());
    }

    #[test]
    fn spearman_by_hand() {
        // Without ties: 1 − 6 Σd² / (n (n² − 1)). Ranks 1 2 3 4 5 against 2 1 4 3 5: d² 1 1 1 1 0,
        // 1 − 24 / 120 = 0.8.
        let rho = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[20.0, 1.0, 400.0, 30.0, 5e5]).unwrap();
        assert!((rho - 0.8).abs() < 1e-12, "{rho}");
        // With ties: ranks 1.5 1.5 3 4 against 1 2 3 4, less 2.5: −1 −1 .5 1.5 and −1.5 −.5 .5 1.5.
        // Σab = 1.5 + .5 + .25 + 2.25 = 4.5, Σaa = 1 + 1 + .25 + 2.25 = 4.5, Σbb = 5:
        // 4.5 / √22.5 = 0.948683.
        let rho = spearman(&[7.0, 7.0, 8.0, 9.0], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!((rho - 0.948_683).abs() < 1e-6, "{rho}");
        assert_eq!(spearman(&[1.0, 2.0], &[3.0, 3.0]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), None);
    }

    #[test]
    fn spearman_is_that_of_an_independent_computation() {
        let golden = include_str!("../../../tests/golden/correlation.txt");
        let numbers = |text: &str| -> Vec<f64> {
            text.split_whitespace().map(|number| number.parse().unwrap()).collect()
        };
        let mut cases = 0;
        for line in golden.lines() {
            let parts: Vec<Vec<f64>> = line.split(';').map(numbers).collect();
            let [wanted, a, b] = &parts[..] else { panic!("{line}") };
            let found = spearman(a, b).unwrap();
            assert!((found - wanted[0]).abs() < 1e-12, "{found} for {}", wanted[0]);
            cases += 1;
        }
        assert_eq!(cases, 15);
    }

    proptest! {
        #[test]
        fn it_knows_order_alone_and_turns_over(
            rows in proptest::collection::vec((-50_i32..50, -50_i32..50), 2..40)
        ) {
            let (a, b): (Vec<f64>, Vec<f64>) =
                rows.iter().map(|(a, b)| (f64::from(*a), f64::from(*b))).unzip();
            let rho = spearman(&a, &b);
            let bent: Vec<f64> = a.iter().map(|x| (x / 10.0).exp()).collect();
            prop_assert_eq!(rho, spearman(&bent, &b));
            prop_assert_eq!(rho, spearman(&b, &a));
            let turned: Vec<f64> = a.iter().map(|x| -x).collect();
            match (rho, spearman(&turned, &b)) {
                (Some(rho), Some(turned)) => prop_assert!((rho + turned).abs() < 1e-12),
                (rho, turned) => prop_assert_eq!(rho, turned),
            }
            prop_assert!(rho.is_none_or(|rho| (-1.0..=1.0).contains(&rho)));
        }
    }
}
