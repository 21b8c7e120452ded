//! The pairing rule: best against worst.
//!
//! In: the labelled responses of one prompt. Out: a `Pairing`: a preference, a tie, or the reason why
//! there is none. Nothing is dropped in silence: every prompt gives exactly one `Pairing`.
//! May not enter: rows, scorers, tokens.

use std::collections::BTreeMap;

use crate::ids::ResponseId;
use crate::label::Score;

/// A labelled response of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its row.
    pub response: ResponseId,
    /// Its number over all arms of the prompt.
    pub sample: u32,
    /// `response::text_key` of its text: equal texts are one response.
    pub text_key: i64,
    /// What the scorer gave it.
    pub score: Score,
}

/// A chosen and a rejected response: never the same, and the chosen one scored higher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    chosen: Candidate,
    rejected: Candidate,
}

impl Preference {
    /// The better one.
    #[must_use]
    pub const fn chosen(&self) -> &Candidate {
        &self.chosen
    }

    /// The worse one.
    #[must_use]
    pub const fn rejected(&self) -> &Candidate {
        &self.rejected
    }

    /// Chosen score − rejected score; above 0.
    #[must_use]
    pub fn score_gap(&self) -> f64 {
        self.chosen.score.get() - self.rejected.score.get()
    }
}

/// What a prompt gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pairing {
    /// A preference.
    Pair(Preference),
    /// Best and worst have the same score.
    Tie,
    /// No pair, for this reason.
    Without(WithoutPair),
}

/// Why a prompt gave no pair, in a word that SQL can group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WithoutPair {
    /// No response was labelled.
    Unlabelled,
    /// Fewer than two different responses were labelled.
    OneResponse,
    /// Best and worst differ by less than the floor.
    SmallGap,
}

impl WithoutPair {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unlabelled => "unlabelled",
            Self::OneResponse => "one_response",
            Self::SmallGap => "small_gap",
        }
    }
}

/// Best against worst of one prompt's labelled responses, in any order.
///
/// Equal texts are one response, that of the lowest sample. Among equal scores the lowest sample
/// speaks, so that the outcome does not depend on the order of arrival. `score_gap_min` is the floor
/// of chosen − rejected score (0: any difference counts).
#[must_use]
pub fn best_worst(candidates: &[Candidate], score_gap_min: f64) -> Pairing {
    let mut distinct: BTreeMap<i64, Candidate> = BTreeMap::new();
    for candidate in candidates {
        let kept = distinct.entry(candidate.text_key).or_insert(*candidate);
        if candidate.sample < kept.sample {
            *kept = *candidate;
        }
    }
    let ahead = |a: &Candidate, b: &Candidate, higher: bool| {
        let (x, y) = (a.score.get(), b.score.get());
        let better = if higher { x > y } else { x < y };
        better || (x == y && a.sample < b.sample)
    };
    let pick = |higher: bool| {
        distinct.values().copied().reduce(|best, c| if ahead(&c, &best, higher) { c } else { best })
    };
    let (Some(chosen), Some(rejected)) = (pick(true), pick(false)) else {
        return Pairing::Without(WithoutPair::Unlabelled);
    };
    if distinct.len() < 2 {
        return Pairing::Without(WithoutPair::OneResponse);
    }
    let preference = Preference { chosen, rejected };
    let gap = preference.score_gap();
    if gap <= 0.0 {
        Pairing::Tie
    } else if gap < score_gap_min {
        Pairing::Without(WithoutPair::SmallGap)
    } else {
        Pairing::Pair(preference)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(sample: u32, text_key: i64, score: f64) -> Candidate {
        let response = ResponseId(i64::from(sample) + 100);
        Candidate { response, sample, text_key, score: Score::new(score).unwrap() }
    }

    fn samples(pairing: &Pairing) -> Option<(u32, u32)> {
        match pairing {
            Pairing::Pair(p) => Some((p.chosen().sample, p.rejected().sample)),
            Pairing::Tie | Pairing::Without(_) => None,
        }
    }

    #[test]
    fn best_meets_worst_and_the_lowest_sample_breaks_ties() {
        let four = [
            candidate(0, 10, 0.5),
            candidate(1, 11, 2.0),
            candidate(2, 12, 2.0),
            candidate(3, 13, -1.0),
        ];
        assert_eq!(samples(&best_worst(&four, 0.0)), Some((1, 3)));
        assert_eq!(samples(&best_worst(&four, 3.0)), Some((1, 3))); // 2.0 − −1.0 = 3.0: not below.
        assert_eq!(best_worst(&four, 3.5), Pairing::Without(WithoutPair::SmallGap));
    }

    #[test]
    fn ties_and_lonely_responses_give_no_pair() {
        let tie = [candidate(0, 1, 1.0), candidate(1, 2, 1.0)];
        assert_eq!(best_worst(&tie, 0.0), Pairing::Tie);
        // The same text twice is one response, though its scores differ in the last bits.
        let same = [candidate(0, 1, 1.0), candidate(1, 1, 1.000_000_1)];
        assert_eq!(best_worst(&same, 0.0), Pairing::Without(WithoutPair::OneResponse));
        assert_eq!(best_worst(&[], 0.0), Pairing::Without(WithoutPair::Unlabelled));
        // −0 and 0 are equal scores.
        let zeros = [candidate(0, 1, -0.0), candidate(1, 2, 0.0)];
        assert_eq!(best_worst(&zeros, 0.0), Pairing::Tie);
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        proptest::collection::vec((0_i64..6, -3_i32..3), 0..12).prop_map(|rows| {
            (0_u32..)
                .zip(rows)
                .map(|(sample, (key, score))| candidate(sample, key, f64::from(score)))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn chosen_scores_above_rejected_and_order_does_not_matter(
            candidates in any_candidates(), floor in 0_u8..3
        ) {
            let outcome = best_worst(&candidates, f64::from(floor));
            if let Pairing::Pair(p) = outcome {
                prop_assert!(p.chosen().score > p.rejected().score);
                prop_assert!(p.chosen().text_key != p.rejected().text_key);
                prop_assert!(p.score_gap() >= f64::from(floor));
            }
            let mut reversed = candidates.clone();
            reversed.reverse();
            prop_assert_eq!(outcome, best_worst(&reversed, f64::from(floor)));
        }

        #[test]
        fn turning_all_scores_over_swaps_chosen_and_rejected(candidates in any_candidates()) {
            let turned: Vec<_> = candidates.iter()
                .map(|c| Candidate { score: Score::new(-c.score.get()).unwrap(), ..*c }).collect();
            match (best_worst(&candidates, 0.0), best_worst(&turned, 0.0)) {
                (Pairing::Pair(a), Pairing::Pair(b)) => {
                    prop_assert_eq!(a.chosen().response, b.rejected().response);
                    prop_assert_eq!(a.rejected().response, b.chosen().response);
                }
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }
}
