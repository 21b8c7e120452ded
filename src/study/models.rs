//! The folders that the daemon's models begin with: a word-level tokenizer, and configurations.
//!
//! In: the language's words, sizes. Out: files. May not enter: weights (`rlhfd-worker init` draws them).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::words::{Lexicon, SPECIAL};

/// The sizes of policy and reward model.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSizes {
    /// Width.
    pub hidden: u64,
    /// Blocks.
    pub layers: u64,
    /// Query heads, and as many of keys and values.
    pub heads: u64,
    /// Width of the MLP.
    pub intermediate: u64,
    /// Deviation of the weights that are drawn.
    pub deviation: f64,
}

/// The longest sequence that a model takes.
const POSITIONS: u64 = 256;

/// A prompt is `<bos>` and its words, an answer its words and `<eos>`.
const TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'user' %}<bos>\
                        {{ message['content'] }}{% else %}<asst>{{ message['content'] }}<eos>\
                        {% endif %}{% endfor %}{% if add_generation_prompt %}<asst>{% endif %}";

/// Writes the tokenizer's folder.
///
/// Errors: the disk.
pub fn tokenizer(folder: &Path, lexicon: &Lexicon) -> Result<()> {
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            })
        })
        .collect();
    let ids = lexicon.words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id)));
    let vocabulary = Value::Object(ids.collect());
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"}
    });
    let settings = json!({
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<pad>",
        "clean_up_tokenization_spaces": false, "tokenizer_class": "PreTrainedTokenizerFast"
    });
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    write(&folder.join("tokenizer.json"), &tokenizer.to_string())?;
    write(&folder.join("tokenizer_config.json"), &settings.to_string())?;
    write(&folder.join("chat_template.jinja"), TEMPLATE)
}

/// The policy's config.json.
pub fn policy(sizes: &ModelSizes, words: usize) -> String {
    config("LlamaForCausalLM", sizes, words).to_string()
}

/// The config.json of the smallest reward model: where answers are only collected, something must
/// score them, and nobody looks at it.
pub fn stand_in(words: usize) -> String {
    let sizes = ModelSizes { hidden: 8, layers: 1, heads: 1, intermediate: 8, deviation: 0.02 };
    let mut config = config("LlamaForSequenceClassification", &sizes, words);
    config["num_labels"] = json!(1);
    config["id2label"] = json!({"0": "LABEL_0"});
    config["label2id"] = json!({"LABEL_0": 0});
    config.to_string()
}

fn config(architecture: &str, sizes: &ModelSizes, words: usize) -> Value {
    json!({
        "architectures": [architecture], "model_type": "llama", "vocab_size": words,
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads, "head_dim": sizes.hidden / sizes.heads,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": POSITIONS,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
        "initializer_range": sizes.deviation, "dtype": "float32", "use_cache": true,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2
    })
}

/// Writes a file.
///
/// Errors: the disk, with the file's name.
pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}
