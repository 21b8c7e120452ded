//! Log-probs of given responses, at temperature 1 and untruncated.
//!
//! In: a policy, whole sequences of ids with the length of their prompt. Out: one f32 a response
//! token. Sequences are packed without padding, responses to one prompt share its computation; logits are made only at the positions that predict a
//! response token, some at a time. May not enter: training (it needs gradients), text.

use tch::{Kind, Tensor};

use crate::errors::WorkerError;
use crate::model::Transformer;
use crate::prefix::Forest;
use crate::watch::Watch;

/// A prompt and its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Ids of prompt and response, one after the other.
    pub ids: Vec<u32>,
    /// How many of them are the prompt's: at least 1, fewer than all.
    pub prompt_tokens: usize,
}

/// Rows of logits held at a time: with a vocabulary of 49,152, 100 MB.
const LOGIT_ROWS: i64 = 512;

/// Log-probs of the responses of one batch.
///
/// Shapes: one vector a sequence, as long as its response. Units: nats.
/// Errors: `Cancelled`.
pub fn response_logprobs(
    model: &Transformer,
    sequences: &[Sequence],
    watch: &Watch,
) -> Result<Vec<Vec<f32>>, WorkerError> {
    let _guard = tch::no_grad_guard();
    let borrowed: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
    let forest = Forest::of(&borrowed);
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (number, sequence) in sequences.iter().enumerate() {
        for index in sequence.prompt_tokens..sequence.ids.len() {
            positions.push(forest.column(number, index - 1));
            targets.push(i64::from(sequence.ids[index]));
        }
    }
    let tensor = |values: &[i64], device| Tensor::from_slice(values).to_device(device);
    let ids = tensor(&forest.ids, model.device()).unsqueeze(0);
    let hidden = model.hidden_trees(&ids, &forest.trees).squeeze_dim(0);
    let head = model.head_device();
    let chosen = hidden.index_select(0, &tensor(&positions, head));
    let (targets, count) = (tensor(&targets, head), positions.len() as i64);
    let mut parts = Vec::new();
    let mut start = 0;
    while start < count {
        let rows = LOGIT_ROWS.min(count - start);
        let logprobs = model.logits(&chosen.narrow(0, start, rows)).log_softmax(-1, Kind::Float);
        let own = targets.narrow(0, start, rows).unsqueeze(1);
        parts.push(logprobs.gather(1, &own, false).squeeze_dim(1));
        start += rows;
    }
    watch.tick(forest.ids.len() as u64)?;
    let flat = host_floats(&Tensor::cat(&parts, 0));
    let mut rest = flat.as_slice();
    Ok(sequences
        .iter()
        .map(|sequence| {
            let (own, after) = rest.split_at(sequence.ids.len() - sequence.prompt_tokens);
            rest = after;
            own.to_vec()
        })
        .collect())
}

/// A tensor's values as f32 on the host.
#[must_use]
pub fn host_floats(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
}
