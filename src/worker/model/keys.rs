//! The keys of a config.json, each read in its type or told by its name.
//!
//! In: JSON, as transformers 4 or 5 writes it. Out: sizes, flags, ids, rotary settings, windows by
//! layer. May not enter: rules between keys, tensors.

use std::path::Path;

use serde_json::Value;

use super::config::{Head, RopeScaling};
use super::families::{self, Bias, Family, Window};
use crate::errors::ModelError;

/// Typed access to the keys of one config.json.
pub(super) struct Keys<'a> {
    pub(super) value: &'a Value,
    pub(super) path: &'a Path,
}

/// The largest size that any key may state: keeps products of two sizes far from overflow.
const SIZE_MAX: u64 = 1 << 28;

/// The largest number of layers; more is a damaged file.
const LAYERS_MAX: usize = 4096;

impl<'a> Keys<'a> {
    pub(super) fn wrong(&self, problem: String) -> ModelError {
        ModelError::Config {
            path: self.path.to_owned(),
            problem,
            mend: "check that config.json is the one that belongs to the weights",
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.wrong(format!("{key} is {value}, not a whole number above 0"))),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ModelError> {
        let size =
            self.optional_size(key)?.ok_or_else(|| self.wrong(format!("{key} is missing")))?;
        if key == "num_hidden_layers" && size > LAYERS_MAX {
            return Err(self.wrong(format!("{key} is {size}, above {LAYERS_MAX}")));
        }
        Ok(size)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(format!("{key} is no number")))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(format!("{key} is not true or false")))
    }

    pub(super) fn word(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(format!("{key} is no text")))
    }

    pub(super) fn bias(&self, bias: Bias) -> Result<bool, ModelError> {
        match bias {
            Bias::Absent => Ok(false),
            Bias::Present => Ok(true),
            Bias::Key(key) => Ok(self.flag(key)?.unwrap_or(false)),
        }
    }

    /// One id or a list of them.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        ids_of(value).ok_or_else(|| self.wrong(format!("{key} is neither an id nor a list of ids")))
    }

    pub(super) fn architecture(&self) -> Option<&'a str> {
        self.get("architectures")?.as_array()?.first()?.as_str()
    }

    pub(super) fn family(&self) -> Result<&'static Family, ModelError> {
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

    pub(super) fn head(&self, family: &Family) -> Head {
        if self.architecture() == Some(family.classification) {
            Head::Score
        } else {
            Head::Language
        }
    }

    /// transformers 5 writes one table `rope_parameters`, transformers 4 `rope_scaling`.
    pub(super) fn rope_table(&self) -> Option<&'a Value> {
        self.get("rope_parameters").or_else(|| self.get("rope_scaling"))
    }

    pub(super) fn rope_theta(&self, family: &Family) -> Result<f64, ModelError> {
        let nested = self.get("rope_parameters").and_then(|table| table.get("rope_theta"));
        match nested {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.wrong("rope_parameters.rope_theta is no number".to_owned())),
            None => Ok(self.number("rope_theta")?.unwrap_or(family.rope_theta)),
        }
    }

    /// Whether only a part of each head is rotated, which no family of ours does.
    pub(super) fn partial_rotation(&self) -> bool {
        let in_table = self.rope_table().and_then(|table| table.get("partial_rotary_factor"));
        let factor = self.get("partial_rotary_factor").or(in_table);
        factor.is_some_and(|factor| !factor.is_null() && factor.as_f64() != Some(1.0))
    }

    pub(super) fn rope_scaling(&self) -> Result<RopeScaling, ModelError> {
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

    pub(super) fn windows(
        &self,
        family: &Family,
        layers: usize,
    ) -> Result<Vec<Option<usize>>, ModelError> {
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
    pub(super) fn rotated(&self, family: &Family, layers: usize) -> Result<Vec<bool>, ModelError> {
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

    pub(super) fn labels(&self) -> Result<Option<usize>, ModelError> {
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
