//! The head of a reward model: one linear row, as AutoModelForSequenceClassification has it.
//!
//! In: hidden states at the scored positions. Out: one f32 a sequence. Which position is scored is
//! decided in `score`. May not enter: tokenizers, padding rules.

use tch::{Kind, Tensor};

/// `score.weight`, `[1, width]`, without a bias.
#[derive(Debug)]
pub struct ScoreHead {
    weight: Tensor,
}

impl ScoreHead {
    /// Wraps the parameter.
    #[must_use]
    pub fn new(weight: Tensor) -> Self {
        Self { weight }
    }

    /// `[rows, width]` → `[rows]`, f32.
    pub fn forward(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(&self.weight, None::<&Tensor>).squeeze_dim(-1).to_kind(Kind::Float)
    }
}
