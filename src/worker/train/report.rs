//! What a reward model is worth on preferences that it never saw: `report.json`.
//!
//! In: a trained model and held-out groups. Out: accuracy, calibration and the scores' correlation
//! with length, over all and by source, and what became of the data. It lies in the checkpoint folder
//! under its manifest, so it may hold neither a time nor a path. May not enter: training.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::error::TrainError;
use super::groups::Group;
use super::pack::Packed;
use crate::logprob::host_floats;
use crate::model::Transformer;
use crate::watch::Watch;

/// The file's name in a checkpoint folder.
pub const REPORT: &str = "report.json";

/// Bins of the calibration error.
const BINS: usize = 10;

/// The report of a reward training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Pairs in the files, those that are trained on as often as their weight has it.
    pub pairs: u64,
    /// Of them trained on.
    pub trained: u64,
    /// Of them left out, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// On the pairs held out; none where none were.
    pub held_out: Option<HeldOut>,
}

/// What held-out preferences say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Different prompts.
    pub prompts: u64,
    /// Over all of them.
    pub all: Measures,
    /// By the `source` of their lines; lines without one are in `all` only.
    pub by_source: BTreeMap<String, Measures>,
}

/// How well scores tell chosen from rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Pairs.
    pub pairs: u64,
    /// Share of pairs whose chosen response has the higher score.
    pub accuracy: f64,
    /// See [`calibration_error`].
    pub calibration_error: f64,
    /// Responses, each counted once.
    pub responses: u64,
    /// Pearson's correlation of score and length in tokens over the responses; none where either is
    /// the same for all.
    pub length_correlation: Option<f64>,
}

/// Scores of one group, in the order of its conversations.
struct Scored<'a> {
    group: &'a Group,
    scores: Vec<f64>,
}

/// Scores held-out groups and sums them up.
///
/// # Errors
/// `Cancelled`; `NonFiniteScore` with the first line that has one.
pub fn measure(
    model: &Transformer,
    groups: &[Group],
    watch: &Watch,
) -> Result<Option<HeldOut>, TrainError> {
    let _no_grad = tch::no_grad_guard();
    let mut scored = Vec::with_capacity(groups.len());
    for group in groups {
        let packed = Packed::of(&[group], model);
        let hidden = model.hidden_trees(&packed.ids, &packed.trees).squeeze_dim(0);
        let scores: Tensor = model.scores(&hidden.index_select(0, &packed.last));
        let scores: Vec<f64> = host_floats(&scores).into_iter().map(f64::from).collect();
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(TrainError::NonFiniteScore { line: group.line });
        }
        watch.tick(packed.tokens())?;
        scored.push(Scored { group, scores });
    }
    let Some(all) = Measures::of(scored.iter()) else { return Ok(None) };
    let prompts: BTreeSet<[u8; 32]> = groups.iter().map(|group| group.prompt_sum).collect();
    let sources: BTreeSet<&str> = groups.iter().filter_map(|g| g.source.as_deref()).collect();
    let by_source = sources.into_iter().filter_map(|source| {
        let own = scored.iter().filter(|one| one.group.source.as_deref() == Some(source));
        Some((source.to_owned(), Measures::of(own)?))
    });
    Ok(Some(HeldOut { prompts: prompts.len() as u64, by_source: by_source.collect(), all }))
}

