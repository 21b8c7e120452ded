//! A PEFT adapter folder, opened and checked against the model that it is for.
//!
//! In: a folder with adapter_config.json and adapter_model.safetensors, as peft or this worker wrote
//! them; the base's configuration. Out: [`Adapters`], and which base they were made on, where the
//! folder says so. May not enter: computation, writing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::adapter::{AdapterShape, Adapters, DOWN, UP, linear_modules};
use super::config::ModelConfig;
use super::folder::read_text;
use super::safetensors::WeightFile;
use crate::checkpoint;
use crate::errors::ModelError;

/// What the adapter is.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Its matrices.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Which base it was made on; ours, peft does not read it.
pub const BASE_NOTE: &str = "base.json";

/// The folder of the adapter within a folder that holds the merged model.
pub const ADAPTER: &str = "adapter";

/// What peft puts before the names of a model's own tensors.
pub const PREFIX: &str = "base_model.model.";

/// The base of an adapter, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseNote {
    /// Its folder's name, for people.
    pub name: String,
    /// Its sum: see [`crate::checkpoint::model_sum`].
    pub sha256: String,
    /// A reward model's pad id, where it is not the base's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_id: Option<u32>,
}

/// An opened adapter folder.
#[derive(Debug)]
pub struct AdapterFolder {
    /// The folder.
    pub dir: PathBuf,
    /// What it holds, on the CPU.
    pub adapters: Adapters,
    /// What it was made on, where it says so.
    pub base: Option<BaseNote>,
}

/// Why an adapter cannot stand on this base, by the sums; None where it can, or says nothing.
/// `sha256`: the base's, where the caller knows it; empty where not.
///
/// # Errors
/// Files that cannot be read.
pub fn misfit(adapter: &Path, base: &Path, sha256: &str) -> Result<Option<String>, ModelError> {
    let Some(note) = base_note(adapter)? else { return Ok(None) };
    let sum = match sha256 {
        "" => checkpoint::model_sum(base).map_err(|error| bad(base, error.to_string()))?,
        known => known.to_owned(),
    };
    let short = |sum: &str| sum.chars().take(12).collect::<String>();
    Ok((note.sha256 != sum).then(|| {
        format!(
            "its adapter was made on {} ({}), not on {} ({})",
            note.name,
            short(&note.sha256),
            base.display(),
            short(&sum)
        )
    }))
}

/// What decides an adapter's numbers in adapter_config.json.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: u32,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Keys of peft's that change what is computed, and that this worker does not know; each must be
/// absent, or say no.
const UNKNOWN: [&str; 12] = [
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
];

/// Where the adapter of a folder lies: in the folder itself, or beside the merged weights.
#[must_use]
pub fn place_in(dir: &Path) -> Option<PathBuf> {
    let places = [dir.to_owned(), dir.join(ADAPTER)];
    places.into_iter().find(|place| place.join(ADAPTER_CONFIG).is_file())
}

/// Which base the adapter in a folder was made on; None where it does not say.
///
/// # Errors
/// `Adapter` where the note cannot be understood.
pub fn base_note(dir: &Path) -> Result<Option<BaseNote>, ModelError> {
    let path = dir.join(BASE_NOTE);
    if !path.is_file() {
        return Ok(None);
    }
    let note = serde_json::from_str(&read_text(&path)?);
    note.map(Some).map_err(|error| bad(&path, format!("its base's note is no JSON ({error})")))
}

impl AdapterFolder {
    /// Opens a folder for a model of this configuration.
    ///
    /// # Errors
    /// `Adapter`: what it says that cannot be computed, or that does not fit the base; `Read` and
    /// `Damaged` for its weights.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        let path = dir.join(ADAPTER_CONFIG);
        let peft: PeftConfig = serde_json::from_str(&read_text(&path)?)
            .map_err(|error| bad(&path, format!("it is not peft's configuration ({error})")))?;
        check(&peft, &path)?;
        let weights = dir.join(ADAPTER_WEIGHTS);
        if !weights.is_file() {
            return Err(bad(&weights, "there are no adapter weights in safetensors".to_owned()));
        }
        let file = WeightFile::open(&weights)?;
        let adapters = read(&file, &peft, config)?;
        Ok(Self { dir: dir.to_owned(), adapters, base: base_note(dir)? })
    }
}

