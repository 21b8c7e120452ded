//! Floating-point operations that the model's arithmetic needs, by what is computed.
//!
//! In: a configuration, token counts. Out: counts; a product of `[a, b]` and `[b, c]` is 2·a·b·c. Only
//! matrix products are counted, recomputed activations are not (they are a choice, not the work). May
//! not enter: time.

use crate::model::ModelConfig;

/// Counts for one model.
#[derive(Debug, Clone, Copy)]
pub struct Flops {
    blocks: f64,
    head: f64,
    position: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52, or rounded for a report")]
impl Flops {
    /// Of a configuration.
    pub fn of(config: &ModelConfig) -> Self {
        let queries = config.heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        let layer = config.width * (2 * queries + 2 * keys) + 3 * config.width * config.mlp_width;
        Self {
            blocks: 2.0 * (config.layers * layer) as f64,
            head: 2.0 * (config.width * config.vocabulary) as f64,
            position: 4.0 * (config.layers * queries) as f64,
        }
    }

    /// The blocks' linear maps for so many tokens.
    pub fn tokens(&self, tokens: usize) -> f64 {
        self.blocks * tokens as f64
    }

    /// Logits at so many positions.
    pub fn logits(&self, positions: usize) -> f64 {
        self.head * positions as f64
    }

    /// Attention of tokens that see `seen` positions in all.
    pub fn attention(&self, seen: usize) -> f64 {
        self.position * seen as f64
    }

    /// A causal sequence that goes on from `before` positions for `tokens` more, without logits.
    pub fn sequence(&self, before: usize, tokens: usize) -> f64 {
        let seen = before * tokens + tokens * (tokens + 1) / 2;
        self.tokens(tokens) + self.attention(seen)
    }
}
