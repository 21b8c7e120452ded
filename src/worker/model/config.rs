//! config.json as a [`ModelConfig`]: every number the decoder needs, checked once.
//!
//! In: the text of config.json, as transformers 4 or 5 writes it. Out: a [`ModelConfig`], or an error
//! that names the key. Keys that change the computation and that we do not know how to honour are
//! errors, never ignored. May not enter: tensors, weights, tokenizers.

use std::path::Path;

use serde_json::Value;

use super::families::Family;
use super::keys::Keys;
use crate::errors::ModelError;

/// What the model ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A row of logits a position: a policy.
    Language,
    /// One number a sequence: a reward model.
    Score,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Below `original_positions / low` wavelengths the ramp begins.
        low_freq_factor: f64,
        /// Above `original_positions / high` nothing is divided.
        high_freq_factor: f64,
        /// The context before stretching.
        original_positions: f64,
    },
}

/// All that the decoder needs to know of a model besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family's row.
    pub family: &'static Family,
    /// Policy or reward model. Set from the architecture, then by the weights that are there.
    pub head: Head,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Size of a position's state.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of a head; even.
    pub head_dim: usize,
    /// Inner size of the MLP.
    pub mlp_width: usize,
    /// The longest sequence the model was made for.
    pub positions_max: usize,
    /// Added to the mean square under the root.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their stretching.
    pub rope_scaling: RopeScaling,
    /// Whether the language head is the embedding.
    pub tied: bool,
    /// Bias of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub output_bias: bool,
    /// Bias of the MLP's projections.
    pub mlp_bias: bool,
    /// By layer: how many last positions it sees; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// By layer: whether query and key are rotated.
    pub rotated: Vec<bool>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`, one or several.
    pub eos_ids: Vec<u32>,
    /// `pad_token_id`.
    pub pad_id: Option<u32>,
    /// Labels of a classifier: the length of `id2label`, or `num_labels`.
    pub labels: Option<usize>,
}

impl ModelConfig {
    /// Reads config.json's text. `path` is only for messages.
    ///
    /// Errors: `Config`, naming the key and what it may be.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let value: Value = serde_json::from_str(text).map_err(|error| ModelError::Config {
            path: path.to_owned(),
            problem: format!("it is no JSON ({error})"),
            mend: "fetch the file again",
        })?;
        let keys = Keys { value: &value, path };
        let family = keys.family()?;
        let heads = keys.size("num_attention_heads")?;
        let width = keys.size("hidden_size")?;
        let layers = keys.size("num_hidden_layers")?;
        let kv_heads =
            keys.optional_size("num_key_value_heads")?.or(family.kv_heads).unwrap_or(heads);
        let head_dim = keys.optional_size("head_dim")?.or(family.head_dim);
        let config = Self {
            family,
            head: keys.head(family),
            vocabulary: keys.size("vocab_size")?,
            width,
            layers,
            heads,
            kv_heads,
            head_dim: head_dim.unwrap_or(width / heads),
            mlp_width: keys.size("intermediate_size")?,
            positions_max: keys.optional_size("max_position_embeddings")?.unwrap_or(2048),
            norm_epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: keys.rope_theta(family)?,
            rope_scaling: keys.rope_scaling()?,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: keys.bias(family.qkv_bias)?,
            output_bias: keys.bias(family.output_bias)?,
            mlp_bias: keys.bias(family.mlp_bias)?,
            windows: keys.windows(family, layers)?,
            rotated: keys.rotated(family, layers)?,
            bos_id: keys.ids("bos_token_id")?.first().copied(),
            eos_ids: keys.ids("eos_token_id")?,
            pad_id: keys.ids("pad_token_id")?.first().copied(),
            labels: keys.labels()?,
        };
        config.check(&keys)?;
        Ok(config)
    }

    fn check(&self, keys: &Keys<'_>) -> Result<(), ModelError> {
        let heads_fit = self.heads.is_multiple_of(self.kv_heads);
        if !heads_fit {
            return Err(keys.wrong(format!(
                "num_attention_heads {} is no multiple of num_key_value_heads {}",
                self.heads, self.kv_heads
            )));
        }
        if self.head_dim == 0 || self.head_dim % 2 == 1 {
            return Err(keys.wrong(format!("head_dim {} is not even and above 0", self.head_dim)));
        }
        if !(self.norm_epsilon > 0.0 && self.rope_theta > 0.0) {
            return Err(keys.wrong("rms_norm_eps and rope_theta must be above 0".to_owned()));
        }
        if keys.partial_rotation() {
            return Err(keys.wrong("partial_rotary_factor is not 1".to_owned()));
        }
        let activation = keys.word("hidden_act")?.unwrap_or("silu");
        if activation != "silu" && activation != "swish" {
            return Err(keys.wrong(format!("hidden_act {activation:?} is not silu")));
        }
        if keys.value.get("quantization_config").is_some_and(|v| !v.is_null()) {
            return Err(ModelError::Config {
                path: keys.path.to_owned(),
                problem: "the model is quantised (quantization_config)".to_owned(),
                mend: "use the unquantised model, or dequantise it with transformers",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig, ModelError> {
        ModelConfig::parse(text, Path::new("config.json"))
    }

    fn llama(extra: &str) -> String {
        format!(
            r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64,
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 32 {extra}}}"#
        )
    }

    #[test]
    fn both_generations_of_rope_keys_are_read() {
        let old = parse(&llama(r#", "rope_theta": 5000.0"#)).unwrap();
        let new =
            parse(&llama(r#", "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}"#))
                .unwrap();
        assert_eq!(old, new);
        assert_eq!((old.rope_theta, old.head_dim, old.kv_heads), (5000.0, 4, 2));
    }

    #[test]
    fn an_unknown_family_is_named_with_those_that_work() {
        let error = parse(&llama("").replace("\"llama\"", "\"mamba\"")).unwrap_err().to_string();
        assert!(error.contains("mamba") && error.contains("qwen3"), "{error}");
    }

    #[test]
    fn numbers_out_of_range_are_errors_that_name_their_key() {
        for (from, to, key) in [
            ("\"hidden_size\": 16", "\"hidden_size\": 0", "hidden_size"),
            ("\"hidden_size\": 16", "\"hidden_size\": -3", "hidden_size"),
            ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_key_value_heads"),
            ("\"vocab_size\": 64", "\"vocab_size\": \"64\"", "vocab_size"),
            ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 99999", "num_hidden_layers"),
        ] {
            let error = parse(&llama("").replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn what_we_cannot_compute_is_refused_rather_than_ignored() {
        for extra in [
            r#", "hidden_act": "gelu""#,
            r#", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#,
            r#", "quantization_config": {"quant_method": "gptq"}"#,
            r#", "partial_rotary_factor": 0.5"#,
            r#", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}"#,
        ] {
            assert!(parse(&llama(extra)).is_err(), "{extra}");
        }
    }

    #[test]
    fn one_label_written_as_id2label_counts_as_one() {
        let config = parse(&llama(r#", "id2label": {"0": "LABEL_0"}"#)).unwrap();
        assert_eq!(config.labels, Some(1));
    }
}
