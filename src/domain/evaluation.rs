//! Evaluation's arithmetic: two policies' scores on the same prompts, and how sure the difference is.
//!
//! In: scores paired by prompt, sample and temperature. Out: mean, gain, win rate, each with a 95 %
//! interval by a seeded bootstrap over prompts; and the k3 estimate of a divergence.
//! May not enter: a random source with state; the generator counts, so that the same input gives the
//! same interval everywhere.

use crate::counter::uniform;

/// One answer of each policy to one prompt with one sample number at one temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedScore {
    /// The prompt's ordinal: what the bootstrap draws.
    pub prompt: u64,
    /// Score of the policy.
    pub policy: f64,
    /// Score of the baseline.
    pub baseline: f64,
    /// How much of a win it is, from 0 to 1; a tie is one half.
    pub win: f64,
}

impl PairedScore {
    /// By a scorer of single answers: the higher score wins.
    #[must_use]
    pub fn by_scores(prompt: u64, policy: f64, baseline: f64) -> Self {
        let win = if policy > baseline {
            1.0
        } else if policy < baseline {
            0.0
        } else {
            0.5
        };
        Self { prompt, policy, baseline, win }
    }

    /// By a scorer that compared the two: P(policy beats baseline) is score and win at once, and what
    /// it lies above one half is the gain.
    #[must_use]
    pub fn by_preference(prompt: u64, preference: f64) -> Self {
        Self { prompt, policy: preference, baseline: 0.5, win: preference }
    }
}

/// An estimate with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The estimate over all prompts.
    pub value: f64,
    /// The 2.5 % point of the bootstrap.
    pub low: f64,
    /// The 97.5 % point.
    pub high: f64,
}

/// The comparison of a policy with its baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Prompts that both answered.
    pub prompts: u64,
    /// Paired answers.
    pub pairs: u64,
    /// The policy's mean score over the paired answers.
    pub score_mean: f64,
    /// Mean of policy − baseline score.
    pub gain: Estimate,
    /// Share of paired answers that the policy wins; a tie is one half. By comparisons, mean P.
    pub win_rate: Estimate,
}

/// Compares a policy with its baseline. `None` where no answer is paired.
///
/// Every prompt's answers are drawn together: answers to one prompt are not independent. Sums go over
/// prompts in order, so that the result does not depend on the order of `scores`.
#[must_use]
pub fn compare(scores: &[PairedScore], samples: u32, seed: u64) -> Option<Comparison> {
    let prompts = by_prompt(scores);
    let all = prompts.iter().fold(Sums::default(), |sums, p| sums.plus(p));
    if all.pairs <= 0.0 {
        return None;
    }
    let mut gains = Vec::with_capacity(samples as usize);
    let mut wins = Vec::with_capacity(samples as usize);
    for sample in 0..u64::from(samples) {
        let mut drawn = Sums::default();
        for draw in 0..prompts.len() as u64 {
            let index = uniform(&[seed, sample, draw], prompts.len() as u64);
            if let Some(p) = usize::try_from(index).ok().and_then(|i| prompts.get(i)) {
                drawn = drawn.plus(p);
            }
        }
        gains.push(drawn.gain / drawn.pairs);
        wins.push(drawn.wins / drawn.pairs);
    }
    Some(Comparison {
        prompts: prompts.len() as u64,
        pairs: scores.len() as u64,
        score_mean: all.policy / all.pairs,
        gain: estimate(all.gain / all.pairs, gains),
        win_rate: estimate(all.wins / all.pairs, wins),
    })
}

/// Mean over responses of Σₜ (e^d − 1 − d), d = log π_ref − log π_new per token: the k3 estimator of
/// KL(new‖reference) in nats a response, from responses that the new policy wrote at temperature 1.
/// Never below 0. `None` without responses or where lengths differ.
/// Source: Schulman, "Approximating KL Divergence", 2020.
#[must_use]
pub fn k3(responses: &[(&[f32], &[f32])]) -> Option<f64> {
    let mut sum = 0.0;
    for (new, reference) in responses {
        sum += k3_response(new, reference)?;
    }
    (!responses.is_empty()).then(|| sum / count(responses.len()))
}

/// The k3 sum of one response, in nats. `None` where lengths differ.
#[must_use]
pub fn k3_response(new: &[f32], reference: &[f32]) -> Option<f64> {
    (new.len() == reference.len()).then(|| {
        new.iter()
            .zip(reference)
            .map(|(new, reference)| {
                let d = f64::from(*reference) - f64::from(*new);
                d.exp_m1() - d
            })
            .sum()
    })
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    prompt: u64,
    pairs: f64,
    policy: f64,
    gain: f64,
    wins: f64,
}

impl Sums {
    fn plus(self, other: &Self) -> Self {
        Self {
            prompt: self.prompt,
            pairs: self.pairs + other.pairs,
            policy: self.policy + other.policy,
            gain: self.gain + other.gain,
            wins: self.wins + other.wins,
        }
    }
}

