//! Model folders that are wrong, each by one file: the worker says which and how to mend it.

use std::fs;
use std::path::Path;

use rlhfd_tests::models::copy;

use crate::worker::{amiss, golden, nothing_amiss, run, worker};

/// A change to a model's folder, and what must be said of it.
type Case = (&'static str, fn(&Path), &'static [&'static str]);

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn replace(path: &Path, from: &str, to: &str) {
    let before = text(path);
    let after = before.replace(from, to);
    assert_ne!(before, after, "{} holds no {from}", path.display());
    fs::write(path, after).unwrap();
}

/// Sets keys of config.json.
fn config(folder: &Path, key: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&text(&path)).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

fn weights(folder: &Path, change: impl Fn(&mut Vec<u8>)) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

const CASES: &[Case] = &[
    ("no config.json", |f| fs::remove_file(f.join("config.json")).unwrap(), &["config.json"]),
    (
        "config.json is no JSON",
        |f| fs::write(f.join("config.json"), "{").unwrap(),
        &["config.json"],
    ),
    (
        "config.json is a list",
        |f| fs::write(f.join("config.json"), "[]").unwrap(),
        &["config.json"],
    ),
    (
        "an unknown family",
        |f| {
            config(f, "architectures", serde_json::json!(["WhisperForConditionalGeneration"]));
            config(f, "model_type", "whisper".into());
        },
        &["whisper"],
    ),
    ("no layers", |f| config(f, "num_hidden_layers", 0.into()), &["num_hidden_layers"]),
    (
        "more layers than there are",
        |f| config(f, "num_hidden_layers", 3_000_000_000u64.into()),
        &["layers"],
    ),
    ("a negative width", |f| config(f, "hidden_size", (-4).into()), &["hidden_size"]),
    ("another width", |f| config(f, "hidden_size", 96.into()), &["shape", "config.json"]),
    ("heads that do not divide", |f| config(f, "num_key_value_heads", 7.into()), &["heads"]),
    ("no weights", |f| fs::remove_file(f.join("model.safetensors")).unwrap(), &["safetensors"]),
    (
        "only a pickle",
        |f| fs::rename(f.join("model.safetensors"), f.join("pytorch_model.bin")).unwrap(),
        &["pickle", "save_pretrained"],
    ),
    (
        "weights cut short",
        |f| weights(f, |bytes| bytes.truncate(bytes.len() - 64)),
        &["model.safetensors", "cut short"],
    ),
    ("weights of four bytes", |f| weights(f, |bytes| bytes.truncate(4)), &["model.safetensors"]),
    (
        "a header longer than the file",
        |f| weights(f, |bytes| bytes[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes())),
        &["model.safetensors"],
    ),
    ("a header that is no JSON", |f| weights(f, |bytes| bytes[8] = b'!'), &["model.safetensors"]),
    (
        "a tensor that is missing",
        |f| {
            weights(f, |bytes| {
                let at = bytes.windows(16).position(|w| w == b"model.norm.weigh").unwrap();
                bytes[at] = b'M';
            });
        },
        &["model.norm.weight"],
    ),
    ("no tokenizer", |f| fs::remove_file(f.join("tokenizer.json")).unwrap(), &["tokenizer"]),
    (
        "a tokenizer that is no JSON",
        |f| fs::write(f.join("tokenizer.json"), "{}").unwrap(),
        &["tokenizer"],
    ),
    (
        "a tokenizer of a larger vocabulary",
        |f| {
            let path = f.join("tokenizer.json");
            let mut tokenizer: serde_json::Value = serde_json::from_str(&text(&path)).unwrap();
            let token = serde_json::json!({"id": 90_000, "content": "<far>", "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true});
            tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
            fs::write(path, tokenizer.to_string()).unwrap();
        },
        &["tokenizer", "fit"],
    ),
    (
        "a template that does not parse",
        |f| fs::write(f.join("chat_template.jinja"), "{% for m in messages %}").unwrap(),
        &["template"],
    ),
    (
        "a template that refuses",
        |f| {
            let text = "{{ raise_exception('no such turn') }}";
            fs::write(f.join("chat_template.jinja"), text).unwrap();
        },
        &["no such turn"],
    ),
    (
        "a template without end",
        |f| {
            let text = "{% for a in range(99999) %}{% for b in range(99999) %}\
                {% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}";
            fs::write(f.join("chat_template.jinja"), text).unwrap();
        },
        &["template"],
    ),
    (
        "a template that gives nothing",
        |f| fs::write(f.join("chat_template.jinja"), "").unwrap(),
        &["template"],
    ),
    (
        "a template without a generation prompt",
        |f| {
            let text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
            fs::write(f.join("chat_template.jinja"), text).unwrap();
        },
        &["generation prompt", "add_generation_prompt"],
    ),
    (
        "weights that are no numbers",
        |f| {
            weights(f, |bytes| {
                let from = bytes.len() / 2;
                bytes[from..].fill(0xff);
            })
        },
        &["finite"],
    ),
];

#[test]
fn each_wrong_folder_is_named_and_nothing_is_written() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    for (name, change, says) in CASES {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model");
        copy(&golden("tiny-tied"), &folder);
        change(&folder);
        fs::write(place.path().join("in.jsonl"), "{\"prompt\": \"a b\"}\n").unwrap();
        let words = ["generate", "--model", "model", "--prompts", "in.jsonl", "--n", "1"];
        let rest = ["--max-new-tokens", "4", "--temperature", "1.0", "--out", "out"];
        let output = run(&worker, place.path(), &[&words[..], &rest].concat());
        found.extend(amiss(name, &output, says, place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn an_index_may_not_lead_out_of_the_folder() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let cases: [(&str, &str, &[&str]); 3] = [
        (
            "a missing shard",
            "model-00009-of-00009.safetensors",
            &["model-00009-of-00009", "missing"],
        ),
        ("a path outside", "../../x", &["index", "plain file names"]),
        ("an absolute path", "/etc/passwd", &["index", "plain file names"]),
    ];
    for (name, to, says) in cases {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model");
        copy(&golden("tiny-untied"), &folder);
        let index = folder.join("model.safetensors.index.json");
        replace(&index, "model-00002-of-00002.safetensors", to);
        fs::write(place.path().join("in.jsonl"), "{\"prompt\": \"a b\"}\n").unwrap();
        let words = ["generate", "--model", "model", "--prompts", "in.jsonl", "--n", "1"];
        let rest = ["--max-new-tokens", "4", "--temperature", "1.0", "--out", "out"];
        let output = run(&worker, place.path(), &[&words[..], &rest].concat());
        found.extend(amiss(name, &output, says, place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn a_policy_is_no_reward_model_and_a_reward_model_no_policy() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let data = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, \
        {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    fs::write(place.path().join("in.jsonl"), data).unwrap();
    let policy = golden("tiny-tied").to_string_lossy().into_owned();
    let words = ["score", "--model", &policy, "--data", "in.jsonl", "--out", "out"];
    let output = run(&worker, place.path(), &words);
    found.extend(amiss("a policy that scores", &output, &["reward model"], place.path()));
    let reward = golden("tiny-reward").to_string_lossy().into_owned();
    let words = ["generate", "--model", &reward, "--prompts", "in.jsonl", "--n", "1"];
    let rest = ["--max-new-tokens", "4", "--temperature", "1.0", "--out", "out"];
    let output = run(&worker, place.path(), &[&words[..], &rest].concat());
    found.extend(amiss("a reward model that writes", &output, &["policy"], place.path()));
    nothing_amiss(&found);
}
