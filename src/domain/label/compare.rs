//! Comparisons of a prompt's responses by a preference model: which pairs are asked, and what comes of
//! them.
//!
//! In: how many different texts there are, and what is known of their pairs. Out: the pairs to ask
//! next, and at the end a score a text. Worker and control share this: the one asks by it, the other
//! holds the answers against it. May not enter: models, texts.

use std::collections::BTreeMap;

/// Which pairs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Every text with every other: n(n − 1)/2 pairs.
    RoundRobin,
    /// The best so far against the next, and the worst so far against the next: at most 2(n − 1).
    /// Source: the paper's scripts (RLHFlow, pair-pm), for the best.
    Linear,
    /// The k-th text with the k-th of the second half.
    Halves,
}

/// Places of two texts, the smaller first.
pub type Places = (usize, usize);

/// P(first beats second) of the pairs that were asked; none: it could not be told.
pub type Known = BTreeMap<Places, Option<f64>>;

/// A tie, and what a text's score is that nothing is known of.
pub const EVEN: f64 = 0.5;

impl Compare {
    /// The pairs to ask next, in order; nothing is left to ask where there are none.
    #[must_use]
    pub fn wanted(self, texts: usize, known: &Known) -> Vec<Places> {
        let mut pairs: Vec<Places> = match self {
            Self::RoundRobin => {
                (0..texts).flat_map(|a| (a + 1..texts).map(move |b| (a, b))).collect()
            }
            Self::Linear => {
                let ends = [keeper(texts, known, loses), keeper(texts, known, wins)];
                ends.into_iter().filter_map(Result::err).collect()
            }
            Self::Halves => (0..texts / 2).map(|a| (a, a + texts / 2)).collect(),
        };
        pairs.dedup();
        pairs.retain(|pair| !known.contains_key(pair));
        pairs
    }

    /// The score of each text, in [0, 1]; none where no comparison of it could be told.
    ///
    /// Round robin: the mean P over the texts that it was compared with. Linear: 1 for the best, 0 for
    /// the worst and a half for the others, which it does not order; all are even where the comparisons
    /// run in a circle, so that one text came out as both.
    #[must_use]
    pub fn scores(self, texts: usize, known: &Known) -> Vec<Option<f64>> {
        let told = |text: usize| {
            known.iter().filter_map(move |((a, b), preference)| match *preference {
                Some(p) if *a == text => Some(p),
                Some(p) if *b == text => Some(1.0 - p),
                _ => None,
            })
        };
        let best = keeper(texts, known, loses).ok();
        let worst = keeper(texts, known, wins).ok();
        let score = |text: usize| {
            let (sum, number) = told(text).fold((0.0, 0.0), |(sum, n), p| (sum + p, n + 1.0));
            if number <= 0.0 {
                return (texts < 2).then_some(EVEN);
            }
            Some(match self {
                Self::RoundRobin | Self::Halves => sum / number,
                Self::Linear if best == worst => EVEN,
                Self::Linear if best == Some(text) => 1.0,
                Self::Linear if worst == Some(text) => 0.0,
                Self::Linear => EVEN,
            })
        };
        (0..texts).map(score).collect()
    }
}

/// The text that no later one took the place of. Errors: the pair that must be known to go on.
fn keeper(texts: usize, known: &Known, gives_way: fn(f64) -> bool) -> Result<usize, Places> {
    let mut keeper = 0;
    for next in 1..texts {
        match known.get(&(keeper, next)) {
            None => return Err((keeper, next)),
            Some(Some(preference)) if gives_way(*preference) => keeper = next,
            Some(_) => {}
        }
    }
    Ok(keeper)
}

fn loses(preference: f64) -> bool {
    preference < EVEN
}

fn wins(preference: f64) -> bool {
    preference > EVEN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks until nothing is left, and gives what became known.
    fn asked(compare: Compare, texts: usize, answer: impl Fn(Places) -> Option<f64>) -> Known {
        let mut known = Known::new();
        loop {
            let wanted = compare.wanted(texts, &known);
            if wanted.is_empty() {
                return known;
            }
            known.extend(wanted.into_iter().map(|pair| (pair, answer(pair))));
        }
    }

    #[test]
    fn a_round_robin_is_the_mean_over_the_others_by_hand() {
        // 0 beats 1 with 0.75 and 2 with 0.5; 1 beats 2 with 0.25.
        let known = asked(Compare::RoundRobin, 3, |pair| match pair {
            (0, 1) => Some(0.75),
            (0, 2) => Some(0.5),
            _ => Some(0.25),
        });
        assert_eq!(known.len(), 3);
        let scores = Compare::RoundRobin.scores(3, &known);
        assert_eq!(scores, [Some(0.625), Some(0.25), Some(0.625)]);
    }

    #[test]
    fn a_linear_tournament_finds_best_and_worst_and_orders_no_others() {
        // Text 2 is the best, 1 the worst.
        let strength = [0.4, 0.1, 0.9, 0.5, 0.3];
        let answer = |(a, b): Places| Some(0.5 + (strength[a] - strength[b]) / 2.0);
        let known = asked(Compare::Linear, 5, answer);
        // Best: 01 02 23 24; worst: 01 12 13 14. One of them is both.
        assert_eq!(known.len(), 7);
        let scores = Compare::Linear.scores(5, &known);
        assert_eq!(scores, [0.5, 0.0, 1.0, 0.5, 0.5].map(Some));
        // 0 beats 1, 1 beats 2, 2 beats 0: 2 is the best and the worst, and so neither.
        let circle = |pair| Some(if pair == (0, 2) { 0.2 } else { 0.8 });
        let known = asked(Compare::Linear, 3, circle);
        assert_eq!(Compare::Linear.scores(3, &known), [Some(0.5); 3]);
    }

    #[test]
    fn what_cannot_be_told_is_left_out_and_one_text_is_even() {
        let without_2 = |pair: Places| (pair.1 != 2).then_some(0.8);
        for compare in [Compare::RoundRobin, Compare::Linear] {
            let scores = compare.scores(3, &asked(compare, 3, without_2));
            assert!(scores[0] > scores[1] && scores[2].is_none(), "{compare:?}: {scores:?}");
            assert_eq!(compare.scores(1, &asked(compare, 1, |_| None)), [Some(0.5)]);
        }
        let halves = asked(Compare::Halves, 4, |_| Some(0.25));
        assert_eq!(halves.keys().copied().collect::<Vec<_>>(), [(0, 2), (1, 3)]);
    }

    proptest! {
        #[test]
        fn scores_lie_in_0_to_1_and_sum_to_half_the_texts(
            texts in 2usize..7,
            answers in proptest::collection::vec(0.0f64..=1.0, 21),
        ) {
            let answer = |(a, b): Places| answers.get(a * 6 + b).copied().or(Some(0.3));
            let known = asked(Compare::RoundRobin, texts, answer);
            let scores: Vec<f64> =
                Compare::RoundRobin.scores(texts, &known).into_iter().flatten().collect();
            prop_assert_eq!(scores.len(), texts);
            prop_assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
            let sum: f64 = scores.iter().sum();
            prop_assert!((sum - texts as f64 / 2.0).abs() < 1e-9);
            let linear = asked(Compare::Linear, texts, answer);
            prop_assert!(linear.len() <= 2 * (texts - 1));
        }
    }
}
