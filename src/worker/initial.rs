//! A random model as a Hugging Face folder: where a training from scratch begins.
//!
//! In: a config.json, a tokenizer's folder, a seed. Out: a published folder that transformers, vLLM
//! and this worker load. Each tensor's numbers follow from (seed, its name, its shape) alone, so
//! that a model with one more layer has the same numbers in all others. Initialised as transformers
//! does in `PreTrainedModel._init_weights`. May not enter: training, text.

use std::path::{Path, PathBuf};

use rlhfd_protocol::manifest::FolderKind;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::checkpoint::{Draft, Heading, Standing};
use crate::errors::{ModelError, TextError};
use crate::model::folder::{expected_tensors, read_text};
use crate::model::{Head, ModelConfig};
use crate::philox::normals;
use crate::tokenizer::Tokenizer;
use crate::train::TrainError;
use crate::train::publish::COPIED;
use crate::train::weights::{self, Piece};

/// Sets these numbers apart from all others of the same seed.
const WEIGHTS: u32 = 0x494e_4954;

/// The most elements of one tensor: a drawn one takes 8 bytes an element while it is written.
const ELEMENTS_MAX: u64 = 1 << 31;

/// What `transformers` draws with where config.json has no `initializer_range`.
const DEVIATION: f64 = 0.02;

/// Files beside the weights that come from the tokenizer's folder besides [`COPIED`].
const SETTINGS: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

/// What a random model is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The config.json.
    pub config: PathBuf,
    /// The folder of the tokenizer; its `generation_config.json` comes along.
    pub tokenizer: PathBuf,
    /// All weights follow from it.
    pub seed: u64,
}

/// A random model that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initial {
    /// Its folder.
    pub standing: Standing,
    /// How many numbers it has.
    pub parameters: u64,
}

/// Publishes a random model at `out`.
///
/// # Errors
/// What is wrong with config.json (a family that is not known, sizes that do not fit), with the
/// tokenizer (ids that the model has no rows for), or with the disk. Nothing then stands at `out`.
pub fn publish(recipe: &Recipe, out: &Path) -> Result<Initial, TrainError> {
    let plan = Plan::read(recipe)?;
    let draft = Draft::begin(out)?;
    let pieces: Vec<Piece<'_>> = plan.pieces(recipe.seed).collect();
    let parameters = plan.tensors().map(|(_, shape)| elements(&shape)).sum();
    weights::write(&draft.path().join("model.safetensors"), &pieces)?;
    let unreadable =
        |path: &Path, problem: String| TrainError::Job { path: path.to_owned(), problem };
    let mut text = serde_json::to_vec_pretty(&Value::Object(plan.json.clone()))
        .map_err(|error| unreadable(&recipe.config, error.to_string()))?;
    text.push(b'\n');
    draft.write("config.json", &text)?;
    for name in COPIED.into_iter().chain(SETTINGS) {
        let from = recipe.tokenizer.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(|e| unreadable(&from, e.to_string()))?;
            draft.write(name, &bytes)?;
        }
    }
    let (kind, architecture) = match plan.config.head {
        Head::Language => (FolderKind::Policy, plan.config.family.causal),
        Head::Score => (FolderKind::RewardModel, plan.config.family.classification),
    };
    let standing = draft.publish(Heading {
        kind,
        unit: String::new(),
        parent_sha256: String::new(),
        architecture: architecture.to_owned(),
        steps: 0,
    })?;
    Ok(Initial { standing, parameters })
}

/// A checked recipe.
struct Plan {
    config: ModelConfig,
    /// config.json, with what transformers needs and the file left open.
    json: Map<String, Value>,
    deviation: f64,
    kind: Kind,
}

impl Plan {
    fn read(recipe: &Recipe) -> Result<Self, TrainError> {
        let path = recipe.config.as_path();
        if !path.is_file() {
            return Err(TrainError::Model(ModelError::Missing {
                what: "config.json",
                path: path.to_owned(),
                mend: "name a Hugging Face config.json, such as that of a model of this family",
            }));
        }
        let text = read_text(path)?;
        let config = ModelConfig::parse(&text, path)?;
        let mut json: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| wrong(path, format!("it is no JSON object ({error})")))?;
        let deviation = match json.get("initializer_range").filter(|value| !value.is_null()) {
            // As in transformers, 0 means the default.
            Some(value) => match value.as_f64() {
                Some(0.0) => DEVIATION,
                Some(range) if range > 0.0 && range < 10.0 => range,
                _ => return Err(wrong(path, format!("initializer_range is {value}"))),
            },
            None => DEVIATION,
        };
        let kind = stored_kind(path, &json)?;
        check(path, &config)?;
        Tokenizer::open_for(&recipe.tokenizer, &config).map_err(|error| told(error, path))?;
        complete(&mut json, &config);
        Ok(Self { config, json, deviation, kind })
    }

    /// Names and shapes, in the order of the file.
    fn tensors(&self) -> impl Iterator<Item = (String, Vec<i64>)> {
        expected_tensors(&self.config).into_iter()
    }

    fn pieces(&self, seed: u64) -> impl Iterator<Item = Piece<'_>> {
        self.tensors().map(move |(name, shape)| {
            let (of, sizes) = (name.clone(), shape.clone());
            let tensor = Box::new(move || Ok(self.draw(seed, &of, &sizes)));
            Piece { name, kind: self.kind, shape, tensor }
        })
    }

    /// One tensor, f32 of `shape`: norms are 1, biases 0, all others normal with mean 0; no gradient
    /// ever reaches the embedding of the pad id, which is 0.
    fn draw(&self, seed: u64, name: &str, shape: &[i64]) -> Tensor {
        let on_cpu = (Kind::Float, tch::Device::Cpu);
        if name.ends_with("norm.weight") {
            return Tensor::ones(shape, on_cpu);
        }
        if name.ends_with(".bias") {
            return Tensor::zeros(shape, on_cpu);
        }
        let count = usize::try_from(elements(shape)).unwrap_or(usize::MAX);
        let values = normals(key(seed, name, shape), WEIGHTS, count, self.deviation);
        let tensor = Tensor::from_slice(&values).view(shape);
        if let Some(pad) = self.config.pad_id.filter(|_| name == "model.embed_tokens.weight") {
            let _ = tensor.select(0, i64::from(pad)).zero_();
        }
        tensor
    }
}