fn by_prompt(scores: &[PairedScore]) -> Vec<Sums> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| {
        a.prompt
            .cmp(&b.prompt)
            .then(a.policy.total_cmp(&b.policy))
            .then(a.baseline.total_cmp(&b.baseline))
    });
    let mut prompts: Vec<Sums> = Vec::new();
    for score in &sorted {
        let one = Sums {
            prompt: score.prompt,
            pairs: 1.0,
            policy: score.policy,
            gain: score.policy - score.baseline,
            wins: score.win,
        };
        match prompts.last_mut() {
            Some(last) if last.prompt == one.prompt => *last = last.plus(&one),
            Some(_) | None => prompts.push(one),
        }
    }
    prompts
}

/// The percentile interval: the ⌊0.025·B⌋-th smallest and the ⌊0.025·B⌋-th largest of B values.
fn estimate(value: f64, mut drawn: Vec<f64>) -> Estimate {
    drawn.sort_by(f64::total_cmp);
    let cut = drawn.len() / 40;
    let low = drawn.get(cut).copied().unwrap_or(value);
    let high =
        drawn.len().checked_sub(cut + 1).and_then(|i| drawn.get(i).copied()).unwrap_or(value);
    Estimate { value, low, high }
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows are far below 2^53")]
fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: u64, policy: f64, baseline: f64) -> PairedScore {
        PairedScore::by_scores(prompt, policy, baseline)
    }

    #[test]
    fn gain_and_win_rate_by_hand() {
        // gains: +1, −1, 0, +2 → mean 0.5; wins: 1, 0, ½, 1 → 2.5 / 4; policy mean (2+0+1+3)/4.
        let rows = [row(0, 2.0, 1.0), row(0, 0.0, 1.0), row(1, 1.0, 1.0), row(2, 3.0, 1.0)];
        let c = compare(&rows, 1000, 7).unwrap();
        assert_eq!((c.prompts, c.pairs), (3, 4));
        assert!((c.score_mean - 1.5).abs() < 1e-12);
        assert!((c.gain.value - 0.5).abs() < 1e-12);
        assert!((c.win_rate.value - 0.625).abs() < 1e-12);
        assert!(c.gain.low <= c.gain.value && c.gain.value <= c.gain.high);
        assert!(compare(&[], 10, 7).is_none());
    }

    #[test]
    fn a_win_rate_by_comparisons_is_the_mean_preference() {
        let rows = [(0, 0.75), (0, 0.5), (1, 0.125), (2, 1.0)]
            .map(|(prompt, p)| PairedScore::by_preference(prompt, p));
        let c = compare(&rows, 1000, 7).unwrap();
        assert_eq!((c.win_rate.value, c.score_mean, c.gain.value), (0.59375, 0.59375, 0.09375));
        assert!(c.win_rate.low >= 0.125 && c.win_rate.high <= 1.0);
    }

    #[test]
    fn the_interval_depends_on_seed_and_rows_alone() {
        let rows: Vec<_> = (0..40_u32)
            .map(|i| row(u64::from(i / 2), f64::from(i % 7), f64::from(i % 5)))
            .collect();
        let mut turned = rows.clone();
        turned.reverse();
        let one = compare(&rows, 500, 1).unwrap();
        assert_eq!(one, compare(&turned, 500, 1).unwrap());
        assert_ne!(one.gain.low.to_bits(), compare(&rows, 500, 2).unwrap().gain.low.to_bits());
    }

    #[test]
    fn the_interval_covers_as_theory_says() {
        // 100 prompts whose gain is ±1 in equal shares: the mean's deviation is 1/√100 = 0.1, so
        // that the 95 % interval is about ±0.196.
        let rows: Vec<_> =
            (0..100).map(|i| row(i, if i % 2 == 0 { 1.0 } else { -1.0 }, 0.0)).collect();
        let c = compare(&rows, 4000, 3).unwrap();
        assert!((c.gain.low + 0.196).abs() < 0.03, "{:?}", c.gain);
        assert!((c.gain.high - 0.196).abs() < 0.03, "{:?}", c.gain);
        assert!((c.win_rate.value - 0.5).abs() < 1e-12);
    }

    #[test]
    fn equal_policies_gain_nothing() {
        let rows: Vec<_> = (0..9).map(|i| row(i, 1.5, 1.5)).collect();
        let c = compare(&rows, 100, 3).unwrap();
        assert_eq!(c.gain, Estimate { value: 0.0, low: 0.0, high: 0.0 });
        assert_eq!(c.win_rate, Estimate { value: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn k3_by_hand() {
        // d = ref − new = ln 2: e^d − 1 − d = 2 − 1 − 0.693147 = 0.306853.
        // d = −ln 2: 0.5 − 1 + 0.693147 = 0.193147. Sum 0.5; the other response is equal: 0.
        let half = 0.5_f32.ln();
        let new = [2.0 * half, half];
        let reference = [half, 2.0 * half];
        let kl = k3(&[(&new, &reference), (&new, &new)]).unwrap();
        assert!((kl - 0.25).abs() < 1e-6, "{kl}");
        assert!(k3(&[]).is_none());
        assert!(k3(&[(&new, &reference[..1])]).is_none());
    }
}
