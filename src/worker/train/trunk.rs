//! The trunk under training: embedding and blocks, forward and backward.
//!
//! In: a packed micro-batch. Out: the stream before the final norm, as a leaf whose gradient the
//! caller fills, and the backward pass from there. The blocks below the lowest one that learns run
//! without a graph; what they give for an example never changes during a training, so it is computed
//! once an example and kept as long as a fixed budget lasts. With activation checkpointing a block's
//! activations are computed again in the backward pass (tch has no custom autograd: the gradient
//! goes in as `(output · gradient).sum()`). May not enter: heads, losses, optimisers.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::pack::{Example, Packed};
use crate::model::Transformer;

/// Bytes of frozen states that a training keeps on the device.
const KEPT_BYTES: usize = 1 << 30;

/// How a block's activations reach the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// Kept from the forward pass.
    Kept,
    /// Computed again, block by block.
    Recomputed,
}

/// Where the graph begins in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// The embedding learns: everything has a graph.
    Embedding,
    /// Blocks from this one on learn (as many as there are blocks: only what follows them does).
    Block(usize),
}

/// The trunk's plan, and the frozen states that it keeps.
pub struct Trunk {
    begin: Begin,
    checkpointing: bool,
    kept: HashMap<usize, Tensor>,
    kept_bytes: usize,
    kept_bytes_max: usize,
}

/// One forward pass.
pub struct Pass {
    /// `[tokens, width]` before the final norm, on the head's device. Under checkpointing a leaf of its own.
    pub stream: Tensor,
    /// The learning blocks' inputs; empty without checkpointing.
    inputs: Vec<Tensor>,
}

impl Trunk {
    /// Plans the passes of `model` by which of its parameters learn.
    #[must_use]
    pub fn new(model: &Transformer, activations: Activations) -> Self {
        let learns = |prefix: &str| {
            model.parameters().iter().any(|(name, p)| p.requires_grad() && name.starts_with(prefix))
        };
        let begin = if learns("model.embed_tokens.") {
            Begin::Embedding
        } else {
            let blocks = model.blocks().len();
            let lowest = (0..blocks).find(|layer| learns(&format!("model.layers.{layer}.")));
            Begin::Block(lowest.unwrap_or(blocks))
        };
        Self {
            begin,
            checkpointing: activations == Activations::Recomputed,
            kept: HashMap::new(),
            kept_bytes: 0,
            kept_bytes_max: KEPT_BYTES,
        }
    }

    /// A trunk for one look at each example: nothing is kept.
    #[must_use]
    pub fn once(model: &Transformer) -> Self {
        Self { kept_bytes_max: 0, ..Self::new(model, Activations::Kept) }
    }

    /// The stream of a micro-batch, with a graph from the lowest learning block on. `examples` are the
    /// micro-batch's and their indices in the training set, by which frozen states are kept.
    pub fn forward<E: Example>(
        &mut self,
        model: &Transformer,
        packed: &Packed,
        examples: &[(usize, &E)],
    ) -> Pass {
        let ropes = model.rope_packed(&packed.trees);
        let (mut x, first) = match self.begin {
            Begin::Embedding if self.checkpointing => {
                (tch::no_grad(|| model.embed(&packed.ids)), 0)
            }
            Begin::Embedding => (model.embed(&packed.ids), 0),
            Begin::Block(first) => (self.frozen(model, examples, first), first),
        };
        let mut inputs = Vec::new();
        if !self.checkpointing {
            for block in &model.blocks()[first..] {
                x = block.forward(&x, &ropes);
            }
            return Pass { stream: model.left(x).squeeze_dim(0), inputs };
        }
        let _no_grad = tch::no_grad_guard();
        for block in &model.blocks()[first..] {
            inputs.push(x.shallow_clone());
            x = block.forward(&x, &ropes);
        }
        let stream = model.left(x).squeeze_dim(0).detach().set_requires_grad(true);
        Pass { stream, inputs }
    }

    /// Carries the gradient that has reached `pass.stream` down to all parameters that learn.
    /// Without checkpointing there is nothing left to do: the graph went through.
    pub fn backward(&self, model: &Transformer, packed: &Packed, pass: &Pass) {
        if !self.checkpointing {
            return;
        }
        let mut gradient = pass.stream.grad();
        if !gradient.defined() {
            return;
        }
        gradient = model.re_entered(gradient.unsqueeze(0));
        let ropes = model.rope_packed(&packed.trees);
        let first = model.blocks().len() - pass.inputs.len();
        for (block, input) in model.blocks()[first..].iter().zip(&pass.inputs).rev() {
            let input = input.detach().set_requires_grad(true);
            let output = tch::with_grad(|| block.forward(&input, &ropes));
            push(&output, &gradient);
            gradient = input.grad();
        }
        if self.begin == Begin::Embedding {
            push(&tch::with_grad(|| model.embed(&packed.ids)), &gradient);
        }
    }

    /// The stream below block `first`, `[1, tokens, width]`, put together from each example's own.
    fn frozen<E: Example>(
        &mut self,
        model: &Transformer,
        examples: &[(usize, &E)],
        first: usize,
    ) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let own: Vec<Tensor> = examples
            .iter()
            .map(|(index, example)| self.frozen_example(model, *index, *example, first))
            .collect();
        match own.as_slice() {
            [one] => one.shallow_clone(),
            many => Tensor::cat(many, 1),
        }
    }

    /// An example's own frozen state, `[1, its tokens, width]`. It is always computed for the example
    /// alone, so that its bits depend neither on the micro-batch nor on whether it was kept.
    fn frozen_example<E: Example>(
        &mut self,
        model: &Transformer,
        index: usize,
        example: &E,
        first: usize,
    ) -> Tensor {
        if let Some(own) = self.kept.get(&index) {
            return own.shallow_clone();
        }
        let packed = Packed::of(&[example], model);
        let ropes = model.rope_packed(&packed.trees);
        let mut x = model.embed(&packed.ids);
        for block in &model.blocks()[..first] {
            x = block.forward(&x, &ropes);
        }
        let bytes = x.numel() * x.kind().elt_size_in_bytes();
        if self.kept_bytes + bytes <= self.kept_bytes_max {
            self.kept_bytes += bytes;
            self.kept.insert(index, x.shallow_clone());
        }
        x
    }
}

/// Runs the backward pass of `output` from `gradient`, adding to every leaf's `.grad`.
pub fn push(output: &Tensor, gradient: &Tensor) {
    if output.requires_grad() {
        tch::with_grad(|| (output * gradient.detach()).sum(Kind::Float).backward());
    }
}
