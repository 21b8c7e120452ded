//! The losses of training over plain vectors: of pairs, and of documents' tokens.
//!
//! In: summed log-probs (or scores) of the chosen and rejected side of each pair, as tensors of one
//! element a pair; or log-probs of learnt tokens. Out: the unreduced loss and what is reported beside it. A loss sees neither
//! tokens nor weights: the gradient reaches them through `d loss / d log-prob` alone, so a new loss
//! is one arm here. May not enter: models, files, settings text.

use rlhfd_config::Loss;
use tch::{Kind, Tensor};

/// What a loss gives for the pairs of a micro-batch. Every tensor is f32 `[pairs]`.
pub struct PairLoss {
    /// Not reduced.
    pub loss: Tensor,
    /// Chosen minus rejected: implicit rewards (DPO) or scores (reward model).
    pub margin: Tensor,
    /// The chosen side's implicit reward, or score.
    pub chosen: Tensor,
    /// The rejected side's.
    pub rejected: Tensor,
}

/// Summed log-probs of both sides; f32 `[pairs]`, in nats.
pub struct Logprobs {
    /// Of the chosen responses.
    pub chosen: Tensor,
    /// Of the rejected responses.
    pub rejected: Tensor,
}

/// Which loss, and its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoLoss {
    /// The form.
    pub loss: Loss,
    /// Strength of the pull towards the reference.
    pub beta: f64,
    /// ε of cdpo; 0 for sigmoid.
    pub label_smoothing: f64,
}

impl DpoLoss {
    /// Raises each chosen response above its rejected twin, measured from the reference.
    ///
    /// `margin = β·((π_w − ref_w) − (π_l − ref_l))`; sigmoid: `−ln σ(margin)`;
    /// cdpo: `−(1−ε)·ln σ(margin) − ε·ln σ(−margin)`.
    /// Shapes: all `[pairs]`. Units: nats, summed over response tokens, prompt and padding masked.
    /// Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023 (cdpo).
    #[must_use]
    pub fn of(&self, policy: &Logprobs, reference: &Logprobs) -> PairLoss {
        let chosen = (&policy.chosen - &reference.chosen) * self.beta;
        let rejected = (&policy.rejected - &reference.rejected) * self.beta;
        let margin = &chosen - &rejected;
        let loss = match self.loss {
            Loss::Sigmoid => -margin.log_sigmoid(),
            Loss::Cdpo => {
                margin.log_sigmoid() * (self.label_smoothing - 1.0)
                    - margin.neg().log_sigmoid() * self.label_smoothing
            }
        };
        PairLoss { loss, margin, chosen, rejected }
    }
}

/// Bradley and Terry's likelihood that chosen beats rejected: `−ln σ(s_w − s_l)`.
///
/// Shapes: all `[pairs]`. Source: arXiv 2405.07863, §2.1.
#[must_use]
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor) -> PairLoss {
    let margin = chosen - rejected;
    PairLoss {
        loss: -margin.log_sigmoid(),
        margin,
        chosen: chosen.shallow_clone(),
        rejected: rejected.shallow_clone(),
    }
}

/// Sums over the learnt tokens of a micro-batch of documents, kept on the device: f64 `[5]` of the
/// loss `−Σ log-prob` and of the hits, and three zeros, to be added up as [`PairLoss::sums`] are.
///
/// Shapes: both `[positions]`. Units: nats.
pub fn token_sums(logprobs: &Tensor, hits: &Tensor) -> Tensor {
    let zero = || Tensor::zeros([], (Kind::Double, logprobs.device()));
    let loss = -logprobs.sum(Kind::Double);
    Tensor::stack(&[loss, hits.sum(Kind::Double), zero(), zero(), zero()], 0)
}

/// The loss of a reward model: Bradley and Terry's, with what its data and settings add.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RewardLoss {
    /// Weight of the squared sum of a pair's scores; 0: none.
    pub centring: f64,
}