fn bad(path: &Path, problem: String) -> ModelError {
    let mend = "name a LoRA folder that peft or `train` wrote, for a model of this base's shape";
    ModelError::Adapter { path: path.to_owned(), problem, mend }
}

fn check(peft: &PeftConfig, path: &Path) -> Result<(), ModelError> {
    if peft.peft_type != "LORA" {
        return Err(bad(path, format!("its peft_type is {}, not LORA", peft.peft_type)));
    }
    if peft.r == 0 || !(peft.lora_alpha.is_finite() && peft.lora_alpha > 0.0) {
        return Err(bad(path, format!("r is {}, lora_alpha {}", peft.r, peft.lora_alpha)));
    }
    let says_no = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let unknown = UNKNOWN.into_iter().find(|key| !peft.other.get(*key).is_none_or(says_no));
    if let Some(key) = unknown {
        return Err(bad(path, format!("{key} is set, which this worker does not compute")));
    }
    match peft.other.get("bias").and_then(Value::as_str) {
        None | Some("none") => Ok(()),
        Some(bias) => Err(bad(path, format!("bias is {bias}, but biases are frozen here"))),
    }
}

fn read(
    file: &WeightFile,
    peft: &PeftConfig,
    config: &ModelConfig,
) -> Result<Adapters, ModelError> {
    let rank = i64::from(peft.r);
    let mut found: Vec<(&str, &super::safetensors::Entry)> = Vec::new();
    for entry in &file.entries {
        let Some(name) = entry.name.strip_prefix(PREFIX) else {
            let problem = format!("{} does not begin with {PREFIX}", entry.name);
            return Err(bad(&file.path, problem));
        };
        found.push((name, entry));
    }
    let mut take = |name: &str, shape: &[i64]| -> Result<Option<tch::Tensor>, ModelError> {
        let Some(at) = found.iter().position(|(candidate, _)| *candidate == name) else {
            return Ok(None);
        };
        let (_, entry) = found.swap_remove(at);
        if entry.shape != shape {
            let found = &entry.shape;
            let problem = format!("{name} has shape {found:?}, the base calls for {shape:?}");
            return Err(bad(&file.path, problem));
        }
        Ok(Some(file.read(entry)?.to_kind(tch::Kind::Float)))
    };
    let mut matrices = Vec::new();
    for (module, [outputs, inputs]) in linear_modules(config) {
        let (down, up) = (format!("{module}{DOWN}"), format!("{module}{UP}"));
        match (take(&down, &[rank, inputs])?, take(&up, &[outputs, rank])?) {
            (None, None) => {}
            (Some(first), Some(second)) => matrices.extend([(down, first), (up, second)]),
            _ => return Err(bad(&file.path, format!("{module} has one of its two matrices only"))),
        }
    }
    let width = i64::try_from(config.width).unwrap_or(i64::MAX);
    let score_head = take("score.weight", &[1, width])?;
    let saved = peft.modules_to_save.is_some();
    if let Some((name, _)) = found.first() {
        let kind = if saved { "a module that was saved whole, " } else { "" };
        return Err(bad(&file.path, format!("{name} is {kind}none of the base's linear maps")));
    }
    if matrices.is_empty() {
        return Err(bad(&file.path, "it adapts nothing".to_owned()));
    }
    let shape =
        AdapterShape { rank: peft.r, alpha: peft.lora_alpha, rank_stabilised: peft.use_rslora };
    Ok(Adapters { shape, matrices, score_head })
}
