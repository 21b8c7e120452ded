//! Model folders that look like real ones to whoever does not compute with them.
//!
//! A Llama of one layer and width 4 over 257 ids (bytes and one that ends a text), with weights
//! that are a sum of `seed`, so that two seeds give two contents.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use sha2::{Digest, Sha256};

const WIDTH: usize = 4;
const INNER: usize = 8;
const VOCABULARY: usize = 257;

/// The architecture's name as config.json has it.
pub fn architecture(reward: bool) -> &'static str {
    if reward { "LlamaForSequenceClassification" } else { "LlamaForCausalLM" }
}

/// A whole policy folder at `parent/name`.
pub fn policy(parent: &Path, name: &str) -> PathBuf {
    whole(parent, name, false)
}

/// A whole reward model's folder at `parent/name`.
pub fn reward(parent: &Path, name: &str) -> PathBuf {
    whole(parent, name, true)
}

/// A whole preference model's folder at `parent/name`.
pub fn preference(parent: &Path, name: &str) -> PathBuf {
    let folder = whole(parent, name, false);
    fs::write(folder.join("preference.json"), "{}\n").expect("the model's files");
    folder
}

fn whole(parent: &Path, name: &str, reward: bool) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir_all(&folder).expect("a model folder");
    write_files(&folder, reward, name).expect("the model's files");
    let write = |file: &str, value: serde_json::Value| {
        fs::write(folder.join(file), value.to_string()).expect("the model's files");
    };
    write("generation_config.json", json!({"eos_token_id": 256}));
    write("tokenizer.json", tokenizer());
    write(
        "tokenizer_config.json",
        json!({
            "eos_token": "<|end|>", "pad_token": "<|end|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": TEMPLATE,
        }),
    );
    folder
}

/// Copies a model's folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a model folder");
    for entry in fs::read_dir(from).expect("a model folder") {
        let entry = entry.expect("a file of the model");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a file of the model");
    }
}

const TEMPLATE: &str = "{% for message in messages %}{{ message['role'] }}: \
    {{ message['content'] }}{% if message['role'] == 'assistant' %}<|end|>{% endif %}\n\
    {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// config.json and model.safetensors.
pub fn write_files(folder: &Path, reward: bool, seed: &str) -> Result<()> {
    let mut config = json!({
        "architectures": [architecture(reward)],
        "model_type": "llama",
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": WIDTH,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "eos_token_id": 256, "pad_token_id": 256, "tie_word_embeddings": true,
        "torch_dtype": "float32",
    });
    if reward && let Some(config) = config.as_object_mut() {
        config.insert("num_labels".into(), json!(1));
        config.insert("id2label".into(), json!({"0": "LABEL_0"}));
    }
    fs::write(folder.join("config.json"), config.to_string() + "\n")?;
    fs::write(folder.join("model.safetensors"), safetensors(reward, seed)?)?;
    Ok(())
}

fn tensors(reward: bool) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, WIDTH])];
    for (name, shape) in [
        ("input_layernorm", vec![WIDTH]),
        ("self_attn.q_proj", vec![WIDTH, WIDTH]),
        ("self_attn.k_proj", vec![WIDTH, WIDTH]),
        ("self_attn.v_proj", vec![WIDTH, WIDTH]),
        ("self_attn.o_proj", vec![WIDTH, WIDTH]),
        ("post_attention_layernorm", vec![WIDTH]),
        ("mlp.gate_proj", vec![INNER, WIDTH]),
        ("mlp.up_proj", vec![INNER, WIDTH]),
        ("mlp.down_proj", vec![WIDTH, INNER]),
    ] {
        all.push((format!("model.layers.0.{name}.weight"), shape));
    }
    all.push(("model.norm.weight".to_owned(), vec![WIDTH]));
    if reward {
        all.push(("score.weight".to_owned(), vec![1, WIDTH]));
    }
    all
}

fn safetensors(reward: bool, seed: &str) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape) in tensors(reward) {
        let from = data.len();
        for index in 0..shape.iter().product::<usize>() {
            let sum = Sha256::digest(format!("{seed}/{name}/{index}"));
            let value = (f32::from(sum[0]) - 127.5) / 1275.0;
            data.extend_from_slice(&value.to_le_bytes());
        }
        let offsets = [from, data.len()];
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    Ok(file)
}

/// A byte-level tokenizer: every byte is an id, and one id ends a text.
fn tokenizer() -> serde_json::Value {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        byte_letters().into_iter().zip(0u32..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 256, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": []},
    })
}

/// The letters by which byte-level tokenizers spell the 256 bytes.
fn byte_letters() -> Vec<char> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256u32;
    (0..=255u8)
        .map(|byte| match plain(byte) {
            true => char::from(byte),
            false => {
                let letter = char::from_u32(next).unwrap_or('?');
                next += 1;
                letter
            }
        })
        .collect()
}
