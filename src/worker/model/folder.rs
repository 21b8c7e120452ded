//! A Hugging Face model folder, opened and checked, with no tensor in memory yet.
//!
//! In: a path (symbolic links are followed, as the Hugging Face cache makes them). Out: a
//! [`ModelFolder`] whose config.json is understood and whose weight files hold exactly the tensors, in
//! exactly the shapes, that the config calls for. May not enter: computation, tokenizers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;
use tch::{Kind, Tensor};

use super::adapter_folder::{self, ADAPTER_CONFIG, AdapterFolder};
use super::config::{Head, ModelConfig};
use super::kind::ModelKind;
use super::labels::Labels;
use super::safetensors::{Entry, WeightFile};
use crate::errors::ModelError;

/// An opened model folder.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    /// The folder, as it was given.
    pub dir: PathBuf,
    /// What config.json says, with `head` set by what the weights hold.
    pub config: ModelConfig,
    /// The element type of the weights, which a checkpoint made from this model keeps.
    pub stored_kind: Kind,
    /// What a preference model answers with, by preference.json; None where there is none.
    pub labels: Option<Labels>,
    files: Vec<WeightFile>,
    /// Merged with the weights as they are read.
    adapter: Option<Rc<AdapterFolder>>,
}

impl ModelFolder {
    /// Opens a folder and checks all that can be checked without reading weights.
    ///
    /// Errors: see [`ModelError`]; the message names the file, the key or the tensor.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let missing =
            |what, path: &Path, mend| ModelError::Missing { what, path: path.into(), mend };
        if !dir.is_dir() {
            return Err(missing("the model folder", dir, "name a folder with config.json in it"));
        }
        if !path.is_file() && dir.join(ADAPTER_CONFIG).is_file() {
            return Err(missing(
                "the base of this adapter",
                dir,
                "name with --base the model that it was made on",
            ));
        }
        if !path.is_file() {
            return Err(missing(
                "config.json",
                &path,
                "name a Hugging Face model folder (config.json, model.safetensors, tokenizer.json)",
            ));
        }
        let text = read_text(&path)?;
        let mut config = ModelConfig::parse(&text, &path)?;
        let files = weight_files(dir)?;
        let mut folder_entries = BTreeMap::new();
        for file in &files {
            for entry in &file.entries {
                if folder_entries.insert(entry.name.as_str(), entry).is_some() {
                    return Err(tensor_error(dir, &entry.name, "stands in two files"));
                }
            }
        }
        if folder_entries.contains_key("score.weight") {
            config.head = Head::Score;
        }
        let expected = expected_tensors(&config);
        check_tensors(dir, &config, &expected, &folder_entries)?;
        let stored_kind =
            folder_entries.get("model.embed_tokens.weight").map_or(Kind::Float, |entry| entry.kind);
        let labels = Labels::read(dir)?;
        Ok(Self { dir: dir.to_owned(), config, stored_kind, labels, files, adapter: None })
    }

    /// The same folder with an adapter, with which each weight is merged as it is read. `model` holds
    /// the adapter, itself or in a folder of it.
    ///
    /// # Errors
    /// `Adapter` where there is none, or one that was made on another base.
    pub fn with_adapter(mut self, model: &Path) -> Result<Self, ModelError> {
        let unusable = |problem: String| ModelError::Adapter {
            path: model.to_owned(),
            problem,
            mend: "name the adapter's folder, and with --base the model that it was made on",
        };
        let Some(place) = adapter_folder::place_in(model) else {
            return Err(unusable("there is no adapter_config.json".to_owned()));
        };
        if let Some(problem) = adapter_folder::misfit(&place, &self.dir, "")? {
            return Err(unusable(problem));
        }
        let adapter = AdapterFolder::open(&place, &self.config)?;
        if adapter.adapters.score_head.is_some() {
            self.config.head = Head::Score;
            self.config.labels = Some(1);
            let pad_id = adapter.base.as_ref().and_then(|base| base.pad_id);
            self.config.pad_id = pad_id.or(self.config.pad_id);
        }
        self.labels = Labels::read(model)?.or(self.labels);
        self.adapter = Some(Rc::new(adapter));
        Ok(self)
    }

    /// The adapter that weights are merged with.
    #[must_use]
    pub fn adapter(&self) -> Option<&AdapterFolder> {
        self.adapter.as_deref()
    }

    /// Reads one tensor, merged with the adapter where there is one.
    pub(super) fn read(&self, file: &WeightFile, entry: &Entry) -> Result<Tensor, ModelError> {
        let stored = file.read(entry)?;
        let adapters = self.adapter.as_ref().map(|folder| &folder.adapters);
        Ok(match adapters.filter(|adapters| adapters.changes(&entry.name)) {
            Some(adapters) => adapters.merged(&entry.name, &stored),
            None => stored,
        })
    }

    /// What the folder is for.
    #[must_use]
    pub fn kind(&self) -> ModelKind {
        match (self.config.head, self.labels) {
            (Head::Score, _) => ModelKind::RewardModel,
            (Head::Language, Some(_)) => ModelKind::PreferenceModel,
            (Head::Language, None) => ModelKind::Policy,
        }
    }

    /// The same folder, if it holds a policy.
    ///
    /// Errors: `WrongKind`.
    pub fn require_policy(self) -> Result<Self, ModelError> {
        self.kind().require(ModelKind::Policy, &self.dir).map(|()| self)
    }

    /// The same folder, if it holds a Bradley-Terry reward model.
    ///
    /// Errors: `WrongKind`.
    pub fn require_reward_model(self) -> Result<Self, ModelError> {
        self.kind().require(ModelKind::RewardModel, &self.dir).map(|()| self)
    }

    /// What a preference model answers with, if the folder holds one.
    ///
    /// Errors: `WrongKind`.
    pub fn preference_labels(&self) -> Result<Labels, ModelError> {
        match (self.config.head, self.labels) {
            (Head::Language, Some(labels)) => Ok(labels),
            _ => Err(self.kind().refusal(ModelKind::PreferenceModel, &self.dir)),
        }
    }

    /// The weight files, in the order of their names.
    #[must_use]
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The tensors of the model, in the order of files and bytes. Buffers that old versions of
    /// transformers stored, and a second copy of a tied head, are left out.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&WeightFile, &Entry)> {
        let expected = expected_tensors(&self.config);
        self.files.iter().flat_map(move |file| {
            let expected = expected.clone();
            file.entries
                .iter()
                .filter(move |entry| expected.contains_key(&entry.name))
                .map(move |entry| (file, entry))
        })
    }
}

