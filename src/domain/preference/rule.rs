//! The pairing rule: which of the pairs that a prompt's responses make are kept.
//!
//! ```text
//! candidates ─ one a text ─▶ meet by arms? ─▶ differ in score? ─▶ finished? ─▶ wide enough? ─▶ choice
//!            unlabelled,     arms             tie                 unfinished    small_gap
//!            one_response
//! ```
//!
//! In: candidates in any order, a rule, the prompt's key. Out: a `Pairing`, which depends on nothing
//! else. Random choices are counted, not drawn. May not enter: how scores were made.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::{Candidate, Pairing, Preference, WithoutPair};
use crate::counter::uniform;
use crate::response::Finish;

/// Sets the numbers of pairing apart from others of the same seed.
const STREAM: u64 = 0x7061_6972;

/// Which pairs of a prompt are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The best response against the worst that it may meet.
    BestWorst,
    /// The best against the next below it.
    BestSecond,
    /// The best against any below it.
    BestRandom,
    /// Any pair.
    Random,
    /// Every pair.
    All,
    /// Every pair whose scores lie at least so far apart.
    Threshold(f64),
}

/// Which responses may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arms {
    /// Any two of a prompt.
    Any,
    /// Two of the same arm.
    Within,
    /// Two of different arms.
    Across,
}

/// What becomes of responses that reached the limit of new tokens before a stop id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// They are like others.
    Keep,
    /// They are never paired.
    Exclude,
    /// They may be rejected, and are never chosen.
    OnlyRejected,
}

impl Unfinished {
    fn allows(self, pair: &Preference) -> bool {
        let stopped = |candidate: &Candidate| candidate.finish == Finish::Stop;
        match self {
            Self::Keep => true,
            Self::Exclude => stopped(&pair.chosen) && stopped(&pair.rejected),
            Self::OnlyRejected => stopped(&pair.chosen),
        }
    }
}

/// How an iteration's responses become preferences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairRule {
    /// Which pairs are kept.
    pub choice: Choice,
    /// Which responses may meet.
    pub arms: Arms,
    /// What becomes of those without a stop id.
    pub unfinished: Unfinished,
    /// The floor of chosen − rejected score; 0: any difference counts.
    pub score_gap_min: f64,
    /// Pairs of a prompt at most, those with the widest gaps; at least 1.
    pub pairs_max: usize,
}

/// What names the random numbers of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptKey {
    /// The run's seed.
    pub seed: u64,
    /// The iteration.
    pub iteration: u32,
    /// The prompt's place in its draw.
    pub ordinal: u64,
}

/// The preferences of one prompt.
///
/// Equal texts are one response, that of the lowest sample (where it matters, of those with a stop
/// id); where arms matter, one an arm. Two texts meet once. Of equal scores the lowest sample is the
/// better and the worse one alike. Pairs are ranked by gap, the widest first.
#[must_use]
pub fn pair(candidates: &[Candidate], rule: &PairRule, key: &PromptKey) -> Pairing {
    let texts: BTreeSet<i64> = candidates.iter().map(|c| c.text_key).collect();
    let without = |reason| Pairing::Without(reason);
    match texts.len() {
        0 => return without(WithoutPair::Unlabelled),
        1 => return without(WithoutPair::OneResponse),
        _ => {}
    }
    let distinct = distinct(candidates, rule);
    let mut meeting = false;
    let mut apart = Vec::new();
    for (place, a) in distinct.iter().enumerate() {
        for b in distinct.iter().skip(place + 1).filter(|b| meet(a, b, rule.arms)) {
            meeting = true;
            apart.extend(Preference::of(a, b));
        }
    }
    if apart.is_empty() {
        return if meeting { Pairing::Tie } else { without(WithoutPair::Arms) };
    }
    apart.retain(|pair| rule.unfinished.allows(pair));
    if apart.is_empty() {
        return without(WithoutPair::Unfinished);
    }
    let floor = match rule.choice {
        Choice::Threshold(threshold) => rule.score_gap_min.max(threshold),
        _ => rule.score_gap_min,
    };
    apart.retain(|pair| pair.score_gap() >= floor);
    if rule.arms != Arms::Any {
        once_a_text(&mut apart);
    }
    let chosen = choose(apart, rule, key);
    if chosen.is_empty() { without(WithoutPair::SmallGap) } else { Pairing::Pairs(chosen) }
}

