//! From named parameters to layers.
//!
//! In: a configuration, tensors by their Hugging Face names, adapters' and joined ones among them. Out:
//! blocks that share their memory with those tensors. May not enter: computing, files.

use std::sync::Arc;

use tch::Tensor;

use super::adapter::{Adapter, DOWN, Dropout, Switch, UP};
use super::attention::{Attention, AttentionShape};
use super::block::{Block, Mlp};
use super::config::ModelConfig;
use super::joined;
use super::layers::{Linear, RmsNorm};
use super::placement::Placement;

/// How the adapters among a model's parameters are used.
pub(super) struct Adapting {
    pub(super) scaling: f64,
    pub(super) dropout: Dropout,
    pub(super) switch: Arc<Switch>,
}

/// Named parameters on their way into layers.
pub(super) struct Parts<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) placement: &'a Placement,
    pub(super) parameters: &'a [(String, Tensor)],
    pub(super) joined: &'a [(String, Tensor)],
    pub(super) adapting: Option<&'a Adapting>,
}

impl Parts<'_> {
    pub(super) fn get(&self, name: &str) -> Result<Tensor, String> {
        let found = self.parameters.iter().find(|(candidate, _)| candidate == name);
        found.map(|(_, tensor)| tensor.shallow_clone()).ok_or_else(|| name.to_owned())
    }

    pub(super) fn linear(&self, name: &str, bias: bool) -> Result<Linear, String> {
        let weight = self.get(&format!("{name}.weight"))?;
        let bias = if bias { Some(self.get(&format!("{name}.bias"))?) } else { None };
        Ok(Linear::new(weight, bias).with_adapter(self.adapter(name)))
    }

    /// A map that stands for several, where they were joined.
    fn joined(&self, name: &str) -> Option<Linear> {
        let get = |kind: &str| {
            let full = format!("{name}.{kind}");
            let found = self.joined.iter().find(|(candidate, _)| *candidate == full);
            found.map(|(_, tensor)| tensor.shallow_clone())
        };
        Some(Linear::new(get("weight")?, get("bias")))
    }

    fn adapter(&self, module: &str) -> Option<Adapter> {
        let adapting = self.adapting?;
        Some(Adapter {
            module: module.to_owned(),
            down: self.get(&format!("{module}{DOWN}")).ok()?,
            up: self.get(&format!("{module}{UP}")).ok()?,
            scaling: adapting.scaling,
            dropout: adapting.dropout,
            switch: Arc::clone(&adapting.switch),
        })
    }

    pub(super) fn norm(&self, name: &str) -> Result<RmsNorm, String> {
        Ok(RmsNorm::new(self.get(&format!("{name}.weight"))?, self.config.norm_epsilon))
    }

    pub(super) fn block(&self, layer: usize) -> Result<Block, String> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        Ok(Block {
            place: self.placement.place_of(layer),
            entry: self.placement.entry(layer),
            attention_norm: self.norm(&name("input_layernorm"))?,
            attention: self.attention(layer)?,
            mlp_norm: self.norm(&name("post_attention_layernorm"))?,
            mlp: Mlp {
                gate: self.linear(&name("mlp.gate_proj"), self.config.mlp_bias)?,
                up: self.linear(&name("mlp.up_proj"), self.config.mlp_bias)?,
                down: self.linear(&name("mlp.down_proj"), self.config.mlp_bias)?,
                gate_up: self.joined(&name(joined::GATE_UP)),
            },
        })
    }

    fn attention(&self, layer: usize) -> Result<Attention, String> {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let config = self.config;
        let norms = if config.family.qk_norm {
            Some((self.norm(&name("q_norm"))?, self.norm(&name("k_norm"))?))
        } else {
            None
        };
        Ok(Attention {
            shape: AttentionShape {
                heads: config.heads as i64,
                kv_heads: config.kv_heads as i64,
                head_dim: config.head_dim as i64,
                window: config.windows.get(layer).copied().flatten().map(|window| window as i64),
                rotated: config.rotated.get(layer).copied().unwrap_or(true),
            },
            query: self.linear(&name("q_proj"), config.qkv_bias)?,
            key: self.linear(&name("k_proj"), config.qkv_bias)?,
            value: self.linear(&name("v_proj"), config.qkv_bias)?,
            joined: self.joined(&format!("model.layers.{layer}.{}", joined::QUERY_KEY_VALUE)),
            output: self.linear(&name("o_proj"), config.output_bias)?,
            norms,
        })
    }
}
