//! Adapters as files that peft loads: adapter_config.json and adapter_model.safetensors.
//!
//! In: adapters, what they were made on. Out: the two files, and base.json, by whose sum the base is
//! known again. No file holds a path: a folder that was moved says nothing false. May not enter:
//! what is merged, other files of a checkpoint.

use serde_json::{Value, json};
use tch::Kind;

use super::error::TrainError;
use super::weights::{self, Piece};
use crate::checkpoint::Draft;
use crate::model::Adapters;
use crate::model::adapter_folder::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_NOTE, BaseNote, PREFIX};

/// What an adapter's folder holds.
pub struct AdapterFiles<'a> {
    /// The matrices.
    pub adapters: &'a Adapters,
    /// What they were made on.
    pub base: BaseNote,
    /// Names of the adapted modules, as peft takes them.
    pub targets: Vec<String>,
    /// Of the training.
    pub dropout: f64,
}

impl AdapterFiles<'_> {
    /// Writes the files below `folder` of a draft ("" for its top).
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, draft: &Draft, folder: &str) -> Result<(), TrainError> {
        let named = |name: &str| match folder {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        };
        json_file(draft, &named(ADAPTER_CONFIG), &self.config())?;
        json_file(draft, &named(BASE_NOTE), &json!(self.base))?;
        let mut pieces: Vec<Piece<'_>> = Vec::new();
        for (name, matrix) in &self.adapters.matrices {
            pieces.push(Piece::of(format!("{PREFIX}{name}"), Kind::Float, matrix));
        }
        if let Some(head) = &self.adapters.score_head {
            pieces.push(Piece::of(format!("{PREFIX}score.weight"), Kind::Float, head));
        }
        weights::write(&draft.path().join(named(ADAPTER_WEIGHTS)), &pieces)
    }

    fn config(&self) -> Value {
        let shape = self.adapters.shape;
        let scores = self.adapters.score_head.is_some();
        json!({
            "base_model_name_or_path": self.base.name,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": number(shape.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": scores.then_some(["score"]),
            "peft_type": "LORA",
            "r": shape.rank,
            "target_modules": self.targets,
            "task_type": if scores { "SEQ_CLS" } else { "CAUSAL_LM" },
            "use_dora": false,
            "use_rslora": shape.rank_stabilised,
        })
    }
}

/// peft's own type of alpha is a whole number; it takes others too.
#[expect(clippy::cast_possible_truncation, reason = "only what is whole and small is cast")]
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value < 1e15 { json!(value as i64) } else { json!(value) }
}

fn json_file(draft: &Draft, name: &str, value: &Value) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| TrainError::Job {
        path: draft.path().join(name),
        problem: format!("no JSON ({error})"),
    })?;
    text.push(b'\n');
    Ok(draft.write(name, &text)?)
}