/// Reads a text file whole.
pub(crate) fn read_text(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path)
        .map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

/// Every tensor that a config calls for, with its shape.
#[must_use]
pub fn expected_tensors(config: &ModelConfig) -> BTreeMap<String, Vec<i64>> {
    let size = |n: usize| n as i64;
    let width = size(config.width);
    let query = size(config.heads * config.head_dim);
    let key = size(config.kv_heads * config.head_dim);
    let mlp = size(config.mlp_width);
    let mut tensors = BTreeMap::new();
    let mut linear = |name: String, outputs: i64, inputs: i64, bias: bool| {
        if bias {
            tensors.insert(format!("{name}.bias"), vec![outputs]);
        }
        tensors.insert(format!("{name}.weight"), vec![outputs, inputs]);
    };
    linear("model.embed_tokens".to_owned(), size(config.vocabulary), width, false);
    for layer in 0..config.layers {
        let block = format!("model.layers.{layer}");
        linear(format!("{block}.self_attn.q_proj"), query, width, config.qkv_bias);
        linear(format!("{block}.self_attn.k_proj"), key, width, config.qkv_bias);
        linear(format!("{block}.self_attn.v_proj"), key, width, config.qkv_bias);
        linear(format!("{block}.self_attn.o_proj"), width, query, config.output_bias);
        linear(format!("{block}.mlp.gate_proj"), mlp, width, config.mlp_bias);
        linear(format!("{block}.mlp.up_proj"), mlp, width, config.mlp_bias);
        linear(format!("{block}.mlp.down_proj"), width, mlp, config.mlp_bias);
    }
    match config.head {
        Head::Score => linear("score".to_owned(), 1, width, false),
        Head::Language if !config.tied => {
            linear("lm_head".to_owned(), size(config.vocabulary), width, false);
        }
        Head::Language => {}
    }
    for layer in 0..config.layers {
        let block = format!("model.layers.{layer}");
        tensors.insert(format!("{block}.input_layernorm.weight"), vec![width]);
        tensors.insert(format!("{block}.post_attention_layernorm.weight"), vec![width]);
        if config.family.qk_norm {
            let head = vec![size(config.head_dim)];
            tensors.insert(format!("{block}.self_attn.q_norm.weight"), head.clone());
            tensors.insert(format!("{block}.self_attn.k_norm.weight"), head);
        }
    }
    tensors.insert("model.norm.weight".to_owned(), vec![width]);
    tensors
}

