//! Ids and weights made up by fixed rules, for `gpu-check` and `bench`.
//!
//! In: a seed, sizes. Out: the same ids on every machine; weights that are the same on every machine
//! where they are made on the CPU. May not enter: files, text.

use tch::{Device, Kind, Tensor};

use crate::model::ModelConfig;
use crate::model::folder::expected_tensors;

/// Ids below `vocabulary`; `stream` sets lists of one seed apart.
#[must_use]
pub fn ids((seed, stream): (u64, u64), count: usize, vocabulary: usize) -> Vec<u32> {
    // A linear congruential generator (Knuth's MMIX constants): nothing here needs better.
    let mut state = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary.max(1) as u64) as u32
        })
        .collect()
}

/// Weights of that kind on that device, spread so that logits have a deviation of about 2, as a
/// trained model's do.
#[must_use]
pub fn weights(
    config: &ModelConfig,
    seed: i64,
    (kind, device): (Kind, Device),
) -> Vec<(String, Tensor)> {
    tch::manual_seed(seed);
    expected_tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let noise = Tensor::randn(&shape[..], (kind, device));
            let inputs = shape.last().copied().unwrap_or(1).max(1);
            #[expect(clippy::cast_precision_loss, reason = "a model's width is a small number")]
            let fan_in = (inputs as f64).sqrt();
            let values = if name.ends_with("norm.weight") {
                noise * 0.1 + 1.0
            } else if name.contains("embed_tokens") {
                noise * (2.0 / fan_in)
            } else {
                noise / fan_in
            };
            (name, values)
        })
        .collect()
}
