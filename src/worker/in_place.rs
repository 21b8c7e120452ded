//! What learns, changed where it lies: gradients added in place in the backward pass, and AdamW's step.
//!
//! In: tensors, a weight that learns among them. Out: what the plain maps give; the backward pass adds to
//! the weight's `.grad` itself. The calls stand in `in_place.cpp`. May not enter: models, losses, when a
//! step is due.

use std::ffi::{CStr, c_char, c_void};
use std::panic::resume_unwind;
use std::ptr::null_mut;

use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn rlhfd_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn rlhfd_embedding(
        weight: *const C_tensor,
        ids: *const C_tensor,
        pad: i64,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn rlhfd_adamw(
        masters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        firsts: *const *const C_tensor,
        seconds: *const *const C_tensor,
        count: usize,
        constants: *const [f64; 5],
        step: f64,
        scale: f64,
        problem: *mut *mut c_char,
    ) -> bool;
    fn free(memory: *mut c_void);
}

/// `x·Wᵀ`: `[.., inputs]` → `[.., outputs]`. `weight` is a leaf, `[outputs, inputs]`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    // SAFETY: both tensors live as long as the call, which takes no ownership.
    taken(|problem| unsafe { rlhfd_linear(x.as_ptr(), weight.as_ptr(), problem) })
}

/// Rows of `weight` (a leaf, `[vocabulary, width]`) by `ids`; the row `pad` gets no gradient.
pub fn embedding(weight: &Tensor, ids: &Tensor, pad: Option<i64>) -> Tensor {
    // SAFETY: as above.
    taken(|problem| unsafe {
        rlhfd_embedding(weight.as_ptr(), ids.as_ptr(), pad.unwrap_or(-1), problem)
    })
}

/// One step of AdamW. `tensors`: master, gradient, first and second moment, f32, all of one device.
/// `constants`: rate, both betas, decay, epsilon; `step` counted from 1; gradients are divided by `scale`,
/// where there is one.
pub fn adamw(tensors: &[[&Tensor; 4]], constants: [f64; 5], step: f64, scale: Option<f64>) {
    let list = |which: usize| -> Vec<*const C_tensor> {
        tensors.iter().map(|four| four[which].as_ptr()).collect()
    };
    let lists = [list(0), list(1), list(2), list(3)];
    let [masters, gradients, firsts, seconds] = lists.each_ref().map(Vec::as_ptr);
    let count = tensors.len();
    let (constants, scale) = (&raw const constants, scale.unwrap_or(0.0));
    told(|problem| {
        // SAFETY: four lists of `count` live tensors, and constants that outlive the call.
        unsafe {
            rlhfd_adamw(masters, gradients, firsts, seconds, count, constants, step, scale, problem)
        }
    });
}

/// The tensor that a call made.
fn taken(call: impl FnOnce(*mut *mut c_char) -> *mut C_tensor) -> Tensor {
    let made = told(call);
    // SAFETY: without a problem it is a new tensor, whose ownership passes to us.
    unsafe { Tensor::from_ptr(made) }
}

/// The tensor that a call made, if it made one.
pub(crate) fn taken_if_any(call: impl FnOnce(*mut *mut c_char) -> *mut C_tensor) -> Option<Tensor> {
    let made = told(call);
    // SAFETY: what is not null is a new tensor, whose ownership passes to us.
    (!made.is_null()).then(|| unsafe { Tensor::from_ptr(made) })
}

/// What a call gave. Its error becomes a panic, as with every plain call of tch: the wall around a unit
/// (`crate::guard`) makes an error of it again.
fn told<T>(call: impl FnOnce(*mut *mut c_char) -> T) -> T {
    let mut problem = null_mut();
    let given = call(&raw mut problem);
    if !problem.is_null() {
        // SAFETY: the call gave a string of its own that ends with a zero; it is read before it is freed.
        let text = unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned();
        // SAFETY: it was made by `strdup`.
        unsafe { free(problem.cast()) };
        resume_unwind(Box::new(text));
    }
    given
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn leaf(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).set_requires_grad(true)
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert!((a - b).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn values_and_gradients_are_the_plain_maps_over_two_backward_passes() {
        tch::manual_seed(3);
        let (x, weight) = (leaf(&[1, 5, 4]), leaf(&[3, 4]));
        let (plain_x, plain_weight) =
            (x.detach().set_requires_grad(true), weight.detach().copy().set_requires_grad(true));
        for power in [2.0, 3.0] {
            let (ours, plain) =
                (linear(&x, &weight), plain_x.linear(&plain_weight, None::<Tensor>));
            close(&ours, &plain);
            ours.pow_tensor_scalar(power).sum(Kind::Double).backward();
            plain.pow_tensor_scalar(power).sum(Kind::Double).backward();
        }
        close(&x.grad(), &plain_x.grad());
        close(&weight.grad(), &plain_weight.grad());
    }

    #[test]
    fn an_input_that_needs_no_gradient_gets_none() {
        let (x, weight) = (leaf(&[2, 4]).detach(), leaf(&[3, 4]));
        linear(&x, &weight).sum(Kind::Double).backward();
        assert!(!x.grad().defined() && weight.grad().defined());
    }

    #[test]
    fn a_frozen_weight_gets_none_and_passes_it_on() {
        let (x, weight) = (leaf(&[2, 4]), leaf(&[3, 4]).detach());
        linear(&x, &weight).sum(Kind::Double).backward();
        assert!(x.grad().defined() && !weight.grad().defined());
    }

    #[test]
    fn rows_are_added_up_but_for_the_pads() {
        let (weight, ids) = (leaf(&[6, 2]), Tensor::from_slice(&[1_i64, 5, 1, 2]).unsqueeze(0));
        let plain = weight.detach().copy().set_requires_grad(true);
        for pad in [Some(5), None] {
            let (ours, theirs) = (
                embedding(&weight, &ids, pad),
                Tensor::embedding(&plain, &ids, pad.unwrap_or(-1), false, false),
            );
            close(&ours, &theirs);
            (&ours * &ours).sum(Kind::Double).backward();
            (&theirs * &theirs).sum(Kind::Double).backward();
            close(&weight.grad(), &plain.grad());
        }
    }

    #[test]
    fn an_error_of_libtorch_is_a_panic_with_its_words() {
        let caught = std::panic::catch_unwind(|| drop(linear(&leaf(&[2, 4]), &leaf(&[3, 5]))));
        let words = caught.unwrap_err().downcast::<String>().unwrap();
        assert!(words.contains("cannot be multiplied"), "{words}");
    }
}