fn tensor_error(dir: &Path, name: &str, problem: impl Into<String>) -> ModelError {
    ModelError::Tensor { name: name.to_owned(), problem: problem.into(), dir: dir.to_owned() }
}

fn check_tensors(
    dir: &Path,
    config: &ModelConfig,
    expected: &BTreeMap<String, Vec<i64>>,
    found: &BTreeMap<&str, &Entry>,
) -> Result<(), ModelError> {
    for (name, shape) in expected {
        let Some(entry) = found.get(name.as_str()) else {
            return Err(tensor_error(dir, name, "is missing from the weight files"));
        };
        if name == "score.weight" && entry.shape.first() != Some(&1) {
            let labels = entry.shape.first().copied().unwrap_or(0);
            return Err(ModelError::Config {
                path: dir.join("config.json"),
                problem: format!("the model has {labels} labels; a reward model has one"),
                mend: "use a model trained with num_labels = 1",
            });
        }
        if &entry.shape != shape {
            return Err(tensor_error(
                dir,
                name,
                format!("has shape {:?}, config.json calls for {shape:?}", entry.shape),
            ));
        }
        if entry.kind == Kind::Int64 {
            return Err(tensor_error(dir, name, "holds whole numbers, not weights"));
        }
    }
    // A tensor that we would not use means that the model computes something that we do not.
    let ignorable = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || (name == "lm_head.weight" && (config.tied || config.head == Head::Score))
    };
    match found.keys().find(|name| !expected.contains_key(**name) && !ignorable(name)) {
        Some(name) => Err(tensor_error(dir, name, "is none that config.json calls for")),
        None => Ok(()),
    }
}

/// The weight files of a folder, in the order of their names.
fn weight_files(dir: &Path) -> Result<Vec<WeightFile>, ModelError> {
    let index = dir.join("model.safetensors.index.json");
    if index.is_file() {
        let text = read_text(&index)?;
        let damaged = |problem: &str| ModelError::Damaged {
            path: index.clone(),
            problem: problem.to_owned(),
        };
        let value: Value =
            serde_json::from_str(&text).map_err(|error| damaged(&format!("no JSON ({error})")))?;
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| damaged("it has no weight_map"))?;
        let mut names = std::collections::BTreeSet::new();
        for name in map.values() {
            let name = name.as_str().filter(|name| !name.contains('/'));
            names.insert(name.ok_or_else(|| damaged("weight_map holds no plain file names"))?);
        }
        return names.into_iter().map(|name| open_present(&dir.join(name))).collect();
    }
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![WeightFile::open(&single)?]);
    }
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"] {
        if dir.join(name).exists() {
            return Err(ModelError::Pickle { path: dir.join(name) });
        }
    }
    open_present(&single).map(|file| vec![file])
}

fn open_present(path: &Path) -> Result<WeightFile, ModelError> {
    if !path.is_file() {
        return Err(ModelError::Missing {
            what: "a weight file",
            path: path.to_owned(),
            mend: "fetch the model again: every file that it names must be there",
        });
    }
    WeightFile::open(path)
}
