//! config.json as a [`ModelConfig`]: every number the decoder needs, checked once.
//!
//! In: the text of config.json, as transformers 4 or 5 writes it. Out: a [`ModelConfig`], or an error
//! that names the key. Keys that change the computation and that we do not know how to honour are
//! errors, never ignored. May not enter: tensors, weights, tokenizers.

use std::path::Path;

use serde_json::Value;

use super::families::{self, Bias, Family, Window};
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

/// Typed access to the keys of one config.json.
struct Keys<'a> {
    value: &'a Value,
    path: &'a Path,
}

/// The largest size that any key may state: keeps products of two sizes far from overflow.
const SIZE_MAX: u64 = 1 << 28;

/// The largest number of layers; more is a damaged file.
const LAYERS_MAX: usize = 4096;

impl<'a> Keys<'a> {
    fn wrong(&self, problem: String) -> ModelError {
        ModelError::Config {
            path: self.path.to_owned(),
            problem,
            mend: "check that config.json is the one that belongs to the weights",
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.wrong(format!("{key} is {value}, not a whole number above 0"))),
        }
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let size =
            self.optional_size(key)?.ok_or_else(|| self.wrong(format!("{key} is missing")))?;
        if key == "num_hidden_layers" && size > LAYERS_MAX {
            return Err(self.wrong(format!("{key} is {size}, above {LAYERS_MAX}")));
        }
        Ok(size)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(format!("{key} is no number")))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(format!("{key} is not true or false")))
    }

    fn word(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(format!("{key} is no text")))
    }

    fn bias(&self, bias: Bias) -> Result<bool, ModelError> {
        match bias {
            Bias::Absent => Ok(false),
            Bias::Present => Ok(true),
            Bias::Key(key) => Ok(self.flag(key)?.unwrap_or(false)),
        }
    }

    /// One id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        ids_of(value).ok_or_else(|| self.wrong(format!("{key} is neither an id nor a list of ids")))
    }

    fn architecture(&self) -> Option<&'a str> {
        self.get("architectures")?.as_array()?.first()?.as_str()
    }

    fn family(&self) -> Result<&'static Family, ModelError> {
        let model_type = self.word("model_type")?;
        families::find(model_type, self.architecture()).ok_or_else(|| ModelError::Config {
            path: self.path.to_owned(),
            problem: format!(
                "model_type {:?} is no family that this worker computes ({})",
                model_type.or(self.architecture()).unwrap_or("(none)"),
                families::names()
            ),
            mend: "use a model of one of these families",
        })
    }

    fn head(&self, family: &Family) -> Head {
        if self.architecture() == Some(family.classification) {
            Head::Score
        } else {
            Head::Language
        }
    }

    /// transformers 5 writes one table `rope_parameters`, transformers 4 `rope_scaling`.
    fn rope_table(&self) -> Option<&'a Value> {
        self.get("rope_parameters").or_else(|| self.get("rope_scaling"))
    }

    fn rope_theta(&self, family: &Family) -> Result<f64, ModelError> {
        let nested = self.get("rope_parameters").and_then(|table| table.get("rope_theta"));
        match nested {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.wrong("rope_parameters.rope_theta is no number".to_owned())),
            None => Ok(self.number("rope_theta")?.unwrap_or(family.rope_theta)),
        }
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ModelError> {
        let Some(table) = self.rope_table() else { return Ok(RopeScaling::None) };
        let kind = table.get("rope_type").or_else(|| table.get("type"));
        let factor = |key: &str| {
            table
                .get(key)
                .and_then(Value::as_f64)
                .filter(|factor| *factor > 0.0)
                .ok_or_else(|| self.wrong(format!("the rope settings have no {key} above 0")))
        };
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: factor("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: factor("factor")?,
                low_freq_factor: factor("low_freq_factor")?,
                high_freq_factor: factor("high_freq_factor")?,
                original_positions: factor("original_max_position_embeddings")?,
            }),
            Some(other) => Err(ModelError::Config {
                path: self.path.to_owned(),
                problem: format!("rope_type {other:?} is not default, linear or llama3"),
                mend: "use a model with one of these",
            }),
        }
    }

    fn windows(&self, family: &Family, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
        let size = self.optional_size("sliding_window")?;
        match family.window {
            Window::Never => Ok(vec![None; layers]),
            Window::WhereSet => Ok(vec![size; layers]),
            Window::WhereAsked => {
                if !self.flag("use_sliding_window")?.unwrap_or(false) {
                    return Ok(vec![None; layers]);
                }
                let first = self.optional_size("max_window_layers")?.unwrap_or(0);
                let types = self.get("layer_types").and_then(Value::as_array);
                Ok((0..layers)
                    .map(|layer| match types.and_then(|types| types.get(layer)) {
                        Some(kind) => size.filter(|_| kind == "sliding_attention"),
                        None => size.filter(|_| layer >= first),
                    })
                    .collect())
            }
        }
    }

    /// `no_rope_layers` holds 1 for a rotated layer and 0 for one that is not.
    fn rotated(&self, family: &Family, layers: usize) -> Result<Vec<bool>, ModelError> {
        if !family.some_layers_unrotated {
            return Ok(vec![true; layers]);
        }
        if let Some(list) = self.get("no_rope_layers").and_then(Value::as_array) {
            if list.len() != layers {
                return Err(self.wrong(format!(
                    "no_rope_layers has {} entries for {layers} layers",
                    list.len()
                )));
            }
            return Ok(list.iter().map(|entry| entry.as_u64() != Some(0)).collect());
        }
        let every = self.optional_size("no_rope_layer_interval")?.unwrap_or(4);
        Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(every)).collect())
    }

    fn labels(&self) -> Result<Option<usize>, ModelError> {
        if let Some(table) = self.get("id2label").and_then(Value::as_object) {
            return Ok(Some(table.len()));
        }
        self.optional_size("num_labels")
    }
}

/// One id, or a list of ids, as JSON files of model folders have them.
#[must_use]
pub fn ids_of(value: &Value) -> Option<Vec<u32>> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        value => one(value).map(|id| vec![id]),
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
