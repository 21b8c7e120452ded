//! AdamW over plain tensors, with state that can be saved and restored.
//!
//! In: f32 masters, f32 gradients, a rate. Out: the masters, changed in place. tch's own optimisers
//! expose no state, so a training that used them could not be resumed. May not enter: models,
//! schedules, files.

use tch::{Kind, Tensor};

use crate::in_place::adamw;

/// The constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added outside the bias-corrected root.
    pub epsilon: f64,
    /// Decoupled weight decay, for tensors that decay.
    pub weight_decay: f64,
}

/// A tensor's optimiser state: both moments are f32, of the tensor's shape.
pub struct Moments {
    /// Running mean of gradients.
    pub first: Tensor,
    /// Running mean of squared gradients.
    pub second: Tensor,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl Moments {
    /// Zero moments for `master`.
    #[must_use]
    pub fn zeros(master: &Tensor, decays: bool) -> Self {
        let zeros = || master.detach().to_kind(Kind::Float).zeros_like();
        Self { first: zeros(), second: zeros(), decays }
    }
}

/// One update of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// The rate of this step.
    pub rate: f64,
    /// This step's number, counted from 1 (for the bias corrections).
    pub step: u64,
    /// The factor of the gradient that clipping asks for; 1 leaves it.
    pub clip: f64,
}

impl AdamConfig {
    /// Applies one step to tensors of one device in place: decay first, then the moments, then the update
    /// with epsilon outside the bias-corrected root.
    ///
    /// Shapes: of each tensor `master`, `gradient` and both moments alike; f32. Source: Loshchilov and
    /// Hutter, arXiv:1711.05101; libtorch's fused kernel, which `torch.optim.AdamW(fused=True)` takes.
    pub fn apply(&self, tensors: &[(&Tensor, &Tensor, &Moments)], update: Update) {
        #[expect(clippy::cast_precision_loss, reason = "steps are bounded far below 2^52")]
        let step = update.step as f64;
        let scale = (update.clip != 1.0).then(|| update.clip.recip());
        for decays in [true, false] {
            let alike: Vec<[&Tensor; 4]> = tensors
                .iter()
                .filter(|(_, _, moments)| moments.decays == decays)
                .map(|(master, gradient, moments)| {
                    [*master, *gradient, &moments.first, &moments.second]
                })
                .collect();
            let decay = if decays { self.weight_decay } else { 0.0 };
            let constants = [update.rate, self.beta1, self.beta2, decay, self.epsilon];
            adamw(&alike, constants, step, scale);
        }
    }
}

/// The factor by which clipping scales gradients of norm `norm` to `norm_max`; 1 where it does not
/// bite, or where `norm_max` is 0 (no clipping).
///
/// Source: `torch.nn.utils.clip_grad_norm_`: norm_max / (norm + 1e-6), at most 1.
#[must_use]
pub fn clip_factor(norm: f64, norm_max: f64) -> f64 {
    if norm_max > 0.0 { (norm_max / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Whether weight decay applies to a tensor, by its Hugging Face name: never to norms and biases.
///
/// Source: the name patterns of transformers' `Trainer.get_decay_parameter_names`.
#[must_use]
pub fn decays(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let norm_part = name.split('.').any(|part| part == "norm" || part.ends_with("_norm"));
    !(name.contains("bias") || name.contains("layernorm") || name.contains("rmsnorm") || norm_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamConfig =
        AdamConfig { beta1: 0.9, beta2: 0.99, epsilon: 1e-2, weight_decay: 0.1 };

    fn value(tensor: &Tensor, index: i64) -> f64 {
        tensor.double_value(&[index])
    }

    #[test]
    fn one_step_by_hand() {
        // p = 2, g = 0.5, rate 0.1: decay 2·(1 − 0.01) = 1.98
        // m = 0.1·0.5 = 0.05, m̂ = 0.05/0.1 = 0.5; v = 0.01·0.25 = 0.0025, √v̂ = √0.25 = 0.5
        // p = 1.98 − 0.1·0.5/(0.5 + 0.01) = 1.98 − 0.098039 = 1.881961
        // Without decay: 2 − 0.098039 = 1.901961. Epsilon inside the root would give 1.8829.
        for (decays, wanted) in [(true, 1.881_960_8), (false, 1.901_960_8)] {
            let master = Tensor::from_slice(&[2.0_f32]);
            let moments = Moments::zeros(&master, decays);
            let update = Update { rate: 0.1, step: 1, clip: 1.0 };
            CONFIG.apply(&[(&master, &Tensor::from_slice(&[0.5_f32]), &moments)], update);
            assert!((value(&master, 0) - wanted).abs() < 1e-6, "{}", value(&master, 0));
            assert!((value(&moments.first, 0) - 0.05).abs() < 1e-8);
            assert!((value(&moments.second, 0) - 0.0025).abs() < 1e-8);
        }
    }

    #[test]
    fn three_steps_agree_with_the_formula_in_f64() {
        // More than one thread's share, and no multiple of a vector.
        let elements = (1 << 15) + 3;
        let master = Tensor::ones([elements], (Kind::Float, tch::Device::Cpu));
        let moments = Moments::zeros(&master, true);
        let (mut p, mut m, mut v) = (1.0_f64, 0.0_f64, 0.0_f64);
        for step in 1..=3_i32 {
            let g = 0.3 * f64::from(step);
            let gradient = Tensor::full([elements], g, (Kind::Float, tch::Device::Cpu));
            let update = Update { rate: 0.05, step: u64::try_from(step).unwrap(), clip: 0.5 };
            CONFIG.apply(&[(&master, &gradient, &moments)], update);
            let g = g * 0.5;
            p *= 1.0 - 0.05 * 0.1;
            m = 0.9 * m + 0.1 * g;
            v = 0.99 * v + 0.01 * g * g;
            let root = v.sqrt() / (1.0 - 0.99_f64.powi(step)).sqrt();
            p -= 0.05 / (1.0 - 0.9_f64.powi(step)) * m / (root + 1e-2);
        }
        for index in [0, elements / 2, elements - 1] {
            assert!((value(&master, index) - p).abs() < 1e-6, "{} {p}", value(&master, index));
        }
    }

    #[test]
    fn a_rate_of_zero_moves_moments_but_no_weight() {
        let master = Tensor::from_slice(&[0.1_f32, -7.0]);
        let before = master.copy();
        let moments = Moments::zeros(&master, true);
        let update = Update { rate: 0.0, step: 1, clip: 1.0 };
        CONFIG.apply(&[(&master, &Tensor::from_slice(&[1.0_f32, 2.0]), &moments)], update);
        assert!(master.equal(&before));
        assert!(value(&moments.first, 1) > 0.0);
    }

    #[test]
    fn clipping_bites_above_the_norm_only() {
        assert!((clip_factor(4.0, 1.0) - 1.0 / 4.000_001).abs() < 1e-12);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        for name in [
            "model.norm.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.3.post_attention_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.q_proj.bias",
        ] {
            assert!(!decays(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "lm_head.weight",
            "score.weight",
        ] {
            assert!(decays(name), "{name}");
        }
    }
}
