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
}

impl Normalise {
    /// The word of rows and configurations.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
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

/// A scorer's part in the combined score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Its weight; above 0.
    pub weight: f64,
    /// How its scores are made comparable.
    pub normalise: Normalise,
    /// What its scores are like; none where it labelled nothing.
    pub spread: Option<Spread>,
}

impl Part {
    /// Weight × normalised score. Standard scores without any deviation are all 0.
    #[must_use]
    pub fn of(&self, score: Score) -> f64 {
        match (self.normalise, self.spread) {
            (Normalise::None, _) | (Normalise::Standard, None) => self.weight * score.get(),
            (Normalise::Standard, Some(spread)) if spread.deviation > 0.0 => {
                self.weight * ((score.get() - spread.mean) / spread.deviation)
            }
            (Normalise::Standard, Some(_)) => 0.0,
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

    fn part(weight: f64, normalise: Normalise, values: &[f64]) -> Part {
        Part { weight, normalise, spread: Some(spread(values)) }
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
        let parts =
            [part(0.5, Normalise::None, &[10.0]), part(2.0, Normalise::Standard, &[1.0, 3.0])];
        assert_eq!(combined(&parts, &[Some(score(10.0)), Some(score(3.0))]), Some(7.0));
        assert_eq!(combined(&parts, &[Some(score(10.0)), None]), None);
        assert_eq!(combined(&parts, &[Some(score(10.0))]), None);
        // Equal scores have no deviation to divide by.
        let flat = part(3.0, Normalise::Standard, &[4.0, 4.0, 4.0]);
        assert_eq!(flat.of(score(4.0)), 0.0);
    }

    proptest! {
        #[test]
        fn standard_scores_have_mean_0_and_variance_1(
            values in proptest::collection::vec(-1e3_f64..1e3, 2..50)
        ) {
            let scale = part(1.0, Normalise::Standard, &values);
            let standard: Vec<f64> = values.iter().map(|v| scale.of(score(*v))).collect();
            let of = spread(&standard);
            prop_assert!(of.mean.abs() < 1e-6, "{of:?}");
            if scale.spread.unwrap().deviation > 1e-3 {
                prop_assert!((of.deviation - 1.0).abs() < 1e-6, "{of:?}");
            }
        }

        #[test]
        fn one_scorer_of_weight_1_is_itself(value in -1e6_f64..1e6) {
            let alone = [part(1.0, Normalise::None, &[value])];
            prop_assert_eq!(combined(&alone, &[Some(score(value))]), Some(value));
        }
    }
}
