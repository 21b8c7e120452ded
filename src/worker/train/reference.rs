//! The reference's log-probs of every pair, once, before the first step.
//!
//! In: the reference, pairs. Out: the same pairs with their reference log-probs. The reference
//! never changes within a training: computing these first and dropping its weights is what lets one
//! device hold the training. May not enter: files, losses.

use tch::Tensor;

use super::error::TrainError;
use super::head::{self, Wanted};
use super::pack::{Packed, TokenPair};
use super::trainer::{Observer, sequence_sums};
use super::trunk::Trunk;
use crate::model::Transformer;

/// Fills `reference` of each pair with the summed log-probs of its responses under `model`, in
/// nats, at temperature 1 and untruncated: by the code that training itself uses.
///
/// # Errors
/// `Cancelled`; `BrokenReference` with the first pair whose log-probs are not finite.
pub fn fill(
    model: &Transformer,
    trunk: &mut Trunk,
    pairs: &mut [TokenPair],
    observer: &Observer<'_>,
) -> Result<(), TrainError> {
    let _no_grad = tch::no_grad_guard();
    let count = pairs.len();
    for (index, pair) in pairs.iter_mut().enumerate() {
        let packed = Packed::of(&[pair], model);
        let sums = sequence_logprobs(model, trunk, &packed, &[(index, pair)]);
        let sums = Vec::<f32>::try_from(&sums).unwrap_or_default();
        let [chosen, rejected] = sums[..] else {
            return Err(TrainError::Cancelled { step: 0 });
        };
        if !(chosen.is_finite() && rejected.is_finite()) {
            return Err(TrainError::BrokenReference { pair: index + 1 });
        }
        pair.reference = Some((f64::from(chosen), f64::from(rejected)));
        observer.watch.tick(packed.tokens()).map_err(|_| TrainError::Cancelled { step: 0 })?;
        (observer.filled)(index + 1, count);
    }
    Ok(())
}

/// Summed response log-probs of a packed batch: f32 `[sequences]`, in nats, without a graph.
pub fn sequence_logprobs(
    model: &Transformer,
    trunk: &mut Trunk,
    packed: &Packed,
    pairs: &[(usize, &TokenPair)],
) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let pass = trunk.forward(model, packed, pairs);
    let hidden = model.final_norm(&pass.stream.index_select(0, &packed.predicting));
    let scored = head::forward(model, &hidden, &packed.targets, Wanted::Logprobs);
    sequence_sums(packed, &scored.logprobs)
}
