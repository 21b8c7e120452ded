//! The norm, the gated MLP's product, the rotation of heads and a decoding step's attention, each in one pass over
//! memory.
//!
//! In: f32 tensors on a CPU, such that learn among them. Out: what the plain operations give, with their
//! gradients; nothing where the type or device is another, and libtorch's own have to do it. The calls stand in
//! `one_pass.cpp`. May not enter: models, products of matrices.

use std::ffi::c_char;
use std::ptr::null;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::in_place::taken_if_any;

unsafe extern "C" {
    fn rlhfd_norm(
        x: *const C_tensor,
        weight: *const C_tensor,
        epsilon: f64,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn rlhfd_gated(
        gate: *const C_tensor,
        up: *const C_tensor,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn rlhfd_rotated(
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn rlhfd_attended(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        mask: *const C_tensor,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
}

/// `x / √(mean x² + epsilon) · weight` over the last dimension. `weight`, `[width]`, is a leaf: its gradient is added
/// where it lies.
#[must_use]
pub fn norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Option<Tensor> {
    // SAFETY: the tensors live as long as the call, which takes no ownership.
    taken_if_any(|problem| unsafe { rlhfd_norm(x.as_ptr(), weight.as_ptr(), epsilon, problem) })
}

/// `silu(gate) · up`, of one shape.
#[must_use]
pub fn gated(gate: &Tensor, up: &Tensor) -> Option<Tensor> {
    // SAFETY: as above.
    taken_if_any(|problem| unsafe { rlhfd_gated(gate.as_ptr(), up.as_ptr(), problem) })
}

/// `x`, `[rows, tokens, heads, size]`, with each head turned by its position's angles: `cos` and `sin` are
/// `[tokens, 1, size]`, or `[rows, 1, 1, size]` of a single token each, and hold each angle in both halves.
#[must_use]
pub fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Option<Tensor> {
    // SAFETY: as above.
    taken_if_any(|problem| unsafe {
        rlhfd_rotated(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), problem)
    })
}

/// The attention of queries `[rows, heads, group, size]` over keys and values `[rows, heads, columns, size]` (views of
/// one layout, whose columns lie one after the other), without gradients. `mask`: `[rows, 1, 1, columns]`, 0 and −∞,
/// in each row the −∞ before the 0.
#[must_use]
pub fn attended(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
) -> Option<Tensor> {
    let mask = mask.map_or(null(), |mask| mask.as_ptr());
    // SAFETY: as above.
    taken_if_any(|problem| unsafe {
        rlhfd_attended(query.as_ptr(), key.as_ptr(), value.as_ptr(), mask, problem)
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn leaf(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    /// The values of `ours` and of the `plain` operations in f64, and every gradient of both.
    fn hold(
        inputs: &[Tensor],
        ours: impl Fn(&[Tensor]) -> Option<Tensor>,
        plain: impl Fn(&[Tensor]) -> Tensor,
    ) {
        let exact: Vec<Tensor> = inputs
            .iter()
            .map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(x.requires_grad()))
            .collect();
        let (ours, plain) = (ours(inputs).expect("f32 on a CPU"), plain(&exact));
        close(&ours, &plain);
        let slope = Tensor::randn(ours.size(), (Kind::Float, Device::Cpu));
        (&ours * &slope).sum(Kind::Float).backward();
        (&plain * slope.to_kind(Kind::Double)).sum(Kind::Double).backward();
        for (own, exact) in inputs.iter().zip(&exact).filter(|(own, _)| own.requires_grad()) {
            close(&own.grad(), &exact.grad());
        }
    }

    fn close(ours: &Tensor, exact: &Tensor) {
        assert_eq!(ours.size(), exact.size());
        let apart = (ours.to_kind(Kind::Double) - exact).abs() / (exact.abs() + 1.0);
        let apart = apart.max().double_value(&[]);
        assert!(apart < 1e-5, "{apart}");
    }

    #[test]
    fn the_norm_and_its_gradients_are_the_plain_ones() {
        tch::manual_seed(11);
        for shape in [vec![1, 150, 576], vec![3, 1, 5], vec![2, 7, 3, 64]] {
            let width = shape[shape.len() - 1];
            hold(
                &[leaf(&shape), leaf(&[width])],
                |inputs| norm(&inputs[0], &inputs[1], 1e-5),
                |inputs| inputs[0].rms_norm([width], Some(&inputs[1]), 1e-5),
            );
        }
    }

    #[test]
    fn the_gated_product_and_its_gradients_are_the_plain_ones() {
        tch::manual_seed(12);
        for scale in [1.0, 30.0, 200.0] {
            let gate = (leaf(&[1, 37, 50]) * scale).detach().set_requires_grad(true);
            hold(
                &[gate, leaf(&[1, 37, 50])],
                |inputs| gated(&inputs[0], &inputs[1]),
                |inputs| inputs[0].silu() * &inputs[1],
            );
        }
    }

    #[test]
    fn halves_of_one_tensor_are_gated_where_they_lie() {
        let both = leaf(&[2, 9, 34]).detach();
        let halves = both.chunk(2, -1);
        close(
            &gated(&halves[0], &halves[1]).expect("f32 on a CPU"),
            &(halves[0].silu() * &halves[1]).to_kind(Kind::Double),
        );
    }

    #[test]
    fn a_rotation_and_its_gradient_are_the_plain_ones() {
        tch::manual_seed(13);
        let plain = |inputs: &[Tensor]| {
            let halves = inputs[0].chunk(2, -1);
            let turned = Tensor::cat(&[halves[1].neg(), halves[0].shallow_clone()], -1);
            &inputs[0] * &inputs[1] + turned * &inputs[2]
        };
        let turns = |shape: &[i64]| {
            let half = leaf(shape).detach();
            Tensor::cat(&[&half, &half], -1)
        };
        for (x, angles) in [([3, 12, 4, 10], vec![12, 1, 5]), ([5, 1, 2, 64], vec![5, 1, 1, 32])] {
            let turns = turns(&angles);
            let inputs = [leaf(&x), turns.cos(), turns.sin()];
            hold(&inputs, |inputs| rotated(&inputs[0], &inputs[1], &inputs[2]), plain);
        }
        // Some heads of many, as a joined map gives them.
        let (all, turns) = (leaf(&[2, 6, 9, 8]).detach(), turns(&[6, 1, 4]));
        let inputs = [all.narrow(2, 1, 5), turns.cos(), turns.sin()];
        let ours = rotated(&inputs[0], &inputs[1], &inputs[2]).expect("f32 on a CPU");
        close(&ours, &plain(&inputs).to_kind(Kind::Double));
    }

    #[test]
    fn a_step_s_attention_is_the_plain_one_over_the_columns_that_it_sees() {
        tch::manual_seed(14);
        let cache = || leaf(&[6, 3, 40, 16]).detach();
        let (keys, values, query) = (cache(), cache(), leaf(&[5, 3, 2, 16]).detach() * 5.0);
        let seen = |cache: &Tensor| cache.narrow(0, 0, 5).narrow(2, 3, 30);
        let (key, value) = (seen(&keys), seen(&values));
        let starts = Tensor::from_slice(&[0_i64, 29, 7, 1, 12]).unsqueeze(1);
        let hidden = Tensor::arange(30, (Kind::Int64, Device::Cpu)).unsqueeze(0).lt_tensor(&starts);
        let mask = Tensor::zeros([5, 30], (Kind::Float, Device::Cpu))
            .masked_fill(&hidden, f64::NEG_INFINITY)
            .view([5, 1, 1, 30]);
        for mask in [None, Some(&mask)] {
            let double = |x: &Tensor| x.to_kind(Kind::Double);
            let exact = Tensor::scaled_dot_product_attention(
                &double(&query),
                &double(&key),
                &double(&value),
                mask.map(double),
                0.0,
                false,
                None,
                false,
            );
            close(&attended(&query, &key, &value, mask).expect("f32 on a CPU"), &exact);
        }
    }

    #[test]
    fn another_type_is_left_to_libtorch_and_shapes_that_do_not_fit_are_refused() {
        let half = leaf(&[2, 4]).detach().to_kind(Kind::BFloat16);
        assert!(gated(&half, &half).is_none() && norm(&half, &half.get(0), 1e-5).is_none());
        let (x, weight) = (leaf(&[2, 4]).detach(), leaf(&[3]).detach());
        let caught = std::panic::catch_unwind(|| norm(&x, &weight, 1e-5).is_some());
        let words = caught.unwrap_err().downcast::<String>().unwrap();
        assert!(words.contains("a norm of 3 numbers over rows of 4"), "{words}");
    }
}
