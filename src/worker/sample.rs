//! From a row of logits to one token: temperature, top-k, top-p, and a uniform number.
//!
//! In: logits, probabilities, a number in [0, 1). Out: an id. The order of truncation is that of
//! transformers: temperature, then top-k, then top-p over what is left. Inverse-transform sampling, so
//! that one uniform number decides. May not enter: tensors, random number generators.

use rlhfd_protocol::worker::Arm;

use crate::errors::InputError;

/// How to choose a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Tokens of the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f64,
    /// The so many likeliest tokens; 0 keeps all.
    pub top_k: usize,
}

impl Sampling {
    /// Checks an arm's settings.
    ///
    /// Errors: `Setting` names the one that is out of range.
    pub fn checked(arm: &Arm) -> Result<Self, InputError> {
        let wrong = |name: &str, value: String, rule: &str, mend: &str| InputError::Setting {
            name: name.to_owned(),
            value,
            rule: rule.to_owned(),
            mend: mend.to_owned(),
        };
        if !(arm.temperature.is_finite() && (0.0..=100.0).contains(&arm.temperature)) {
            let value = arm.temperature.to_string();
            return Err(wrong("temperature", value, "it must be 0 to 100", "1.0, or 0 for greedy"));
        }
        if !(arm.top_p > 0.0 && arm.top_p <= 1.0) {
            let value = arm.top_p.to_string();
            return Err(wrong("top_p", value, "it must be above 0 and at most 1", "1.0 keeps all"));
        }
        if arm.n == 0 || arm.n > RESPONSES_MAX {
            let rule = format!("it must be 1 to {RESPONSES_MAX}");
            return Err(wrong("n", arm.n.to_string(), &rule, "--n 4, say"));
        }
        Ok(Self { temperature: arm.temperature, top_p: arm.top_p, top_k: arm.top_k as usize })
    }

    /// Whether the likeliest token is taken without a random number.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether some ids cannot be drawn.
    #[must_use]
    pub fn truncates(&self) -> bool {
        self.top_p < 1.0 || self.top_k > 0
    }

    /// Chooses from probabilities at this temperature (they need not sum to 1).
    ///
    /// `None` where they hold a NaN or an infinity, or nothing above 0.
    #[must_use]
    pub fn choose(&self, probabilities: &[f32], uniform: f64) -> Option<usize> {
        if self.truncates() {
            self.choose_truncated(probabilities, uniform)
        } else {
            choose_from_all(probabilities, uniform)
        }
    }

    fn choose_truncated(&self, probabilities: &[f32], uniform: f64) -> Option<usize> {
        let mut least = 0.0_f32;
        if self.top_k > 0 && self.top_k < probabilities.len() {
            let mut sorted = probabilities.to_vec();
            let (_, kth, _) = sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a));
            least = *kth;
        }
        let kept = |p: f32| p > 0.0 && p >= least;
        let total: f64 = probabilities.iter().filter(|p| kept(**p)).map(|p| f64::from(*p)).sum();
        if !(total.is_finite() && total > 0.0) || probabilities.iter().any(|p| p.is_nan()) {
            return None;
        }
        // Tokens this unlikely cannot be in the set: all of them together are at most the
        // 1 − top_p that is cut off. So only the others need sorting.
        let count = probabilities.len() as f64;
        let floor = (1.0 - self.top_p) * total / count;
        let mut set: Vec<(f32, usize)> = probabilities
            .iter()
            .enumerate()
            .filter(|(_, p)| kept(**p) && f64::from(**p) > floor)
            .map(|(id, p)| (*p, id))
            .collect();
        set.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut before = 0.0;
        let mut length = 0;
        for (p, _) in &set {
            if before >= self.top_p * total {
                break;
            }
            before += f64::from(*p);
            length += 1;
        }
        set.truncate(length.max(1));
        let target = uniform * set.iter().map(|(p, _)| f64::from(*p)).sum::<f64>();
        let mut reached = 0.0;
        for (p, id) in &set {
            reached += f64::from(*p);
            if reached > target {
                return Some(*id);
            }
        }
        set.last().map(|(_, id)| *id)
    }
}

/// The most responses to one prompt.
pub const RESPONSES_MAX: u32 = 1024;

