//! Model folders that cannot be used: each with its clear error, and none with a panic.
//!
//! In: the golden models, spoilt in one way each. Out: errors that name the file, the key or the
//! tensor. May not enter: training, the command line.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::fs;
use std::path::{Path, PathBuf};

use rlhfd_worker::model::ModelFolder;
use rlhfd_worker::render::Renderer;
use serde_json::Value;
use tempfile::TempDir;

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(model)
}

/// A copy of a golden model's folder.
fn copy(model: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(model)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Opens what a worker opens of a folder before it reads any weight.
fn open(dir: &Path) -> Result<(), String> {
    let folder = ModelFolder::open(dir).map_err(|error| error.to_string())?;
    Renderer::open(&folder).map(drop).map_err(|error| error.to_string())
}

/// Rewrites the safetensors header of a folder's only weight file.
fn edit_header(dir: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(header.as_object_mut().unwrap());
    let text = serde_json::to_vec(&header).unwrap();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&text);
    out.extend_from_slice(&bytes[8 + length..]);
    fs::write(&path, out).unwrap();
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(value.as_object_mut().unwrap());
    fs::write(path, value.to_string()).unwrap();
}

const NORM: &str = "model.layers.1.input_layernorm.weight";

/// What is wrong, how to make it so, and a word that its error must hold.
type Case = (&'static str, fn(&Path), &'static str);

const CASES: &[Case] = &[
    (
        "no config",
        |dir| fs::remove_file(dir.join("config.json")).unwrap(),
        "config.json is missing",
    ),
    ("config cut short", |dir| fs::write(dir.join("config.json"), "{\"a\"").unwrap(), "no JSON"),
    ("config a list", |dir| fs::write(dir.join("config.json"), "[]").unwrap(), "no family"),
    (
        "config of another width",
        |dir| {
            edit_json(&dir.join("config.json"), |config| {
                config.insert("hidden_size".into(), 64.into());
            });
        },
        "config.json calls for",
    ),
    (
        "more layers than weights",
        |dir| {
            edit_json(&dir.join("config.json"), |config| {
                config.insert("num_hidden_layers".into(), 3.into());
            });
        },
        "model.layers.2.",
    ),
    (
        "fewer layers than weights",
        |dir| {
            edit_json(&dir.join("config.json"), |config| {
                config.insert("num_hidden_layers".into(), 1.into());
            });
        },
        "none that config.json calls for",
    ),
    ("no weights", |dir| fs::remove_file(dir.join("model.safetensors")).unwrap(), "is missing"),
    (
        "pickle weights",
        |dir| {
            let weights = dir.join("model.safetensors");
            fs::rename(weights, dir.join("pytorch_model.bin")).unwrap();
        },
        "save_pretrained",
    ),
    (
        "weights cut short",
        |dir| {
            let path = dir.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        },
        "ends at byte",
    ),
    (
        "weights of five bytes",
        |dir| fs::write(dir.join("model.safetensors"), "12345").unwrap(),
        "too few for a header",
    ),
    (
        "a header longer than the file",
        |dir| fs::write(dir.join("model.safetensors"), u64::MAX.to_le_bytes()).unwrap(),
        "the header claims",
    ),
    (
        "a header of noise",
        |dir| {
            let noise = [&5_u64.to_le_bytes()[..], b"\xff\xff\xff\xff\xff"].concat();
            fs::write(dir.join("model.safetensors"), noise).unwrap();
        },
        "no JSON",
    ),
    (
        "a missing tensor",
        |dir| {
            edit_header(dir, |header| {
                header.remove(NORM);
            });
        },
        NORM,
    ),
    (
        "a tensor of another shape",
        |dir| edit_header(dir, |header| header[NORM]["shape"] = serde_json::json!([2, 16])),
        NORM,
    ),
    (
        "a shape that overflows",
        |dir| {
            edit_header(dir, |header| {
                header[NORM]["shape"] = serde_json::json!([u64::MAX, u64::MAX]);
            });
        },
        "does not fill its bytes",
    ),
    (
        "offsets that run backwards",
        |dir| edit_header(dir, |header| header[NORM]["data_offsets"] = serde_json::json!([9, 1])),
        "does not fill its bytes",
    ),
    (
        "a type that is no weight",
        |dir| edit_header(dir, |header| header[NORM]["dtype"] = "I8".into()),
        "has type I8",
    ),
    (
        "a bias that we would not add",
        |dir| {
            edit_header(dir, |header| {
                let value = header[NORM].clone();
                header.insert("model.layers.0.self_attn.q_proj.bias".into(), value);
            });
        },
        "q_proj.bias",
    ),
    ("no tokenizer", |dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(), "tokenizer.json"),
    (
        "a tokenizer of noise",
        |dir| fs::write(dir.join("tokenizer.json"), "{\"model\": 3}").unwrap(),
        "the tokenizer cannot be opened",
    ),
    (
        "a tokenizer with more tokens than the model",
        |dir| {
            edit_json(&dir.join("tokenizer.json"), |tokenizer| {
                let added = tokenizer["added_tokens"].as_array_mut().unwrap();
                let mut token = added[0].clone();
                token["content"] = "<|beyond|>".into();
                token["id"] = 1_000_000.into();
                added.push(token);
            });
        },
        "does not fit the model",
    ),
    (
        "a stop id that the tokenizer lacks",
        |dir| fs::write(dir.join("generation_config.json"), "{\"eos_token_id\": 77777}").unwrap(),
        "77777",
    ),
    (
        "a generation_config of noise",
        |dir| fs::write(dir.join("generation_config.json"), "eos").unwrap(),
        "generation_config.json",
    ),
    (
        "a template that does not compile",
        |dir| fs::write(dir.join("chat_template.jinja"), "{% for m in %}").unwrap(),
        "template",
    ),
    (
        "a template that is not text",
        |dir| fs::write(dir.join("chat_template.jinja"), b"\xff\xfe").unwrap(),
        "UTF-8",
    ),
];