impl RewardLoss {
    /// `−ln σ(s_w − s_l − m) + centring·(s_w + s_l)²`, m what the data asks the scores to lie apart.
    ///
    /// Shapes: all `[pairs]`. Source: Touvron et al. 2023, arXiv:2307.09288, eq. 2 (m); Eisenstein et
    /// al. 2023, arXiv:2312.09244, eq. 2 (centring); both as in TRL's `RewardTrainer`.
    #[must_use]
    pub fn of(&self, chosen: &Tensor, rejected: &Tensor, apart: &Tensor) -> PairLoss {
        let pairs = bradley_terry(chosen, rejected);
        let surprise = -(&pairs.margin - apart).log_sigmoid();
        let loss = if self.centring > 0.0 {
            surprise + (chosen + rejected).square() * self.centring
        } else {
            surprise
        };
        PairLoss { loss, ..pairs }
    }
}

impl PairLoss {
    /// Weighted sums over the pairs, kept on the device: f64 `[5]` of loss, accuracy (margins above 0),
    /// margin, chosen, rejected. One step adds these up and reads them once. `weights`: f64 `[pairs]`.
    pub fn sums(&self, weights: &Tensor) -> Tensor {
        let ahead = self.margin.gt(0.0);
        let sum = |x: &Tensor| (x.detach().to_kind(Kind::Double) * weights).sum(Kind::Double);
        let all = [&self.loss, &ahead, &self.margin, &self.chosen, &self.rejected];
        Tensor::stack(&all.map(sum), 0)
    }

    /// What a step minimises of these pairs: Σ weight·loss by `share`, one over the weights of all pairs
    /// of the step, so that a step's loss is the weighted mean over its pairs, however it is cut.
    pub fn share_of_step(&self, weights: &Tensor, share: f64) -> Tensor {
        let shares = (weights * share).to_kind(Kind::Float);
        (&self.loss * shares).sum(Kind::Float)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: f32, rejected: f32) -> Logprobs {
        Logprobs {
            chosen: Tensor::from_slice(&[chosen]),
            rejected: Tensor::from_slice(&[rejected]),
        }
    }

    fn dpo(loss: Loss, label_smoothing: f64) -> DpoLoss {
        DpoLoss { loss, beta: 0.1, label_smoothing }
    }

    fn assert_close(found: &Tensor, wanted: f64) {
        let found = found.double_value(&[0]);
        assert!((found - wanted).abs() < 1e-6, "{found} is not {wanted}");
    }

    #[test]
    fn policy_equal_to_reference_has_margin_0_and_loss_ln_2() {
        let batch = dpo(Loss::Sigmoid, 0.0).of(&pair(-12.5, -3.25), &pair(-12.5, -3.25));
        assert_close(&batch.margin, 0.0);
        assert_close(&batch.loss, std::f64::consts::LN_2);
        let batch = dpo(Loss::Cdpo, 0.3).of(&pair(-12.5, -3.25), &pair(-12.5, -3.25));
        assert_close(&batch.loss, std::f64::consts::LN_2);
    }

    #[test]
    fn loss_falls_below_ln_2_once_the_policy_prefers_chosen() {
        //                             chosen   rejected
        // policy − reference            +1.0       −1.0    (−12 − −13,  −15 − −14)
        // implicit reward, β = 0.1      +0.1       −0.1    margin 0.2
        // loss = ln(1 + e^−0.2) = 0.598139
        let batch = dpo(Loss::Sigmoid, 0.0).of(&pair(-12.0, -15.0), &pair(-13.0, -14.0));
        assert_close(&batch.chosen, 0.1);
        assert_close(&batch.rejected, -0.1);
        assert_close(&batch.margin, 0.2);
        assert_close(&batch.loss, 0.598_138_87);
    }