/// Elements summed at a time: long enough to be one vector loop, short enough to search.
const STRIDE: usize = 256;

/// The first id at which the running sum passes `uniform` of the whole.
fn choose_from_all(probabilities: &[f32], uniform: f64) -> Option<usize> {
    let sums: Vec<f64> = probabilities.chunks(STRIDE).map(|chunk| f64::from(sum(chunk))).collect();
    let total: f64 = sums.iter().sum();
    if !(total.is_finite() && total > 0.0) {
        return None;
    }
    let target = uniform * total;
    let mut reached = 0.0;
    let mut last = None;
    for (index, chunk) in probabilities.chunks(STRIDE).enumerate() {
        let possible = sums[index] > 0.0;
        if possible && reached + sums[index] > target {
            for (offset, p) in chunk.iter().enumerate() {
                reached += f64::from(*p);
                if *p > 0.0 {
                    last = Some(index * STRIDE + offset);
                    if reached > target {
                        return last;
                    }
                }
            }
        } else {
            reached += sums[index];
            if let Some(offset) = chunk.iter().rposition(|p| *p > 0.0) {
                last = Some(index * STRIDE + offset);
            }
        }
    }
    // Rounding may leave the sum a hair short: then it is the last possible id.
    last
}

/// Eight running sums, which the compiler keeps in vector registers.
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The id of the largest logit, the lower one of equals; `None` where one is NaN.
#[must_use]
pub fn greedy(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut value = f32::NEG_INFINITY;
    for (id, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if *logit > value {
            (best, value) = (Some(id), *logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(top_k: usize, top_p: f64) -> Sampling {
        Sampling { temperature: 1.0, top_p, top_k }
    }

    #[test]
    fn the_uniform_number_walks_through_the_distribution() {
        // Running sums 0.1, 0.3, 0.3, 1.0.
        let p = [0.1, 0.2, 0.0, 0.7];
        let choose = |u| sampling(0, 1.0).choose(&p, u).unwrap();
        assert_eq!([choose(0.0), choose(0.09), choose(0.11), choose(0.29)], [0, 0, 1, 1]);
        assert_eq!([choose(0.31), choose(0.999_999)], [3, 3]);
    }

    #[test]
    fn shares_over_a_whole_grid_equal_the_probabilities_also_beyond_one_stride() {
        let mut p = vec![0.0_f32; 1000];
        (p[3], p[300], p[999]) = (0.25, 0.5, 0.25);
        let mut counts = [0; 3];
        for step in 0..4000 {
            let id = sampling(0, 1.0).choose(&p, f64::from(step) / 4000.0).unwrap();
            counts[[3, 300, 999].iter().position(|wanted| *wanted == id).unwrap()] += 1;
        }
        assert_eq!(counts, [1000, 2000, 1000]);
    }

    #[test]
    fn top_k_keeps_ties_of_the_kth_and_top_p_keeps_the_token_that_crosses() {
        let p = [0.4_f32, 0.3, 0.15, 0.15];
        let reachable = |sampling: Sampling| {
            let mut ids: Vec<usize> =
                (0..100).map(|u| sampling.choose(&p, f64::from(u) / 100.0).unwrap()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(reachable(sampling(1, 1.0)), [0]);
        assert_eq!(reachable(sampling(3, 1.0)), [0, 1, 2, 3]);
        assert_eq!(reachable(sampling(0, 0.39)), [0]);
        assert_eq!(reachable(sampling(0, 0.41)), [0, 1]);
        // After top-k 2 the whole is 0.7, and 0.5 of it is reached by the first alone.
        assert_eq!(reachable(sampling(2, 0.5)), [0]);
    }

    #[test]
    fn a_distribution_that_is_none_gives_no_token() {
        for p in [vec![f32::NAN, 1.0], vec![0.0, 0.0], vec![f32::INFINITY, 1.0]] {
            assert_eq!(sampling(0, 1.0).choose(&p, 0.5), None);
            assert_eq!(sampling(1, 0.5).choose(&p, 0.5), None);
        }
        assert_eq!(greedy(&[1.0, f32::NAN]), None);
        assert_eq!(greedy(&[1.0, 3.0, 3.0]), Some(1));
    }
}