#[test]
fn every_spoilt_folder_is_refused_with_its_reason_and_its_place() {
    for (what, spoil, wanted) in CASES {
        let dir = copy("tiny-tied");
        assert_eq!(open(dir.path()), Ok(()), "the copy itself");
        spoil(dir.path());
        let error = open(dir.path()).expect_err(what);
        assert!(error.contains(wanted), "{what}: {error}");
        assert!(error.contains("\ntry: "), "{what} says not how to mend it: {error}");
        assert!(error.contains(&dir.path().display().to_string()), "{what}: where? {error}");
    }
}

#[test]
fn a_folder_of_links_with_shards_opens_as_the_files_themselves() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("tiny-untied")).unwrap() {
        let path = entry.unwrap().path();
        std::os::unix::fs::symlink(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(open(dir.path()), Ok(()));
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn a_policy_is_no_reward_model_and_a_reward_model_no_policy() {
    let policy = ModelFolder::open(&golden("tiny-tied")).unwrap();
    let reward = ModelFolder::open(&golden("tiny-reward")).unwrap();
    assert!(
        policy.clone().require_policy().is_ok() && reward.clone().require_reward_model().is_ok()
    );
    assert!(policy.require_reward_model().unwrap_err().to_string().contains("no score head"));
    assert!(reward.require_policy().unwrap_err().to_string().contains("a score head"));
}

#[test]
fn a_classifier_of_two_labels_is_no_reward_model() {
    let dir = copy("tiny-reward");
    edit_header(dir.path(), |header| {
        // Two rows of half the width fill the same bytes.
        let width = header["score.weight"]["shape"][1].as_u64().unwrap();
        header["score.weight"]["shape"] = serde_json::json!([2, width / 2]);
    });
    let error = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("2 labels"), "{error}");
}
