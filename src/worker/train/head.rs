//! The language head under training: log-probs of given ids and their gradient, in chunks.
//!
//! In: hidden states at response positions, the ids that follow them. Out: one log-prob a position;
//! then, for a coefficient a position, the gradient of `Σ coefficient · log-prob` towards the hidden
//! states and the head's weight. A full `[positions, vocabulary]` tensor never exists: with
//! `r = softmax(logits) − onehot(id)` one has `d log-prob / d hidden = −r·W`, which does not depend
//! on the coefficient and so is taken in the same pass as the log-prob itself. tch has no custom
//! autograd; this is done by hand. May not enter: losses, blocks, padding.

use tch::{Kind, Tensor};

use crate::model::Transformer;

/// What may be in memory at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of f32 logits that exist at a time.
    pub chunk_bytes: i64,
    /// Bytes of residuals that are kept for the weight's gradient; beyond, they are computed again.
    pub kept_bytes: i64,
}

/// The room that training takes: with a vocabulary of 49,152 a chunk is 341 positions.
pub const ROOM: Room = Room { chunk_bytes: 64 << 20, kept_bytes: 512 << 20 };

/// What [`forward`] has to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Log-probs only.
    Logprobs,
    /// The gradient towards the hidden states too.
    HiddenGradient,
    /// Both gradients: the head learns.
    WeightGradient,
}

/// The log-probs of one forward pass, with what its backward pass needs.
pub struct Scored {
    /// f32 `[positions]`, nats.
    pub logprobs: Tensor,
    /// Bool `[positions]`: whether no id is likelier than the target; empty for log-probs only.
    pub hits: Tensor,
    hidden: Tensor,
    targets: Tensor,
    slope: Option<Tensor>,
    residuals: Vec<Option<Tensor>>,
    chunk: i64,
}

/// Log-probs of `targets` at temperature 1, untruncated.
///
/// Shapes: `hidden` `[positions, width]` after the final norm, `targets` `[positions]` i64; the
/// result is f32 `[positions]`, in nats. The log-sum-exp is taken in f32 whatever the model
/// computes in. No autograd graph is made.
#[must_use]
pub fn forward(model: &Transformer, hidden: &Tensor, targets: &Tensor, wanted: Wanted) -> Scored {
    forward_in(ROOM, model, (hidden, targets), wanted)
}

/// As [`forward`], in the room given.
#[must_use]
pub fn forward_in(
    room: Room,
    model: &Transformer,
    (hidden, targets): (&Tensor, &Tensor),
    wanted: Wanted,
) -> Scored {
    let _no_grad = tch::no_grad_guard();
    let hidden = hidden.detach();
    let positions = hidden.size()[0];
    let vocabulary = i64::try_from(model.config.vocabulary).unwrap_or(i64::MAX).max(1);
    let chunk = (room.chunk_bytes / 4 / vocabulary).max(1);
    let kept = positions.saturating_mul(vocabulary).saturating_mul(4) <= room.kept_bytes;
    let weight = if wanted == Wanted::Logprobs { Tensor::new() } else { weight(model) };
    let (mut logprobs, mut hits) = (Vec::new(), Vec::new());
    let mut slopes = Vec::new();
    let mut residuals = Vec::new();
    for (start, length) in chunks(positions, chunk) {
        let ids = targets.narrow(0, start, length).unsqueeze(1);
        let mut all = log_softmax(model, &hidden.narrow(0, start, length));
        let own = all.gather(1, &ids, false);
        logprobs.push(own.squeeze_dim(1));
        if wanted == Wanted::Logprobs {
            continue;
        }
        hits.push(own.ge_tensor(&all.amax([-1_i64], true)).squeeze_dim(1));
        let residual = residual(&mut all, &ids);
        slopes.push(residual.to_kind(hidden.kind()).matmul(&weight).neg());
        if wanted == Wanted::WeightGradient {
            residuals.push(kept.then_some(residual));
        }
    }
    let slope = (wanted != Wanted::Logprobs).then(|| join(&slopes, &hidden));
    let whole = |parts: &[Tensor], kind| {
        let empty = || Tensor::zeros([0], (kind, hidden.device()));
        if parts.is_empty() { empty() } else { Tensor::cat(parts, 0) }
    };
    let (logprobs, hits) = (whole(&logprobs, Kind::Float), whole(&hits, Kind::Bool));
    Scored { logprobs, hits, targets: targets.shallow_clone(), slope, residuals, chunk, hidden }
}

impl Scored {
    /// The gradient of `Σ coefficients · logprobs` towards the hidden states, `[positions, width]`
    /// in their type. `coefficients`: f32 `[positions]`. None if it was not wanted.
    #[must_use]
    pub fn hidden_gradient(&self, coefficients: &Tensor) -> Option<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let slope = self.slope.as_ref()?;
        Some(slope * coefficients.to_kind(slope.kind()).unsqueeze(1))
    }

    /// Adds the gradient of `Σ coefficients · logprobs` towards the head's weight to `gradient`
    /// (`[vocabulary, width]`) in place.
    pub fn add_weight_gradient(
        &self,
        model: &Transformer,
        coefficients: &Tensor,
        gradient: &mut Tensor,
    ) {
        let _no_grad = tch::no_grad_guard();
        let spans = chunks(self.hidden.size()[0], self.chunk);
        for ((start, length), kept) in spans.zip(&self.residuals) {
            let hidden = self.hidden.narrow(0, start, length);
            let residual = match kept {
                Some(residual) => residual.shallow_clone(),
                None => {
                    let ids = self.targets.narrow(0, start, length).unsqueeze(1);
                    residual(&mut log_softmax(model, &hidden), &ids)
                }
            };
            // The coefficients go into the narrower factor.
            let scale = coefficients.narrow(0, start, length).neg().unsqueeze(1);
            let right = (hidden.to_kind(Kind::Float) * scale).to_kind(gradient.kind());
            let left = residual.to_kind(gradient.kind()).transpose(0, 1);
            let _ = gradient.addmm_(&left, &right);
        }
    }
}

/// The name of the weight that makes logits.
#[must_use]
pub fn weight_name(model: &Transformer) -> &'static str {
    if model.config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" }
}

fn weight(model: &Transformer) -> Tensor {
    let name = weight_name(model);
    let found = model.parameters().iter().find(|(candidate, _)| candidate == name);
    // A loaded policy always has it; an empty tensor makes libtorch refuse the product.
    found.map_or_else(Tensor::new, |(_, tensor)| tensor.detach())
}

/// `[positions, vocabulary]`, f32. Taken whole by the library's own kernel, which reads the logits once.
fn log_softmax(model: &Transformer, hidden: &Tensor) -> Tensor {
    model.logits(hidden).log_softmax(-1, Kind::Float)
}

/// `probabilities − onehot(ids)`, in the memory of the log-probs.
fn residual(logprobs: &mut Tensor, ids: &Tensor) -> Tensor {
    let minus_one = Tensor::full(ids.size(), -1.0, (Kind::Float, ids.device()));
    let mut probabilities = logprobs.exp_();
    probabilities.scatter_add_(1, ids, &minus_one)
}

fn join(parts: &[Tensor], like: &Tensor) -> Tensor {
    match parts {
        [] => like.zeros_like(),
        [one] => one.shallow_clone(),
        many => Tensor::cat(many, 0),
    }
}

fn chunks(positions: i64, chunk: i64) -> impl Iterator<Item = (i64, i64)> {
    let step = usize::try_from(chunk.max(1)).unwrap_or(1);
    (0..positions).step_by(step).map(move |start| (start, chunk.min(positions - start)))
}