    #[test]
    fn smoothing_mixes_in_the_swapped_label() {
        // margin 0.2 as above: −ln σ(0.2) = 0.5981389, −ln σ(−0.2) = 0.7981389
        // ε = 0.25: 0.75·0.5981389 + 0.25·0.7981389 = 0.6481389
        let batch = dpo(Loss::Cdpo, 0.25).of(&pair(-12.0, -15.0), &pair(-13.0, -14.0));
        assert_close(&batch.loss, 0.648_138_87);
    }

    #[test]
    fn swapping_the_sides_flips_the_margin() {
        let one = dpo(Loss::Sigmoid, 0.0).of(&pair(-12.0, -15.0), &pair(-13.0, -14.0));
        let two = dpo(Loss::Sigmoid, 0.0).of(&pair(-15.0, -12.0), &pair(-14.0, -13.0));
        assert_close(&(one.margin + two.margin), 0.0);
        assert_close(&two.loss, 0.798_138_87);
    }

    #[test]
    fn bradley_terry_by_hand_and_its_sums() {
        // gaps 1.0 and −2.0: ln(1 + e^−1) = 0.3132617, ln(1 + e^2) = 2.1269280
        let chosen = Tensor::from_slice(&[3.0_f32, 0.5]);
        let rejected = Tensor::from_slice(&[2.0_f32, 2.5]);
        let sums = bradley_terry(&chosen, &rejected).sums(&Tensor::from_slice(&[1.0_f64, 1.0]));
        for (index, wanted) in [2.440_189_7, 1.0, -1.0, 3.5, 4.5].into_iter().enumerate() {
            assert_close(&sums.get(i64::try_from(index).unwrap()).view(1), wanted);
        }
    }

    #[test]
    fn weights_make_a_weighted_mean() {
        // losses 0.3132617 and 2.1269280 as above, weights 1 and 3:
        // (1·0.3132617 + 3·2.1269280) / (1 + 3) = 6.6940457 / 4 = 1.6735114
        // its slope by the first score: 1/4 · (σ(1) − 1) = −0.25 · 0.2689414 = −0.0672354
        let chosen = Tensor::from_slice(&[3.0_f32, 0.5]).set_requires_grad(true);
        let rejected = Tensor::from_slice(&[2.0_f32, 2.5]);
        let weights = Tensor::from_slice(&[1.0_f64, 3.0]);
        let pairs = bradley_terry(&chosen, &rejected);
        assert_close(&pairs.sums(&weights).get(0).view(1), 6.694_045_7);
        let mean = pairs.share_of_step(&weights, 0.25);
        assert_close(&mean.view(1), 1.673_511_4);
        mean.backward();
        assert_close(&chosen.grad(), -0.067_235_4);
        // Weights that are all alike change nothing: 2.4401897 / 2.
        let alike = Tensor::from_slice(&[0.2_f64, 0.2]);
        assert_close(&pairs.share_of_step(&alike, 2.5).view(1), 1.220_094_9);
    }

    #[test]
    fn a_margin_asked_for_and_centring_by_hand() {
        // scores 3.0 and 2.0, 0.4 apart asked: −ln σ(0.6) = 0.4374878
        // centring 0.1: 0.1·(3 + 2)² = 2.5; with both 2.9374878
        let [chosen, rejected] = [3.0_f32, 2.0].map(|score| Tensor::from_slice(&[score]));
        let loss = |centring, apart: f32| {
            RewardLoss { centring }.of(&chosen, &rejected, &Tensor::from_slice(&[apart]))
        };
        assert_close(&loss(0.0, 0.0).loss, 0.313_261_7);
        assert_close(&loss(0.0, 0.4).loss, 0.437_487_8);
        assert_close(&loss(0.1, 0.4).loss, 2.937_487_8);
        assert_close(&loss(0.1, 0.4).margin, 1.0);
    }

    #[test]
    fn a_large_margin_stays_finite() {
        let batch = dpo(Loss::Sigmoid, 0.0).of(&pair(0.0, 9000.0), &pair(0.0, 0.0));
        assert_close(&batch.loss, 900.0);
    }
}