/// The first 64 bits of a sum over all that names a tensor's numbers.
fn key(seed: u64, name: &str, shape: &[i64]) -> [u32; 2] {
    let mut sum = Sha256::new();
    sum.update(b"rlhfd initial weights 1");
    sum.update(seed.to_le_bytes());
    sum.update((name.len() as u64).to_le_bytes());
    sum.update(name);
    for size in shape {
        sum.update(size.to_le_bytes());
    }
    let sum = sum.finalize();
    let word = |at: usize| u32::from_le_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]]);
    [word(0), word(4)]
}

fn elements(shape: &[i64]) -> u64 {
    shape.iter().fold(1, |product, size| product * u64::try_from(*size).unwrap_or(0))
}

/// The type that the weights are stored in: config.json's, else f32.
fn stored_kind(path: &Path, json: &Map<String, Value>) -> Result<Kind, TrainError> {
    let given = ["dtype", "torch_dtype"].into_iter().find_map(|key| json.get(key));
    match given.filter(|value| !value.is_null()).map(|value| value.as_str().unwrap_or("")) {
        None | Some("float32") => Ok(Kind::Float),
        Some("bfloat16") => Ok(Kind::BFloat16),
        Some("float16") => Ok(Kind::Half),
        Some(other) => Err(wrong(
            path,
            format!("dtype {other:?} is not \"float32\", \"bfloat16\" or \"float16\""),
        )),
    }
}

/// What [`ModelConfig::parse`] leaves to the weights, which are not there yet.
fn check(path: &Path, config: &ModelConfig) -> Result<(), TrainError> {
    let special = [("bos_token_id", config.bos_id), ("pad_token_id", config.pad_id)];
    let special = special.into_iter().filter_map(|(key, id)| Some((key, id?)));
    let stops = config.eos_ids.iter().map(|id| ("eos_token_id", *id));
    for (key, id) in special.chain(stops) {
        if id as usize >= config.vocabulary {
            let rows = config.vocabulary;
            return Err(wrong(path, format!("{key} is {id}, but vocab_size is {rows}")));
        }
    }
    if let (Head::Score, Some(labels)) = (config.head, config.labels.filter(|count| *count != 1)) {
        return Err(wrong(path, format!("the model has {labels} labels; a reward model has one")));
    }
    for (name, shape) in expected_tensors(config) {
        let count = shape.iter().try_fold(1_u64, |product, size| {
            product.checked_mul(u64::try_from(*size).unwrap_or(u64::MAX))
        });
        if count.is_none_or(|count| count > ELEMENTS_MAX) {
            let most = ELEMENTS_MAX;
            return Err(wrong(path, format!("{name} {shape:?} has more than {most} elements")));
        }
    }
    Ok(())
}

/// What transformers would otherwise guess: the architecture, the type, a reward model's one label.
fn complete(json: &mut Map<String, Value>, config: &ModelConfig) {
    let given = |json: &Map<String, Value>, key: &str| json.get(key).is_some_and(|v| !v.is_null());
    if !given(json, "architectures") {
        json.insert("architectures".to_owned(), json!([config.family.causal]));
    }
    if !given(json, "dtype") && !given(json, "torch_dtype") {
        json.insert("dtype".to_owned(), json!("float32"));
    }
    if config.head == Head::Score && !given(json, "id2label") {
        // transformers counts labels by this table.
        json.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
        json.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
    }
}

/// A tokenizer that does not fit is mended here in config.json, not by fetching weights.
fn told(error: TextError, path: &Path) -> TrainError {
    match error {
        TextError::Misfit { tokens, id_max, vocabulary, .. } => wrong(
            path,
            format!(
                "vocab_size is {vocabulary}, but the tokenizer has {tokens} tokens up to id {id_max}"
            ),
        ),
        other => TrainError::Text(other),
    }
}

fn wrong(path: &Path, problem: String) -> TrainError {
    let mend = "correct this key, or take the config.json of a model of this family and tokenizer";
    TrainError::Model(ModelError::Config { path: path.to_owned(), problem, mend })
}