/// One candidate a text, and where arms matter one a text and arm, in the order of their samples.
fn distinct(candidates: &[Candidate], rule: &PairRule) -> Vec<Candidate> {
    // A text that was once finished can be chosen, whichever of its twins was not.
    let late = |c: &Candidate| rule.unfinished != Unfinished::Keep && c.finish == Finish::Length;
    let mut kept: BTreeMap<(u32, i64), Candidate> = BTreeMap::new();
    for candidate in candidates {
        let arm = if rule.arms == Arms::Any { 0 } else { candidate.arm };
        let twin = kept.entry((arm, candidate.text_key)).or_insert(*candidate);
        if (late(candidate), candidate.sample) < (late(twin), twin.sample) {
            *twin = *candidate;
        }
    }
    let mut distinct: Vec<Candidate> = kept.into_values().collect();
    distinct.sort_by_key(|candidate| candidate.sample);
    distinct
}

fn meet(a: &Candidate, b: &Candidate, arms: Arms) -> bool {
    let by_arm = match arms {
        Arms::Any => true,
        Arms::Within => a.arm == b.arm,
        Arms::Across => a.arm != b.arm,
    };
    by_arm && a.text_key != b.text_key
}

/// The same two texts of other arms meet once, where their gap is widest.
fn once_a_text(pairs: &mut Vec<Preference>) {
    pairs.sort_by(by_gap);
    let mut met = BTreeSet::new();
    pairs.retain(|pair| {
        let (x, y) = (pair.chosen.text_key, pair.rejected.text_key);
        met.insert((x.min(y), x.max(y)))
    });
}

fn by_gap(a: &Preference, b: &Preference) -> Ordering {
    b.score_gap().total_cmp(&a.score_gap()).then(by_sample(a, b))
}

fn by_sample(a: &Preference, b: &Preference) -> Ordering {
    let samples = |pair: &Preference| (pair.chosen.sample, pair.rejected.sample);
    samples(a).cmp(&samples(b))
}

/// The pairs that the rule keeps. Scores are finite, so that two of them always compare.
fn choose(mut pairs: Vec<Preference>, rule: &PairRule, key: &PromptKey) -> Vec<Preference> {
    let compare =
        |a: &Candidate, b: &Candidate| a.score.partial_cmp(&b.score).unwrap_or(Ordering::Equal);
    let best_first = |a: &Preference, b: &Preference| compare(&b.chosen, &a.chosen);
    let one = match rule.choice {
        Choice::All | Choice::Threshold(_) => {
            pairs.sort_by(by_gap);
            pairs.truncate(rule.pairs_max.max(1));
            return pairs;
        }
        Choice::BestWorst => pairs.iter().min_by(|a, b| {
            let worst_first = compare(&a.rejected, &b.rejected);
            best_first(a, b).then(worst_first).then(by_sample(a, b))
        }),
        Choice::BestSecond => pairs.iter().min_by(|a, b| {
            let next_first = compare(&b.rejected, &a.rejected);
            best_first(a, b).then(next_first).then(by_sample(a, b))
        }),
        Choice::BestRandom => {
            let best = pairs.iter().min_by(|a, b| best_first(a, b).then(by_sample(a, b)));
            let best = best.map(|pair| pair.chosen.sample);
            drawn(pairs.iter().filter(|pair| Some(pair.chosen.sample) == best).collect(), key)
        }
        Choice::Random => drawn(pairs.iter().collect(), key),
    };
    one.copied().into_iter().collect()
}

/// One of the pairs, each as likely as the others.
fn drawn<'a>(mut pairs: Vec<&'a Preference>, key: &PromptKey) -> Option<&'a Preference> {
    pairs.sort_by(|a, b| by_sample(a, b));
    let key = [key.seed, STREAM, u64::from(key.iteration), key.ordinal];
    let index = uniform(&key, pairs.len() as u64);
    usize::try_from(index).ok().and_then(|index| pairs.get(index).copied())
}

#[cfg(test)]
mod tests;
