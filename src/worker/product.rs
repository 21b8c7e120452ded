//! `x·Wᵀ` of a weight that does not learn, in f32 on a CPU.
//!
//! In: a few rows of numbers, a weight. Out: their product, or nothing where libtorch's own has to do it.
//! libtorch's product copies the weight into another order first, at every call: worth it for many rows, but
//! half of the time of a decoding step. This one reads both where they lie. The calls stand in `product.cpp`.
//! May not enter: gradients, models.

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::in_place::taken_if_any;

unsafe extern "C" {
    fn rlhfd_product(
        x: *const C_tensor,
        weight: *const C_tensor,
        problem: *mut *mut c_char,
    ) -> *mut C_tensor;
}

/// From so many rows on libtorch's product is the faster one.
const FEW_ROWS: usize = 192;

/// `x·Wᵀ`: `[.., inputs]` → `[.., outputs]`, for a weight `[outputs, inputs]`; the element of a row does not depend
/// on the others. None where it does not suit: another type or device, something that learns, many rows, a
/// processor without AVX2.
#[must_use]
pub fn of_few_rows(x: &Tensor, weight: &Tensor) -> Option<Tensor> {
    let inputs = weight.size().last().and_then(|inputs| usize::try_from(*inputs).ok())?;
    if inputs == 0 || x.numel() / inputs >= FEW_ROWS {
        return None;
    }
    // SAFETY: both tensors live as long as the call, which takes no ownership.
    taken_if_any(|problem| unsafe { rlhfd_product(x.as_ptr(), weight.as_ptr(), problem) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn has_kernel() -> bool {
        cfg!(target_arch = "x86_64")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
    }

    #[test]
    fn it_is_the_plain_product_at_every_edge_of_a_tile() {
        if !has_kernel() {
            return;
        }
        tch::manual_seed(7);
        for rows in [1, 2, 4, 5, 6, 9, 64] {
            for (inputs, outputs) in [(1, 1), (7, 5), (16, 3), (40, 100), (576, 49), (1541, 82)] {
                let (x, weight) = (random(&[rows, 1, inputs]), random(&[outputs, inputs]));
                let ours = of_few_rows(&x, &weight).expect("a kernel");
                let exact =
                    x.to_kind(Kind::Double).linear(&weight.to_kind(Kind::Double), None::<Tensor>);
                assert_eq!(ours.size(), [rows, 1, outputs]);
                let apart = (ours.to_kind(Kind::Double) - exact).abs().max().double_value(&[]);
                assert!(
                    apart < 1e-5 * (inputs as f64).sqrt(),
                    "{rows} {inputs} {outputs}: {apart}"
                );
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others_whatever_the_threads() {
        let (x, weight) = (random(&[13, 100]), random(&[500, 100]));
        let Some(together) = of_few_rows(&x, &weight) else { return assert!(!has_kernel()) };
        for row in 0..13 {
            let alone = of_few_rows(&x.narrow(0, row, 1), &weight).expect("a kernel");
            assert_eq!(alone, together.narrow(0, row, 1));
        }
        let transposed = x.transpose(0, 1).contiguous().transpose(0, 1);
        assert_eq!(of_few_rows(&transposed, &weight).expect("a kernel"), together);
    }

    #[test]
    fn what_does_not_suit_is_left_to_libtorch() {
        let weight = random(&[8, 4]);
        let few = random(&[2, 4]);
        let refused = [
            (few.to_kind(Kind::Double), weight.to_kind(Kind::Double)),
            (random(&[200, 4]), weight.shallow_clone()),
            (random(&[2, 5]), weight.shallow_clone()),
            (few.shallow_clone(), weight.copy().set_requires_grad(true)),
            (few.shallow_clone(), random(&[4, 8]).transpose(0, 1)),
            (random(&[0, 4]), weight.shallow_clone()),
        ];
        for (x, weight) in refused {
            assert!(of_few_rows(&x, &weight).is_none(), "{:?} {:?}", x.size(), weight.size());
        }
    }
}
