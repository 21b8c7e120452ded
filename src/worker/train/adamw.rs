//! AdamW over plain tensors, with state that can be saved and restored.
//!
//! In: f32 masters, f32 gradients, a rate. Out: the masters, changed in place. tch's own optimisers
//! expose no state, so a training that used them could not be resumed. May not enter: models,
//! schedules, files.

use tch::{Kind, Tensor};

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

/// Elements of one pass: the five tensors of a pass then lie in a core's second-level cache, so
/// that an update reads and writes each element of memory once, not once for each operation.
const PASS_ELEMENTS: i64 = 1 << 15;

impl AdamConfig {
    /// Applies one step to `master` in place: decay first, then the moments, then the update with
    /// epsilon outside the bias-corrected root.
    ///
    /// Shapes: `master`, `gradient` and both moments alike; f32. Source: Loshchilov and Hutter,
    /// arXiv:1711.05101, in the order of `torch.optim.AdamW`.
    pub fn apply(
        &self,
        master: &mut Tensor,
        gradient: &Tensor,
        moments: &mut Moments,
        update: Update,
    ) {
        let _no_grad = tch::no_grad_guard();
        let elements = i64::try_from(master.numel()).unwrap_or(i64::MAX);
        let pass = if master.device() == tch::Device::Cpu { PASS_ELEMENTS } else { elements };
        // `detach` first: a view of a leaf that learns may not be written to.
        let master = master.detach().view(-1);
        let gradient = gradient.detach().reshape(-1);
        let (first, second) = (moments.first.view(-1), moments.second.view(-1));
        let mut start = 0;
        while start < elements {
            let length = pass.min(elements - start);
            let part = |tensor: &Tensor| tensor.narrow(0, start, length);
            self.apply_part(
                &mut part(&master),
                &part(&gradient),
                (&mut part(&first), &mut part(&second)),
                (update, moments.decays),
            );
            start += length;
        }
    }

    fn apply_part(
        &self,
        master: &mut Tensor,
        gradient: &Tensor,
        (first, second): (&mut Tensor, &mut Tensor),
        (update, decays): (Update, bool),
    ) {
        #[expect(clippy::cast_precision_loss, reason = "steps are bounded far below 2^52")]
        let step = update.step as f64;
        let correction1 = 1.0 - self.beta1.powf(step);
        let correction2_root = (1.0 - self.beta2.powf(step)).sqrt();
        let clipped;
        let gradient = if update.clip == 1.0 {
            gradient
        } else {
            clipped = gradient * update.clip;
            &clipped
        };
        if decays && self.weight_decay > 0.0 {
            let _ = master.g_mul_scalar_(1.0 - update.rate * self.weight_decay);
        }
        let _ = first.lerp_(gradient, 1.0 - self.beta1);
        // v ← β₂v + (1−β₂)g²: the root of the factor goes into g, because addcmul_ takes none here.
        let scaled = gradient * (1.0 - self.beta2).sqrt();
        let _ = second.g_mul_scalar_(self.beta2).addcmul_(&scaled, &scaled);
        let mut denominator = second.sqrt();
        let _ = denominator.g_div_scalar_(correction2_root).g_add_scalar_(self.epsilon);
        let numerator = &*first * (-update.rate / correction1);
        let _ = master.addcdiv_(&numerator, &denominator);
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
            let mut master = Tensor::from_slice(&[2.0_f32]);
            let mut moments = Moments::zeros(&master, decays);
            let update = Update { rate: 0.1, step: 1, clip: 1.0 };
            CONFIG.apply(&mut master, &Tensor::from_slice(&[0.5_f32]), &mut moments, update);
            assert!((value(&master, 0) - wanted).abs() < 1e-6, "{}", value(&master, 0));
            assert!((value(&moments.first, 0) - 0.05).abs() < 1e-8);
            assert!((value(&moments.second, 0) - 0.0025).abs() < 1e-8);
        }
    }

    #[test]
    fn three_steps_agree_with_the_formula_in_f64_across_pass_borders() {
        let elements = PASS_ELEMENTS + 3;
        let mut master = Tensor::ones([elements], (Kind::Float, tch::Device::Cpu));
        let mut moments = Moments::zeros(&master, true);
        let (mut p, mut m, mut v) = (1.0_f64, 0.0_f64, 0.0_f64);
        for step in 1..=3_i32 {
            let g = 0.3 * f64::from(step);
            let gradient = Tensor::full([elements], g, (Kind::Float, tch::Device::Cpu));
            let update = Update { rate: 0.05, step: u64::try_from(step).unwrap(), clip: 0.5 };
            CONFIG.apply(&mut master, &gradient, &mut moments, update);
            let g = g * 0.5;
            p *= 1.0 - 0.05 * 0.1;
            m = 0.9 * m + 0.1 * g;
            v = 0.99 * v + 0.01 * g * g;
            let root = v.sqrt() / (1.0 - 0.99_f64.powi(step)).sqrt();
            p -= 0.05 / (1.0 - 0.9_f64.powi(step)) * m / (root + 1e-2);
        }
        for index in [0, PASS_ELEMENTS - 1, PASS_ELEMENTS, elements - 1] {
            assert!((value(&master, index) - p).abs() < 1e-6, "{} {p}", value(&master, index));
        }
    }

    #[test]
    fn a_rate_of_zero_moves_moments_but_no_weight() {
        let mut master = Tensor::from_slice(&[0.1_f32, -7.0]);
        let before = master.copy();
        let mut moments = Moments::zeros(&master, true);
        let update = Update { rate: 0.0, step: 1, clip: 1.0 };
        CONFIG.apply(&mut master, &Tensor::from_slice(&[1.0_f32, 2.0]), &mut moments, update);
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