impl Measures {
    /// None where there is no pair.
    fn of<'a>(scored: impl Iterator<Item = &'a Scored<'a>>) -> Option<Self> {
        let (mut gaps, mut scores, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for one in scored {
            let gap = |chosen: usize, rejected: usize| one.scores[chosen] - one.scores[rejected];
            gaps.extend(one.group.pairs.iter().map(|pair| gap(pair.chosen, pair.rejected)));
            scores.extend(&one.scores);
            #[expect(clippy::cast_precision_loss, reason = "a response is far below 2^52 tokens")]
            lengths.extend(one.group.response_tokens.iter().map(|tokens| *tokens as f64));
        }
        if gaps.is_empty() {
            return None;
        }
        let ahead = gaps.iter().filter(|gap| **gap > 0.0).count();
        Some(Self {
            pairs: gaps.len() as u64,
            accuracy: share(ahead, gaps.len()),
            calibration_error: calibration_error(&gaps),
            responses: scores.len() as u64,
            length_correlation: pearson(&scores, &lengths),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The expected calibration error of p = σ(first score − second score), over ten bins of equal width:
/// Σ over bins of share × |mean p − share of pairs whose first response was chosen|. Each pair counts
/// in both orders, since the order in which a pair is written down says nothing. `gaps`: chosen minus
/// rejected score.
///
/// Source: Guo et al. 2017, arXiv:1706.04599, eq. 5.
#[must_use]
pub fn calibration_error(gaps: &[f64]) -> f64 {
    let mut bins = [(0_usize, 0.0_f64, 0_usize); BINS];
    for gap in gaps {
        for (gap, first_chosen) in [(*gap, true), (-gap, false)] {
            let p = 1.0 / (1.0 + (-gap).exp());
            // p lies in [0, 1].
            let bin = ((p * BINS as f64) as usize).min(BINS - 1);
            bins[bin].0 += 1;
            bins[bin].1 += p;
            bins[bin].2 += usize::from(first_chosen);
        }
    }
    let filled = bins.into_iter().filter(|(count, _, _)| *count > 0);
    filled
        .map(|(count, sum, chosen)| {
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            let mean = sum / count as f64;
            share(count, 2 * gaps.len()) * (mean - share(chosen, count)).abs()
        })
        .sum()
}

/// Pearson's correlation of two samples of one length; none where either does not vary.
#[must_use]
pub fn pearson(one: &[f64], two: &[f64]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let count = one.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
    let (mean_one, mean_two) = (mean(one), mean(two));
    let (mut both, mut square_one, mut square_two) = (0.0, 0.0, 0.0);
    for (a, b) in one.iter().zip(two) {
        let (a, b) = (a - mean_one, b - mean_two);
        both += a * b;
        square_one += a * a;
        square_two += b * b;
    }
    let scale = (square_one * square_two).sqrt();
    (scale > 0.0).then(|| both / scale)
}

impl Report {
    /// For a person: a line over all held-out pairs, and one a source.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let Some(held_out) = &self.held_out else { return Vec::new() };
        let line = |name: &str, of: &Measures| {
            let length = of.length_correlation.map_or("–".to_owned(), |r| format!("{r:.3}"));
            format!(
                "held out{name}: {} pairs, accuracy {:.3}, calibration error {:.3}, \
                 correlation with length {length}",
                of.pairs, of.accuracy, of.calibration_error
            )
        };
        let all = [line("", &held_out.all)];
        let sources = held_out.by_source.iter();
        all.into_iter().chain(sources.map(|(name, of)| line(&format!(", {name}"), of))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_by_hand() {
        let logit = |p: f64| (p / (1.0 - p)).ln();
        // p = 0.75 twice right, once wrong. Both orders: bin 7 holds 0.75 ×3 with 2 of 3 chosen,
        // bin 2 holds 0.25 ×3 with 1 of 3. |0.75 − 2/3| = |0.25 − 1/3| = 0.083333 in each half.
        let gaps = [logit(0.75), logit(0.75), logit(0.25)];
        assert!((calibration_error(&gaps) - 0.083_333_333).abs() < 1e-8);
        // Sure and right: p = 1 − 4.5e-5; the error is what is missing to 1.
        assert!(calibration_error(&[10.0]) < 1e-4);
        // Sure and wrong.
        assert!(calibration_error(&[-10.0]) > 0.9999);
        // Two bins: 0.95 right (misses by 0.05), 0.65 wrong (misses by 0.65): mean 0.35.
        assert!((calibration_error(&[logit(0.95), logit(0.35)]) - 0.35).abs() < 1e-8);
        // No opinion: p = 0.5 in both orders, half of them chosen.
        assert!(calibration_error(&[0.0]).abs() < 1e-12);
    }

    #[test]
    fn pearson_by_hand() {
        // means 2 and 3; products (−1)(−2) + 0·(−1) + 1·3 = 5; squares 2 and 14: 5/√28 = 0.944911
        let found = pearson(&[1.0, 2.0, 3.0], &[1.0, 2.0, 6.0]).unwrap();
        assert!((found - 0.944_911_2).abs() < 1e-6, "{found}");
        assert!((pearson(&[1.0, 2.0], &[5.0, -1.0]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(pearson(&[1.0, 1.0], &[5.0, -1.0]), None);
        assert_eq!(pearson(&[], &[]), None);
    }
}
