//! Random models: what their numbers follow from, and that every loader takes them.
//!
//! In: configurations and tokenizers of the golden models. Out: folders in temporary places. May not
//! enter: golden values.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::path::{Path, PathBuf};

use rlhfd_worker::checkpoint;
use rlhfd_worker::initial::{Recipe, publish};
use rlhfd_worker::model::safetensors::WeightFile;
use rlhfd_worker::model::{
    Devices, Head, LoadOptions, ModelFolder, Precision, Trainable, Transformer,
};
use rlhfd_worker::render::Renderer;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

fn config_of(name: &str) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap()
}

/// A random model of `config` in `dir`, or what was said.
fn made(dir: &Path, config: &Map<String, Value>, seed: u64) -> Result<PathBuf, String> {
    let path = dir.join("given.json");
    std::fs::write(&path, serde_json::to_vec(config).unwrap()).unwrap();
    let out = dir.join(format!("out-{seed}"));
    let recipe = Recipe { config: path, tokenizer: golden("tiny-tied"), seed };
    match publish(&recipe, &out) {
        Ok(_) => Ok(out),
        Err(error) => {
            assert!(!out.exists() && !dir.join(format!(".out-{seed}.partial")).exists());
            Err(error.to_string())
        }
    }
}

fn tensors(dir: &Path) -> Vec<(String, Tensor)> {
    let file = WeightFile::open(&dir.join("model.safetensors")).unwrap();
    file.entries.iter().map(|entry| (entry.name.clone(), file.read(entry).unwrap())).collect()
}

fn find(tensors: &[(String, Tensor)], name: &str) -> Tensor {
    tensors.iter().find(|(candidate, _)| candidate == name).unwrap().1.shallow_clone()
}

#[test]
fn numbers_follow_from_seed_name_and_shape_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_of("tiny-untied");
    let one = tensors(&made(dir.path(), &config, 7).unwrap());
    let mut deeper = config.clone();
    deeper.insert("num_hidden_layers".to_owned(), json!(3));
    let other = tempfile::tempdir().unwrap();
    let two = tensors(&made(other.path(), &deeper, 7).unwrap());
    assert_eq!(two.len(), one.len() + 9);
    for (name, tensor) in &one {
        assert!(find(&two, name).equal(tensor), "{name}");
    }
    let three = tensors(&made(dir.path(), &config, 8).unwrap());
    let names =
        ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"];
    for name in names {
        assert!(!find(&three, name).equal(&find(&one, name)), "{name}");
    }
    let gate = find(&one, "model.layers.0.mlp.gate_proj.weight");
    assert!(!gate.equal(&find(&one, "model.layers.0.mlp.up_proj.weight")));
    // Computed apart from this code, with numpy and hashlib, from Philox's definition.
    let first = Vec::<f32>::try_from(gate.view(-1).narrow(0, 0, 5)).unwrap();
    for (found, wanted) in first.iter().zip(FIRST_OF_GATE) {
        assert!((found - wanted).abs() < 1e-8, "{first:?}");
    }
}

const FIRST_OF_GATE: [f32; 5] =
    [-0.015_685_165, -0.018_860_673, -0.003_491_693, -0.001_030_561, -0.010_063_587];

#[test]
fn tensors_are_initialised_as_transformers_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_of("family-qwen2");
    config.insert("vocab_size".to_owned(), json!(4096));
    config.insert("initializer_range".to_owned(), json!(0.05));
    let pad = config["pad_token_id"].as_i64().unwrap();
    for (name, tensor) in tensors(&made(dir.path(), &config, 1).unwrap()) {
        let deviation = tensor.std(false).double_value(&[]);
        let mean = tensor.mean(Kind::Double).double_value(&[]);
        #[expect(clippy::cast_precision_loss, reason = "a tiny model's sizes")]
        let count = tensor.numel() as f64;
        if name.ends_with("norm.weight") {
            assert!(tensor.equal(&tensor.ones_like()), "{name}");
        } else if name.ends_with(".bias") {
            assert!(tensor.equal(&tensor.zeros_like()), "{name}");
        } else {
            // Six deviations of the estimates of a deviation and of a mean.
            let room = 0.05 * 6.0 / (2.0 * count).sqrt();
            assert!((deviation - 0.05).abs() < room, "{name}: {deviation}");
            assert!(mean.abs() < 0.05 * 6.0 / count.sqrt(), "{name}: {mean}");
        }
        if name == "model.embed_tokens.weight" {
            assert_eq!(tensor.get(pad).abs().max().double_value(&[]), 0.0);
            assert!(tensor.get(pad - 1).abs().max().double_value(&[]) > 0.0);
        }
    }
}

#[test]
fn every_family_is_made_and_loaded() {
    let families = ["tiny-tied", "tiny-untied", "family-mistral", "family-qwen2", "family-qwen3"];
    let scorers = ["family-smollm3", "family-llama3", "tiny-reward", "family-qwen2-score"];
    for name in families.into_iter().chain(scorers) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config_of(name);
        config.insert("vocab_size".to_owned(), json!(320));
        for key in ["architectures", "dtype"] {
            // A policy's config may leave these open.
            if !name.contains("reward") && !name.ends_with("score") {
                config.remove(key);
            }
        }
        let out = made(dir.path(), &config, 3).unwrap();
        checkpoint::verify(&out).unwrap();
        let folder = ModelFolder::open(&out).unwrap();
        let scores = name.contains("reward") || name.ends_with("score");
        assert_eq!(folder.config.head == Head::Score, scores, "{name}");
        Renderer::open(&folder).unwrap();
        let options = LoadOptions {
            devices: Devices::one(Device::Cpu),
            precision: Precision::Float32,
            trainable: Trainable::Nothing,
        };
        let model = Transformer::load(&folder, &options).unwrap();
        let hidden = model.hidden(&Tensor::from_slice(&[5_i64, 6, 7]).unsqueeze(0));
        let given = if scores { model.scores(&hidden.get(0)) } else { model.logits(&hidden) };
        assert!(given.isfinite().all().double_value(&[]) > 0.0, "{name}");
        let written: Value =
            serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        assert!(written["architectures"][0].as_str().is_some(), "{name}");
    }
}

#[test]
fn a_wrong_config_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let change = |key: &str, value: Value| {
        let mut config = config_of("tiny-tied");
        config.insert(key.to_owned(), value);
        made(dir.path(), &config, 0).unwrap_err()
    };
    for (key, value, wanted) in [
        ("vocab_size", json!(300), "vocab_size is 300, but the tokenizer has 320 tokens"),
        ("vocab_size", json!(200_000_000), "more than 2147483648 elements"),
        ("pad_token_id", json!(320), "pad_token_id is 320, but vocab_size is 320"),
        ("model_type", json!("mamba"), "no family that this worker computes"),
        ("dtype", json!("int8"), "\"int8\""),
        ("initializer_range", json!(-1.0), "initializer_range is -1"),
        ("hidden_size", json!("wide"), "hidden_size"),
    ] {
        let said = change(key, value);
        assert!(said.contains(wanted) && said.contains("given.json"), "{said}");
    }
    let mut config = config_of("tiny-reward");
    config.insert("id2label".to_owned(), json!({"0": "a", "1": "b"}));
    let said = made(dir.path(), &config, 0).unwrap_err();
    assert!(said.contains("the model has 2 labels"), "{said}");
    let missing =
        Recipe { config: dir.path().join("nowhere.json"), tokenizer: golden("tiny-tied"), seed: 0 };
    let said = publish(&missing, &dir.path().join("x")).unwrap_err().to_string();
    assert!(said.contains("config.json is missing"), "{said}");
}
