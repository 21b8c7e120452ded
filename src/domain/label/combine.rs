//! Several scorers' scores of a response as one number.
//!
//! In: scores in the order of the scorers, their weights, and what each scorer's scores of the
//! iteration are like. Out: the weighted sum. A scorer that training does not use has no part here.
//! May not enter: lengths (`penalty`).

use super::Score;

/// How a scorer's scores are made comparable with others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalise {
    /// As they are.
    None,
    /// To mean 0 and variance 1 over the iteration's labelled responses.
    Standard,
    /// To their place among the iteration's labelled responses, from 0 (the lowest) to 1.
    Rank,
}

impl Normalise {
    /// The word of rows and configurations.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
            Self::Rank => "rank",
        }
    }
}

/// What a scorer's scores of an iteration are like, in its own units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// How many there are; at least 1.
    pub scores: u64,
    /// Their mean.
    pub mean: f64,
    /// The square root of their variance, which is divided by their number.
    pub deviation: f64,
}

/// Mean and deviation in one pass, which depend on the order of the scores in their last bits only.
/// Source: Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    scores: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Takes one more score in.
    pub fn push(&mut self, score: Score) {
        self.scores += 1;
        let before = score.get() - self.mean;
        self.mean += before / count(self.scores);
        self.squares += before * (score.get() - self.mean);
    }

    /// What the scores so far are like; none before the first.
    #[must_use]
    pub fn spread(&self) -> Option<Spread> {
        (self.scores > 0).then(|| Spread {
            scores: self.scores,
            mean: self.mean,
            deviation: (self.squares / count(self.scores)).max(0.0).sqrt(),
        })
    }
}

/// All scores of a scorer in an iteration, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder(Vec<f64>);

impl Ladder {
    /// Of scores in any order.
    #[must_use]
    pub fn of(mut scores: Vec<f64>) -> Self {
        scores.sort_by(f64::total_cmp);
        Self(scores)
    }

    /// (rank − 1) / (scores − 1), where equal scores share the mean of their ranks: 0 for the lowest,
    /// 1 for the highest, ½ where all are equal or there is one alone.
    #[must_use]
    pub fn place(&self, score: Score) -> f64 {
        let below = self.0.partition_point(|other| *other < score.get());
        let up_to = self.0.partition_point(|other| *other <= score.get());
        if self.0.len() < 2 || up_to == below {
            return 0.5;
        }
        // Ranks below+1 … up_to have the mean (below + 1 + up_to) / 2.
        let [below, up_to, all] = [below, up_to, self.0.len()].map(|n| count(n as u64));
        ((below + up_to - 1.0) / 2.0) / (all - 1.0)
    }
}

/// How a scorer's scores become comparable, with what it takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// As they are.
    AsIs,
    /// By mean and deviation; none where it labelled nothing.
    Standard(Option<Spread>),
    /// By their places.
    Rank(Ladder),
}

/// A scorer's part in the combined score.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its weight; above 0.
    pub weight: f64,
    /// How its scores are made comparable.
    pub scale: Scale,
}

impl Part {
    /// Weight × normalised score. Standard scores without any deviation are all 0.
    #[must_use]
    pub fn of(&self, score: Score) -> f64 {
        match &self.scale {
            Scale::AsIs | Scale::Standard(None) => self.weight * score.get(),
            Scale::Standard(Some(spread)) if spread.deviation > 0.0 => {
                self.weight * ((score.get() - spread.mean) / spread.deviation)
            }
            Scale::Standard(Some(_)) => 0.0,
            Scale::Rank(ladder) => self.weight * ladder.place(score),
        }
    }
}

