//! Dropout as a function of its name: what a backward pass computes again is dropped again.
//!
//! In: a seed, a step, a micro-batch, a module. Out: a mask of zeros and 1/(1 − p), the same on every
//! device and however often it is asked for. A GPU gets its words by tensor operations, since the
//! host could not draw and send them fast enough. May not enter: what is dropped.

use tch::{Device, Kind, Tensor};

use crate::philox::{MULTIPLIERS, WEYL, Words};

/// The words of one module's mask in one micro-batch of one step.
#[must_use]
pub fn words(seed: u64, [step, micro_batch]: [u64; 2], module: &str) -> Words {
    let numbers = [seed, step, micro_batch].map(u64::to_le_bytes);
    Words::named(&[b"dropout", &numbers[0], &numbers[1], &numbers[2], module.as_bytes()])
}

/// A mask of the shape, type and device of `like`: each element is 0 with `probability` (in [0, 1)),
/// else 1/(1 − `probability`). Element i is decided by word i.
pub fn mask(words: &Words, probability: f64, like: &Tensor) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    // A word is below this with the probability, to 2⁻³².
    let below = (probability * 4_294_967_296.0).round() as u64;
    let scale = 1.0 / (1.0 - probability);
    let mask = if like.device() == Device::Cpu {
        on_host(words, below, scale, like.numel())
    } else {
        on_device(words, below, like.numel(), like.device()) * scale
    };
    mask.to_kind(like.kind()).view(&like.size()[..])
}

fn on_host(words: &Words, below: u64, scale: f64, elements: usize) -> Tensor {
    #[expect(clippy::cast_possible_truncation, reason = "a scale needs no more than f32")]
    let kept = scale as f32;
    let mut values = Vec::with_capacity(elements + 3);
    for block in 0..elements.div_ceil(4) {
        let four = words.block(u32::try_from(block).unwrap_or(u32::MAX));
        values.extend(four.map(|word| if u64::from(word) < below { 0.0 } else { kept }));
    }
    values.truncate(elements);
    Tensor::from_slice(&values)
}

/// Zeros and ones, f32: Philox over i64 tensors, whose products wrap as its own do.
fn on_device(words: &Words, below: u64, elements: usize, device: Device) -> Tensor {
    const LOW: i64 = 0xffff_ffff;
    let blocks = i64::try_from(elements.div_ceil(4)).unwrap_or(i64::MAX);
    let word = |value: u32| Tensor::from_slice(&[i64::from(value)]).to_device(device);
    let [a, b, c] = words.counter.map(word);
    let mut counter = [Tensor::arange(blocks, (Kind::Int64, device)), a, b, c];
    let mut key = words.key;
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let first = &counter[0] * i64::from(MULTIPLIERS[0]);
        let second = &counter[2] * i64::from(MULTIPLIERS[1]);
        let high =
            |product: &Tensor| product.bitwise_right_shift_tensor_scalar(32).bitwise_and(LOW);
        let mixed = |high: Tensor, other: &Tensor, key: u32| {
            high.bitwise_xor_tensor(other).bitwise_xor(i64::from(key))
        };
        counter = [
            mixed(high(&second), &counter[1], key[0]),
            second.bitwise_and(LOW),
            mixed(high(&first), &counter[3], key[1]),
            first.bitwise_and(LOW),
        ];
    }
    let whole: Vec<Tensor> = counter.iter().map(|part| part.expand([blocks], false)).collect();
    let below = i64::try_from(below).unwrap_or(i64::MAX);
    let length = i64::try_from(elements).unwrap_or(i64::MAX);
    Tensor::stack(&whole, 1).view(-1).narrow(0, 0, length).ge(below).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_device_draw_the_same_mask_with_the_asked_share() {
        let words = words(7, [3, 1], "model.layers.0.self_attn.q_proj");
        let like = Tensor::zeros([101, 37], (Kind::Float, Device::Cpu));
        let host = mask(&words, 0.3, &like);
        let below = (0.3 * 4_294_967_296.0_f64).round() as u64;
        let device = on_device(&words, below, 101 * 37, Device::Cpu).view([101, 37]);
        assert!(host.gt(0.0).to_kind(Kind::Float).equal(&device));
        // 3737 draws: the share kept is 0.7 ± 0.0075; five deviations are 0.0375.
        let kept = device.mean(Kind::Double).double_value(&[]);
        assert!((kept - 0.7).abs() < 0.0375, "{kept}");
        assert!((host.max().double_value(&[]) - 1.0 / 0.7).abs() < 1e-6);
        assert!(host.equal(&mask(&words, 0.3, &like)));
    }

    #[test]
    fn every_part_of_the_name_changes_the_mask() {
        let one = words(7, [3, 1], "m");
        for other in [words(8, [3, 1], "m"), words(7, [4, 1], "m"), words(7, [3, 2], "m")] {
            assert_ne!(one, other);
        }
        assert_ne!(one, words(7, [3, 1], "n"));
    }
}
