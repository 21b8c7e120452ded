//! The length penalty: score − λ · length, with λ given, or fitted so that length explains nothing.
//!
//! In: combined scores and lengths of an iteration's responses. Out: penalised scores; a fitted λ
//! with the rank correlation of score and length before and after. Deterministic and bounded.
//! May not enter: what a length is counted in, but for its word.
//! Source: arXiv:2405.07863, equation 9; the fit is ours.

use super::correlation::{of_ranks, ranks};
use crate::counter::uniform;

/// Halvings of the search: the last interval is 2⁻⁵² of the first, where a double ends.
const HALVINGS: u32 = 52;

/// What a response's length is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthUnit {
    /// Characters of its text, as the paper does.
    Characters,
    /// Its token ids, the stop id among them.
    Tokens,
}

impl LengthUnit {
    /// The word of rows and configurations.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Characters => "characters",
            Self::Tokens => "tokens",
        }
    }
}

/// A combined score and the length of its response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Before the penalty.
    pub score: f64,
    /// In a `LengthUnit`.
    pub length: u32,
}

impl Measured {
    /// score − λ · length.
    #[must_use]
    pub fn penalised(&self, lambda: f64) -> f64 {
        self.score - lambda * f64::from(self.length)
    }
}

/// A penalty, and what it does to the rank correlation of score and length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// λ, in score per unit of length; at least 0.
    pub lambda: f64,
    /// Spearman's correlation without a penalty; none where scores or lengths do not vary.
    pub before: Option<f64>,
    /// That with it.
    pub after: Option<f64>,
}

/// What a given λ does.
#[must_use]
pub fn given(rows: &[Measured], lambda: f64) -> Fit {
    let lengths = length_ranks(rows);
    Fit {
        lambda,
        before: correlation(rows, &lengths, 0.0),
        after: correlation(rows, &lengths, lambda),
    }
}

/// The λ ≥ 0 at which the rank correlation of score and length comes nearest to 0; 0 where it is not
/// above 0 without a penalty, or is not defined.
///
/// A larger λ only ever moves a longer response below a shorter one, never back, so that the
/// correlation changes its sign once. At λ = the range of the scores no longer response stands above
/// a shorter one, for lengths differ by 1 at least: between 0 and there the interval is halved. The
/// correlation falls in steps; of the two sides of the last step the one nearer to 0 is taken, and
/// that without a positive correlation where they are equally near.
#[must_use]
pub fn fit(rows: &[Measured]) -> Fit {
    let lengths = length_ranks(rows);
    let at = |lambda: f64| correlation(rows, &lengths, lambda);
    let before = at(0.0);
    let nothing = Fit { lambda: 0.0, before, after: before };
    if before.is_none_or(|rho| rho <= 0.0) {
        return nothing;
    }
    let scores = || rows.iter().map(|row| row.score);
    let range = scores().fold(f64::MIN, f64::max) - scores().fold(f64::MAX, f64::min);
    // Past it, not at it: there the extremes may still be equal.
    let (mut low, mut high) = (0.0, 2.0 * range);
    if !high.is_finite() {
        return nothing;
    }
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if at(middle).is_some_and(|rho| rho > 0.0) { low = middle } else { high = middle }
    }
    let (below, above) = (at(low), at(high));
    let distance = |rho: Option<f64>| rho.map_or(0.0, f64::abs);
    if distance(below) < distance(above) {
        Fit { lambda: low, before, after: below }
    } else {
        Fit { lambda: high, before, after: above }
    }
}

/// Whether a response is among those that a penalty is fitted to: all of them, or of very many a
/// counted share of about `most`, by its key alone.
#[must_use]
pub fn is_fitted_to(key: &[u64], all: u64, most: u64) -> bool {
    all <= most || uniform(key, all) < most
}

fn length_ranks(rows: &[Measured]) -> Vec<f64> {
    ranks(&rows.iter().map(|row| f64::from(row.length)).collect::<Vec<_>>())
}

