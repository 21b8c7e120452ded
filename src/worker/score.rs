//! Scores whole conversations with a Bradley-Terry reward model.
//!
//! In: a reward model, sequences of ids, the rule for the scored position. Out: one number a sequence.
//! Sequences are packed without padding, so that no score depends on its neighbours, and answers to one
//! prompt share its computation; the pad id is looked at for one thing only, the position rule of transformers. May not enter: text, training.

use rlhfd_protocol::worker::ScorePosition;
use tch::Tensor;

use crate::errors::WorkerError;
use crate::logprob::host_floats;
use crate::model::Transformer;
use crate::prefix::Forest;
use crate::watch::Watch;

/// The position that is scored.
///
/// transformers takes the last position whose id is not the pad id: one too early where pad is the
/// stop id that ends the text. Where every id is the pad id it takes the first position; without a
/// pad id, the last.
#[must_use]
pub fn scored_position(ids: &[u32], pad_id: Option<u32>, rule: ScorePosition) -> usize {
    let last = ids.len().saturating_sub(1);
    match (rule, pad_id) {
        (ScorePosition::Transformers, Some(pad)) => {
            ids.iter().rposition(|id| *id != pad).unwrap_or(0)
        }
        (ScorePosition::Transformers, None) | (ScorePosition::Last, _) => last,
    }
}

/// Scores of one batch, in its order.
///
/// Shapes: one f32 a sequence. Errors: `Cancelled`.
pub fn score_batch(
    model: &Transformer,
    sequences: &[Vec<u32>],
    rule: ScorePosition,
    watch: &Watch,
) -> Result<Vec<f32>, WorkerError> {
    let _guard = tch::no_grad_guard();
    let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let forest = Forest::of(&borrowed);
    let positions: Vec<i64> = sequences
        .iter()
        .enumerate()
        .map(|(index, ids)| forest.column(index, scored_position(ids, model.config.pad_id, rule)))
        .collect();
    let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(model.head_device());
    let ids = Tensor::from_slice(&forest.ids).to_device(model.device()).unsqueeze(0);
    let hidden = model.hidden_trees(&ids, &forest.trees).squeeze_dim(0);
    let scores = model.scores(&hidden.index_select(0, &tensor(&positions)));
    watch.tick(forest.ids.len() as u64)?;
    Ok(host_floats(&scores))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_rules_part_where_the_pad_id_ends_the_text() {
        let position = |ids: &[u32], pad, rule| scored_position(ids, pad, rule);
        use ScorePosition::{Last, Transformers};
        assert_eq!(position(&[5, 6, 2], Some(2), Transformers), 1);
        assert_eq!(position(&[5, 6, 2], Some(2), Last), 2);
        assert_eq!(position(&[5, 2, 6], Some(2), Transformers), 2);
        assert_eq!(position(&[5, 6, 2], None, Transformers), 2);
        assert_eq!(position(&[2, 2], Some(2), Transformers), 0);
    }
}
