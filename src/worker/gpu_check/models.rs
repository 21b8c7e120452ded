//! The random models of the check, and what they are asked.
//!
//! In: nothing but constants. Out: a configuration, f32 weights on the CPU, sequences, prompts and
//! pairs of ids; the same on every machine, since libtorch's CPU generator is seeded. May not enter:
//! devices, precisions.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::errors::ModelError;
use crate::logprob::Sequence;
use crate::model::ModelConfig;
use crate::synthetic;
use crate::train::pack::TokenPair;

/// A model and its questions.
pub struct Subject {
    pub name: &'static str,
    pub shape: Shape,
    /// A learning rate at which the loss falls within eight steps, but not to where nothing is left
    /// of it: there a relative difference would say nothing.
    pub falling_rate: f64,
    seed: i64,
}

/// The sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub mlp: usize,
    pub vocabulary: usize,
}

/// Ids of a prompt, and of a response, of the pairs.
const PROMPT_TOKENS: usize = 12;
const RESPONSE_TOKENS: usize = 20;

impl Subject {
    /// The tiny one, then the larger one.
    pub fn all() -> [Self; 2] {
        let tiny = Shape { layers: 2, width: 64, heads: 4, kv_heads: 2, mlp: 128, vocabulary: 512 };
        let larger =
            Shape { layers: 12, width: 768, heads: 12, kv_heads: 4, mlp: 2048, vocabulary: 16_000 };
        [
            Self { name: "tiny model", shape: tiny, falling_rate: 1e-4, seed: 11 },
            Self { name: "larger model", shape: larger, falling_rate: 1e-6, seed: 12 },
        ]
    }

    /// The configuration, as a folder's config.json would say it.
    ///
    /// # Errors
    /// None that a correct build gives: the text below is ours.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let s = self.shape;
        let text = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": s.width, "intermediate_size": s.mlp, "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
            "vocab_size": s.vocabulary, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        ModelConfig::parse(&text.to_string(), Path::new("gpu-check"))
    }

    /// The weights: f32 on the CPU, spread so that logits have a deviation of about 2, as a trained
    /// model's do.
    pub fn weights(&self, config: &ModelConfig) -> Vec<(String, Tensor)> {
        synthetic::weights(config, self.seed, (Kind::Float, Device::Cpu))
    }

    /// Millions of parameters, rounded up.
    pub fn millions(&self) -> u64 {
        let s = self.shape;
        let key = s.width / s.heads * s.kv_heads;
        let layer = 2 * s.width * s.width + 2 * s.width * key + 3 * s.width * s.mlp;
        (s.layers * layer + s.vocabulary * s.width).div_ceil(1_000_000) as u64
    }

    /// Ids by a fixed rule; `stream` sets lists apart.
    fn ids(&self, stream: u64, count: usize) -> Vec<u32> {
        synthetic::ids((self.seed as u64, stream), count, self.shape.vocabulary)
    }

    /// Sequences for logits and log-probs, of unequal lengths.
    pub fn sequences(&self) -> Vec<Sequence> {
        let lengths = [24, 40, 64, 96];
        let sequence = |(stream, tokens): (usize, usize)| Sequence {
            ids: self.ids(stream as u64, tokens),
            prompt_tokens: 8,
        };
        lengths.into_iter().enumerate().map(sequence).collect()
    }

    /// Prompts for greedy tokens.
    pub fn prompts(&self) -> Vec<Vec<u32>> {
        (0..8).map(|stream| self.ids(100 + stream, 6 + stream as usize)).collect()
    }

    /// Pairs for training, of unequal lengths.
    pub fn pairs(&self) -> Vec<TokenPair> {
        (0..8)
            .map(|pair| TokenPair {
                prompt: self.ids(200 + pair, PROMPT_TOKENS),
                chosen: self.ids(300 + pair, RESPONSE_TOKENS - pair as usize),
                rejected: self.ids(400 + pair, RESPONSE_TOKENS / 2 + pair as usize),
                reference: None,
                weight: 1.0,
            })
            .collect()
    }
}
