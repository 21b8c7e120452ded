//! Model folders as far as they can be judged without libtorch.
//!
//! In: a folder. Out: [`Facts`] for the memory plan, and findings. Whether tokenizer and template
//! agree is the probe's question, which a worker answers before a run. May not enter: tensors.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::report::Report;
use super::weights::{self, Weights};

/// The architectures that the worker computes, without their last part. The worker's table of
/// families is the truth; this list only lets `check` speak before one is started.
pub(crate) const FAMILIES: [&str; 5] = ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"];
const CAUSAL: &str = "ForCausalLM";
const CLASSIFICATION: &str = "ForSequenceClassification";
/// What makes a folder a preference model's.
const PREFERENCE: &str = "preference.json";
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// What a folder is to be used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// It writes.
    Policy,
    /// It scores.
    Reward,
    /// It compares.
    Preference,
    /// A reward training begins with it: a policy or a reward model.
    RewardBase,
    /// A preference training begins with it: a policy or a preference model.
    PreferenceBase,
}

/// What the memory plan needs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    pub(crate) layers: u64,
    pub(crate) width: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) mlp_width: u64,
    pub(crate) vocabulary: u64,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
    pub(crate) weights: Weights,
    pub(crate) pad_id: Option<u64>,
    pub(crate) stop_ids: Vec<u64>,
}

/// Looks at a folder and tells all that is wrong with it. Facts come only of a sound one.
pub(crate) fn look(
    path: &Path,
    about: &'static str,
    wanted: Use,
    report: &mut Report,
) -> Option<Facts> {
    let shown = path.display();
    let config = match read_config(path) {
        Ok(config) => config,
        Err(problem) => {
            report.bad(about, format!("{shown}: {problem}"));
            return None;
        }
    };
    let mut problems = Vec::new();
    let weights = weights::read(path).unwrap_or_else(|found| {
        problems.extend(found);
        Weights::default()
    });
    let compares = path.join(PREFERENCE).is_file();
    problems.extend(architecture(&config, &weights, (wanted, compares)));
    problems.extend(tokenizer(path));
    let facts = facts(&config, weights, path);
    if let Err(key) = &facts {
        problems.push(format!("config.json has no whole number {key}: fetch it again"));
    }
    if !problems.is_empty() {
        for problem in problems {
            report.bad(about, format!("{shown}: {problem}"));
        }
        return None;
    }
    let facts = facts.ok()?;
    let types: Vec<&str> = facts.weights.types.iter().map(String::as_str).collect();
    let millions = facts.weights.parameters as f64 / 1e6;
    report.well(
        about,
        format!(
            "{shown}: {millions:.1} M parameters in {}, {} blocks",
            types.join("/"),
            facts.layers
        ),
    );
    Some(facts)
}

fn read_config(folder: &Path) -> Result<Value, String> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Err("there is no model folder (no config.json); put one there, or change the \
                    configuration"
            .to_owned());
    }
    let length = fs::metadata(&path).map_or(0, |facts| facts.len());
    if length > CONFIG_BYTES_MAX {
        return Err(format!("config.json has {length} bytes: fetch it again"));
    }
    let text = fs::read_to_string(&path).map_err(|e| format!("config.json cannot be read: {e}"))?;
    serde_json::from_str(&text).map_err(|e| format!("config.json is no JSON ({e}): fetch it again"))
}

/// What is wrong with the architecture, for this use.
fn architecture(config: &Value, weights: &Weights, (wanted, compares): (Use, bool)) -> Vec<String> {
    let named = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let Some(named) = named else {
        return vec!["config.json names no architecture: fetch it again".to_owned()];
    };
    let split = |end: &str| named.strip_suffix(end);
    let (family, scores) = match (split(CAUSAL), split(CLASSIFICATION)) {
        (Some(family), _) => (family, weights.score_head),
        (None, Some(family)) => (family, true),
        (None, None) => (named, false),
    };
    if !FAMILIES.contains(&family) || family == named {
        let known = FAMILIES.join(", ");
        return vec![format!("the architecture {named} is not computed here; known are {known}")];
    }
    let found = match (scores, compares) {
        (true, _) => "a reward model",
        (false, true) => "a preference model",
        (false, false) => "a policy",
    };
    let told = |wanted: &str| vec![format!("it is {found} ({named}), and {wanted}")];
    match (wanted, found) {
        (Use::Policy, "a reward model" | "a preference model") => {
            told("a policy is wanted: name a model that writes")
        }
        (Use::Reward, "a policy") => vec![format!(
            "it is a policy ({named}, no score.weight), and a reward model is wanted: name one, or \
             train one and name job = \"reward/NAME\""
        )],
        (Use::Reward, "a preference model") => {
            told("a reward model is wanted: write kind = \"preference\", or name another")
        }
        (Use::Preference, "a policy") => vec![format!(
            "it is a policy ({named}, no {PREFERENCE}), and a preference model is wanted: name one, or \
             train one and name job = \"preference/NAME\""
        )],
        (Use::Preference, "a reward model") => {
            told("a preference model is wanted: write kind = \"reward\", or name another")
        }
        (Use::RewardBase, "a preference model") => {
            told("a reward model begins with a policy or a reward model")
        }
        (Use::PreferenceBase, "a reward model") => {
            told("a preference model begins with a policy or a preference model")
        }
        _ => Vec::new(),
    }
}

/// What is wrong with the tokenizer's files.
fn tokenizer(folder: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.is_file() {
        problems.push(
            "it has no tokenizer.json: save the tokenizer with transformers' save_pretrained"
                .to_owned(),
        );
    } else if fs::read(&tokenizer)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .is_none_or(|value| value.get("model").is_none())
    {
        problems.push("tokenizer.json is no tokenizer: fetch it again".to_owned());
    }
    let in_settings = fs::read_to_string(folder.join("tokenizer_config.json"))
        .ok()
        .and_then(|text| serde_json::from_str::<Value>(&text).ok())
        .is_some_and(|value| value.get("chat_template").is_some());
    if !in_settings && !folder.join("chat_template.jinja").is_file() {
        problems.push(
            "it has no chat template (chat_template.jinja, or chat_template in \
             tokenizer_config.json): a conversation cannot be rendered"
                .to_owned(),
        );
    }
    problems
}

/// Errors: the key that is missing.
fn facts(config: &Value, weights: Weights, folder: &Path) -> Result<Facts, &'static str> {
    let size = |key: &'static str| config.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
    let heads = size("num_attention_heads").ok_or("num_attention_heads")?;
    let width = size("hidden_size").ok_or("hidden_size")?;
    // generation_config.json has the last word on stop ids.
    let generation = fs::read_to_string(folder.join("generation_config.json"))
        .ok()
        .and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let stops = generation.as_ref().and_then(|value| value.get("eos_token_id"));
    let stops = stops.or_else(|| config.get("eos_token_id"));
    let stop_ids = match stops {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(id) => id.as_u64().into_iter().collect(),
        None => Vec::new(),
    };
    Ok(Facts {
        layers: size("num_hidden_layers").ok_or("num_hidden_layers")?,
        width,
        heads,
        kv_heads: size("num_key_value_heads").unwrap_or(heads),
        head_dim: size("head_dim").unwrap_or(width / heads),
        mlp_width: size("intermediate_size").ok_or("intermediate_size")?,
        vocabulary: size("vocab_size").ok_or("vocab_size")?,
        tied: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        weights,
        pad_id: config.get("pad_token_id").and_then(Value::as_u64),
        stop_ids,
    })
}