/// Σ weight × normalised score, in the order of the parts; none where a scorer gave no score: what
/// one of them could not judge is not compared by the others alone.
#[must_use]
pub fn combined(parts: &[Part], scores: &[Option<Score>]) -> Option<f64> {
    if parts.len() != scores.len() {
        return None;
    }
    parts
        .iter()
        .zip(scores)
        .try_fold(0.0, |sum, (part, score)| score.map(|score| sum + part.of(score)))
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows are far below 2^53")]
fn count(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score(value: f64) -> Score {
        Score::new(value).unwrap()
    }

    fn spread(values: &[f64]) -> Spread {
        let mut moments = Moments::default();
        values.iter().for_each(|value| moments.push(score(*value)));
        moments.spread().unwrap()
    }

    fn as_is(weight: f64) -> Part {
        Part { weight, scale: Scale::AsIs }
    }

    fn standard(weight: f64, values: &[f64]) -> Part {
        Part { weight, scale: Scale::Standard(Some(spread(values))) }
    }

    fn ranked(weight: f64, values: &[f64]) -> Part {
        Part { weight, scale: Scale::Rank(Ladder::of(values.to_vec())) }
    }

    #[test]
    fn mean_and_deviation_by_hand() {
        // Mean (2 + 4 + 4 + 4 + 5 + 5 + 7 + 9) / 8 = 5; squares 9+1+1+1+0+0+4+16 = 32; √(32/8) = 2.
        let spread = spread(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((spread.scores, spread.mean, spread.deviation), (8, 5.0, 2.0));
        assert!(Moments::default().spread().is_none());
    }

    #[test]
    fn weights_and_standard_scores_by_hand() {
        // Of 1 and 3 the mean is 2 and the deviation 1: 3 becomes +1. 0.5 · 10 + 2 · (+1) = 7.
        let parts = [as_is(0.5), standard(2.0, &[1.0, 3.0])];
        assert_eq!(combined(&parts, &[Some(score(10.0)), Some(score(3.0))]), Some(7.0));
        assert_eq!(combined(&parts, &[Some(score(10.0)), None]), None);
        assert_eq!(combined(&parts, &[Some(score(10.0))]), None);
        // Equal scores have no deviation to divide by.
        let flat = standard(3.0, &[4.0, 4.0, 4.0]);
        assert_eq!(flat.of(score(4.0)), 0.0);
    }

    #[test]
    fn places_by_hand() {
        // Ranks of 7, 1, 9, 7, 3: 3.5, 1, 5, 3.5, 2; of five, less 1 and by 4.
        let part = ranked(2.0, &[7.0, 1.0, 9.0, 7.0, 3.0]);
        let places = [7.0, 1.0, 9.0, 3.0].map(|value| part.of(score(value)));
        assert_eq!(places, [2.0 * 0.625, 0.0, 2.0, 2.0 * 0.25]);
        assert_eq!(ranked(1.0, &[4.0]).of(score(4.0)), 0.5);
        assert_eq!(ranked(1.0, &[4.0, 4.0, 4.0]).of(score(4.0)), 0.5);
    }

    proptest! {
        #[test]
        fn standard_scores_have_mean_0_and_variance_1(
            values in proptest::collection::vec(-1e3_f64..1e3, 2..50)
        ) {
            let scale = standard(1.0, &values);
            let scores: Vec<f64> = values.iter().map(|v| scale.of(score(*v))).collect();
            let of = spread(&scores);
            prop_assert!(of.mean.abs() < 1e-6, "{of:?}");
            if spread(&values).deviation > 1e-3 {
                prop_assert!((of.deviation - 1.0).abs() < 1e-6, "{of:?}");
            }
        }

        #[test]
        fn places_keep_the_order_and_know_nothing_else(
            values in proptest::collection::vec(-30_i32..30, 1..40)
        ) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let bent: Vec<f64> = values.iter().map(|v| (v / 7.0).exp() + 5.0).collect();
            let of = |values: &[f64]| -> Vec<f64> {
                let part = ranked(1.0, values);
                values.iter().map(|v| part.of(score(*v))).collect()
            };
            let places = of(&values);
            prop_assert_eq!(&places, &of(&bent));
            // Their mean is that of evenly spaced places.
            prop_assert!((spread(&places).mean - 0.5).abs() < 1e-9, "{places:?}");
            for (value, place) in values.iter().zip(&places) {
                prop_assert!((0.0..=1.0).contains(place));
                for (other, beside) in values.iter().zip(&places) {
                    prop_assert_eq!(value.total_cmp(other), place.total_cmp(beside));
                }
            }
        }

        #[test]
        fn one_scorer_of_weight_1_is_itself(value in -1e6_f64..1e6) {
            let alone = [as_is(1.0)];
            prop_assert_eq!(combined(&alone, &[Some(score(value))]), Some(value));
        }
    }
}