fn correlation(rows: &[Measured], lengths: &[f64], lambda: f64) -> Option<f64> {
    let penalised: Vec<f64> = rows.iter().map(|row| row.penalised(lambda)).collect();
    of_ranks(&ranks(&penalised), lengths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(of: &[(f64, u32)]) -> Vec<Measured> {
        of.iter().map(|(score, length)| Measured { score: *score, length: *length }).collect()
    }

    #[test]
    fn a_given_penalty_by_hand() {
        // 5 − 0.001 · 2000 = 3; the paper's λ, in characters.
        assert_eq!(Measured { score: 5.0, length: 2_000 }.penalised(0.001), 3.0);
        // 1, 2, 3 at lengths 10, 20, 30 and λ = 0.2: −1, −2, −3. From +1 to −1.
        let fit = given(&rows(&[(1.0, 10), (2.0, 20), (3.0, 30)]), 0.2);
        assert_eq!((fit.before, fit.after), (Some(1.0), Some(-1.0)));
    }

    #[test]
    fn a_fitted_penalty_by_hand() {
        // Lengths 1, 2, 3, 4 with scores 0, 2, 1, 5. Pairs turn over at their slopes: (1,2) 2,
        // (1,3) 1/2, (1,4) 5/3, (2,3) turned already, (2,4) 3/2, (3,4) 4.
        // λ in (1/2, 3/2): the order from below is 3, 1, 2, 4: ranks 2 3 1 4 against 1 2 3 4:
        // Σd² = 1+1+4+0 = 6, 1 − 36/60 = +0.4.
        // λ in (3/2, 5/3): 3, 1, 4, 2: ranks 2 4 1 3: Σd² = 1+4+4+1 = 10, 1 − 60/60 = 0. Found.
        let fit = fit(&rows(&[(0.0, 1), (2.0, 2), (1.0, 3), (5.0, 4)]));
        assert!((1.5..=5.0 / 3.0).contains(&fit.lambda), "{fit:?}");
        assert!((fit.before.unwrap() - 0.8).abs() < 1e-12, "{fit:?}");
        assert!(fit.after.unwrap().abs() < 1e-12, "{fit:?}");
    }

    #[test]
    fn no_penalty_where_length_pays_nothing() {
        for of in [
            &[(3.0, 1), (2.0, 2), (1.0, 3)][..], // Shorter is better already: never a bonus.
            &[(1.0, 5), (2.0, 5)],               // Lengths do not vary.
            &[(1.0, 5), (1.0, 7)],               // Scores do not vary.
            &[(1.0, 5)],
            &[],
        ] {
            let fit = fit(&rows(of));
            assert_eq!((fit.lambda, fit.before), (0.0, fit.after), "{of:?}");
        }
    }

    #[test]
    fn a_score_that_is_length_alone_loses_all_of_it() {
        // score = 0.25 · length: exactly there all are equal, and past it they turn over.
        let fit = fit(&rows(&[(0.25, 1), (1.0, 4), (2.0, 8), (4.0, 16)]));
        assert!((fit.lambda - 0.25).abs() < 1e-9, "{fit:?}");
        assert_eq!(fit.before, Some(1.0));
    }

    #[test]
    fn of_very_many_responses_a_share_gives_the_penalty_of_all() {
        // More than are ever fitted to, and a fifth of what is: the real share deviates less.
        let (all, most) = (crate::limits::FIT_RESPONSES_MAX + 10_000, 20_000);
        // Scores of 0.004 a character, beside noise of the same size that a counter draws.
        let number = |key: &[u64], most| f64::from(u32::try_from(uniform(key, most)).unwrap());
        let rows: Vec<Measured> = (0..all)
            .map(|n| {
                let length = u32::try_from(uniform(&[1, n], 1_000)).unwrap();
                let noise = (0..4).map(|k| number(&[2, n, k], 2_001) / 1_000.0 - 1.0).sum::<f64>();
                Measured { score: 0.004 * f64::from(length) + noise, length }
            })
            .collect();
        let taken: Vec<Measured> = (0..all)
            .zip(&rows)
            .filter(|(n, _)| is_fitted_to(&[3, *n], all, most))
            .map(|(_, row)| *row)
            .collect();
        // 20000, deviation 128: five deviations either way.
        assert!(taken.len().abs_diff(20_000) < 640, "{}", taken.len());
        let share = fit(&taken);
        let whole = given(&rows, share.lambda);
        assert!(whole.before.unwrap() > 0.5, "{whole:?}");
        // A rank correlation of 20000 deviates by 1/√20000 = 0.0071 from that of all, and a slope by
        // 1.155 / (289 √20000) = 0.000028: five of them, and somewhat more for ranks.
        assert!(whole.after.unwrap().abs() < 0.036, "{whole:?}");
        assert!((share.lambda - 0.004).abs() < 0.0002, "{share:?}");
        assert!(is_fitted_to(&[7], most, most), "no more than that: all of them");
    }

    proptest! {
        #[test]
        fn the_sign_changes_once_and_the_fit_is_the_best_there_is(
            of in proptest::collection::vec((-20_i32..20, 0_u32..30), 2..30),
            lambdas in proptest::collection::vec(0.0_f64..60.0, 1..20)
        ) {
            let rows: Vec<Measured> = of.iter()
                .map(|(score, length)| Measured { score: f64::from(*score), length: *length })
                .collect();
            let found = fit(&rows);
            prop_assert!(found.lambda >= 0.0 && found.lambda.is_finite());
            prop_assert_eq!(found.after, given(&rows, found.lambda).after);
            let mut reversed = rows.clone();
            reversed.reverse();
            prop_assert_eq!(found.lambda, fit(&reversed).lambda);
            let (Some(before), Some(_)) = (found.before, found.after) else { return Ok(()) };
            for lambda in lambdas {
                let Some(rho) = given(&rows, lambda).after else { continue };
                if before > 0.0 && lambda < found.lambda * (1.0 - 1e-9) {
                    prop_assert!(rho >= -1e-12, "turned before: {rho} at {lambda}, {found:?}");
                }
                if lambda > found.lambda * (1.0 + 1e-9) {
                    prop_assert!(rho <= 1e-12 || lambda <= found.lambda + 1e-9, "{rho} at {lambda}");
                }
            }
        }
    }
}
