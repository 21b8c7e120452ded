//! One decoder block: attention and MLP, each behind a norm and added to the stream.
//!
//! In: `[rows, tokens, width]` and [`Ropes`]. Out: the same shape, on the block's own device. [`Block::forward`] is what
//! training recomputes block by block. May not enter: caches' book-keeping, losses.

use tch::{Device, Tensor};

use super::attention::{Attention, Step};
use super::kv_cache::LayerCache;
use super::layers::{Linear, RmsNorm};
use super::placement::moved;
use super::rotary::Ropes;
use crate::one_pass;

/// The gated MLP: `down(silu(gate(x)) · up(x))`.
#[derive(Debug)]
pub struct Mlp {
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
    /// Gate and up as one map, in a model that does not learn.
    pub gate_up: Option<Linear>,
}

impl Mlp {
    /// `[.., width]` → `[.., width]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let gated = match &self.gate_up {
            Some(both) => {
                let halves = both.forward(x).chunk(2, -1);
                gated(&halves[0], &halves[1])
            }
            None => gated(&self.gate.forward(x), &self.up.forward(x)),
        };
        self.down.forward(&gated)
    }
}

fn gated(gate: &Tensor, up: &Tensor) -> Tensor {
    one_pass::gated(gate, up).unwrap_or_else(|| gate.silu() * up)
}

/// One decoder block.
#[derive(Debug)]
pub struct Block {
    /// The place of its device among the model's.
    pub place: usize,
    /// Its device, where the block below (or the embedding) lies on another one.
    pub entry: Option<Device>,
    /// Norm before the attention.
    pub attention_norm: RmsNorm,
    /// The attention.
    pub attention: Attention,
    /// Norm before the MLP.
    pub mlp_norm: RmsNorm,
    /// The MLP.
    pub mlp: Mlp,
}

impl Block {
    /// Whole sequences, `[rows, tokens, width]`, right-padded.
    pub fn forward(&self, x: &Tensor, ropes: &Ropes) -> Tensor {
        self.entered(x, |x| {
            let rope = ropes.at(self.place);
            let x = x + self.attention.forward(&self.attention_norm.forward(x), rope);
            self.finish(x)
        })
    }

    /// The same, keeping keys and values.
    pub fn prefill(&self, x: &Tensor, ropes: &Ropes, cache: &mut LayerCache) -> Tensor {
        self.entered(x, |x| {
            let rope = ropes.at(self.place);
            let x = x + self.attention.prefill(&self.attention_norm.forward(x), rope, cache);
            self.finish(x)
        })
    }

    /// One new position a row; see [`Attention::decode`].
    pub fn decode(&self, x: &Tensor, cache: &mut LayerCache, step: Step<'_>) -> Tensor {
        self.entered(x, |x| {
            let x = x + self.attention.decode(&self.attention_norm.forward(x), cache, step);
            self.finish(x)
        })
    }

    /// What `of` gives for the stream, on the block's own device.
    fn entered(&self, x: &Tensor, of: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        match self.entry {
            None => of(x),
            Some(device) => of(&moved(x, device)),
        }
    }

    fn finish(&self, x: Tensor) -> Tensor {
        let update = self.mlp.forward(&self.mlp_norm.forward(&x));
        x + update
    }
}
