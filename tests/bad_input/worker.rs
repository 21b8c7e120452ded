//! The worker's file mode: data, options and places that are wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rlhfd_tests::binaries::{program, program_if_built, root};
use rlhfd_tests::scene::text;

/// A golden model's folder.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/models").join(name)
}

/// The worker's front, or a loud skip where the engine is not built (`make check`).
pub fn worker() -> Option<PathBuf> {
    if program_if_built("rlhfd-worker-torch").is_none() {
        assert!(std::env::var_os("RLHFD_REQUIRE_TORCH").is_none(), "the engine is not built");
        eprintln!("skipped: rlhfd-worker-torch is not built");
        return None;
    }
    Some(program("rlhfd-worker"))
}

/// Runs the worker with these words in `place`.
pub fn run(worker: &Path, place: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(worker);
    command.args(words).current_dir(place).stdin(std::process::Stdio::null());
    command.env("RLHFD_LIBTORCH", root().join("libtorch")).output().expect("the worker")
}

/// What is amiss with a refusal: it needs an exit code of the worker's own, its words, no panic,
/// and nothing written.
pub fn amiss(name: &str, output: &Output, says: &[&str], place: &Path) -> Vec<String> {
    let said = text(&output.stderr);
    let mut found = Vec::new();
    let code = output.status.code();
    if code.is_none_or(|code| code == 0 || code == 101) || said.contains("panicked") {
        found.push(format!("{name}: {:?} {said}", output.status));
    }
    for word in says {
        if !said.to_lowercase().contains(&word.to_lowercase()) {
            found.push(format!("{name}: no word of {word:?} in: {said}"));
        }
    }
    if place.join("out").exists() {
        found.push(format!("{name}: something was written"));
        let _ = fs::remove_file(place.join("out"));
    }
    found
}

/// Fails with all that a table found.
pub fn nothing_amiss(found: &[String]) {
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

const PROMPT: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"a b\"}]}\n";
const PAIR: &str = "{\"prompt\": [{\"role\": \"user\", \"content\": \"a b\"}], \
    \"chosen\": [{\"role\": \"assistant\", \"content\": \"c\"}], \
    \"rejected\": [{\"role\": \"assistant\", \"content\": \"d\"}]}\n";

#[test]
fn prompts_that_are_wrong_are_named_by_line() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let model = golden("tiny-tied").to_string_lossy().into_owned();
    let long = format!("{{\"prompt\": \"{}\"}}\n", "x".repeat(10 << 20));
    let cases: [(&str, Vec<u8>, &[&str]); 8] = [
        ("malformed", format!("{PROMPT}{{\n").into(), &["line 2"]),
        ("wrong type", format!("{PROMPT}{PROMPT}{{\"prompt\": 5}}\n").into(), &["line 3"]),
        ("empty", Vec::new(), &["empty"]),
        ("a line of 10 MB", long.into(), &["line 1"]),
        ("no UTF-8", b"{\"prompt\": \"\xff\"}\n".to_vec(), &["line 1", "UTF-8"]),
        ("no known key", "{\"text\": \"a\"}\n".into(), &["line 1", "messages"]),
        ("a deep nesting", "[".repeat(200_000).into(), &["line 1"]),
        (
            "over the model's context",
            format!("{{\"prompt\": \"{}\"}}\n", "a b ".repeat(4_000)).into(),
            &["1024", "shorten"],
        ),
    ];
    for (name, content, says) in cases {
        fs::write(place.path().join("in.jsonl"), content).unwrap();
        let words = ["generate", "--model", &model, "--prompts", "in.jsonl", "--n", "1"];
        let rest = ["--max-new-tokens", "4", "--temperature", "1.0", "--out", "out"];
        let output = run(&worker, place.path(), &[&words[..], &rest].concat());
        found.extend(amiss(name, &output, says, place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn options_out_of_range_are_named() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let model = golden("tiny-tied").to_string_lossy().into_owned();
    fs::write(place.path().join("in.jsonl"), PROMPT).unwrap();
    let cases: [(&[&str], &[&str]); 12] = [
        (&["--n", "0"], &["n"]),
        (&["--n", "-3"], &["n"]),
        (&["--temperature=-1.0"], &["temperature"]),
        (&["--temperature", "nan"], &["temperature"]),
        (&["--top-p", "0"], &["top_p"]),
        (&["--max-new-tokens", "0"], &["max-new-tokens"]),
        (&["--max-new-tokens", "99999999999"], &["max-new-tokens"]),
        (&["--device", "cuda:7"], &["cuda:7"]),
        (&["--device", "abacus"], &["abacus", "cpu"]),
        (&["--prompts", "missing.jsonl"], &["missing.jsonl"]),
        (&["--prompts", "."], &["read"]),
        (&["--model", "nowhere"], &["nowhere"]),
    ];
    for (options, says) in cases {
        let usual: [(&str, &str); 6] = [
            ("--model", &model),
            ("--prompts", "in.jsonl"),
            ("--n", "1"),
            ("--max-new-tokens", "4"),
            ("--temperature", "1.0"),
            ("--out", "out"),
        ];
        let mut words = vec!["generate"];
        for (key, value) in usual.iter().filter(|(key, _)| !options[0].starts_with(key)) {
            words.extend([*key, *value]);
        }
        words.extend(options);
        let output = run(&worker, place.path(), &words);
        found.extend(amiss(&options.join(" "), &output, says, place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let model = golden("tiny-tied").to_string_lossy().into_owned();
    fs::write(place.path().join("in.jsonl"), PROMPT).unwrap();
    // By a link, so that a worker that renamed over it would not take the device away.
    std::os::unix::fs::symlink("/dev/full", place.path().join("full")).unwrap();
    for (out, says) in [("full", "space"), ("no/such/folder/out", "no/such/folder")] {
        let words = ["generate", "--model", &model, "--prompts", "in.jsonl", "--n", "1"];
        let rest = ["--max-new-tokens", "4", "--temperature", "1.0", "--out", out];
        let output = run(&worker, place.path(), &[&words[..], &rest].concat());
        found.extend(amiss(out, &output, &[says], place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn trainings_that_cannot_be_are_refused_before_the_first_step() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let policy = golden("tiny-tied").to_string_lossy().into_owned();
    let differing = "{\"chosen\": [{\"role\": \"user\", \"content\": \"a\"}, \
        {\"role\": \"assistant\", \"content\": \"x\"}], \"rejected\": [{\"role\": \"user\", \
        \"content\": \"b\"}, {\"role\": \"assistant\", \"content\": \"y\"}]}\n";
    let no_rejected = "{\"prompt\": \"a\", \"chosen\": \"b\"}\n";
    let cases: [(&str, &str, &[&str], &[&str]); 10] = [
        ("prompts differ", differing, &[], &["line 1", "prompt"]),
        ("no rejected", no_rejected, &[], &["line 1", "rejected"]),
        ("an empty set", "", &[], &["empty"]),
        ("an unknown key", PAIR, &["--set", "learning_rat=1"], &["learning_rate"]),
        ("a set without a value", PAIR, &["--set", "beta"], &["="]),
        ("smoothing without cdpo", PAIR, &["--set", "label_smoothing=0.1"], &["cdpo"]),
        ("no pairs a step", PAIR, &["--set", "batch_pairs=0"], &["batch_pairs"]),
        ("a rate that is no number", PAIR, &["--set", "learning_rate=nan"], &["learning_rate"]),
        ("all over-long", PAIR, &["--set", "max_length=2"], &["max_length"]),
        ("a missing file", PAIR, &["--config", "none.toml"], &["none.toml"]),
    ];
    for (name, data, options, says) in cases {
        fs::write(place.path().join("pairs.jsonl"), data).unwrap();
        let words = ["train", "dpo", "--policy", &policy, "--reference", &policy];
        let rest = ["--data", "pairs.jsonl", "--out", "out"];
        let output = run(&worker, place.path(), &[&words[..], &rest, options].concat());
        found.extend(amiss(name, &output, says, place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn adapters_that_cannot_be_are_refused_with_what_to_name() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let policy = golden("tiny-tied").to_string_lossy().into_owned();
    let other = golden("tiny-untied").to_string_lossy().into_owned();
    let adapter = root().join("tests/golden/adapters/start").to_string_lossy().into_owned();
    fs::write(place.path().join("pairs.jsonl"), PAIR).unwrap();
    let lora = ["--set", "lora_rank=4"];
    let dpo = |policy: &'static str, more: &[&'static str]| {
        [&["train", "dpo", "--data", "pairs.jsonl", "--policy", policy][..], more].concat()
    };
    let named = [&lora[..], &["--set", "lora_targets=['q_proj','query']"]].concat();
    let both = [&lora[..], &["--set", "trainable_layers=1"]].concat();
    let cases: [(&str, Vec<&str>, &[&str]); 8] = [
        ("no reference", dpo("POLICY", &[]), &["--reference", "lora_rank"]),
        ("no adapter", dpo("POLICY", &["--reference", "POLICY", "--adapter-only"]), &["lora_rank"]),
        ("no such module", dpo("POLICY", &named), &["\"query\"", "q_proj, up_proj"]),
        ("two ways to freeze", dpo("POLICY", &both), &["trainable_layers", "lora_rank"]),
        ("an adapter without its base", dpo("ADAPTER", &lora), &["--base"]),
        (
            "a model as an adapter",
            vec!["merge", "--base", "POLICY", "--adapter", "OTHER"],
            &["adapter_config.json"],
        ),
        (
            "another model's adapter",
            vec!["merge", "--base", "OTHER", "--adapter", "ADAPTER"],
            &["has shape"],
        ),
        (
            "an adapter alone",
            vec!["logprobs", "--model", "ADAPTER", "--data", "pairs.jsonl"],
            &["--base"],
        ),
    ];
    for (name, words, says) in cases {
        let words: Vec<&str> = words
            .into_iter()
            .chain(["--out", "out"])
            .map(|word| match word {
                "POLICY" => policy.as_str(),
                "OTHER" => other.as_str(),
                "ADAPTER" => adapter.as_str(),
                word => word,
            })
            .collect();
        let output = run(&worker, place.path(), &words);
        found.extend(amiss(name, &output, says, place.path()));
    }
    nothing_amiss(&found);
}

#[test]
fn a_folder_with_something_in_it_is_not_overwritten() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let policy = golden("tiny-tied").to_string_lossy().into_owned();
    fs::write(place.path().join("pairs.jsonl"), PAIR).unwrap();
    fs::create_dir(place.path().join("mine")).unwrap();
    fs::write(place.path().join("mine/notes"), "mine").unwrap();
    let words = ["train", "dpo", "--policy", &policy, "--reference", &policy];
    let rest = ["--data", "pairs.jsonl", "--out", "mine"];
    let output = run(&worker, place.path(), &[&words[..], &rest].concat());
    found.extend(amiss("a full folder", &output, &["mine"], place.path()));
    assert_eq!(fs::read_to_string(place.path().join("mine/notes")).unwrap(), "mine");
    assert_eq!(fs::read_dir(place.path().join("mine")).unwrap().count(), 1);
    nothing_amiss(&found);
}

#[test]
fn comparisons_that_cannot_be_are_refused_and_sound_ones_are_made() {
    let Some(worker) = worker() else { return };
    let mut found = Vec::new();
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let policy = golden("tiny-tied").to_string_lossy().into_owned();
    let reward = golden("tiny-reward").to_string_lossy().into_owned();
    // A folder of someone else's: a preference.json makes a preference model of it.
    for (name, ids) in [("judge", [35, 36]), ("swapped", [36, 35])] {
        fs::create_dir(at(name)).unwrap();
        for entry in fs::read_dir(golden("tiny-tied")).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, at(name).join(from.file_name().unwrap())).unwrap();
        }
        let text = format!(
            "{{\"template\": \"context-response-a-response-b\", \
             \"label_ids\": {{\"A\": {}, \"B\": {}}}}}",
            ids[0], ids[1]
        );
        fs::write(at(name).join("preference.json"), text).unwrap();
    }
    let good = "{\"prompt\": \"q\", \"responses\": [\"a\", \"b\"]}\n";
    let three = "{\"prompt\": \"q\", \"responses\": [\"a\", \"b\", \"c\"]}\n";
    let none = "{\"responses\": [\"a\", \"b\"]}\n";
    let cases: [(&str, &str, &str, &[&str]); 6] = [
        ("a policy", &policy, good, &["a policy", "a preference model is wanted"]),
        ("a reward model", &reward, good, &["a reward model", "a preference model is wanted"]),
        ("another's labels", "swapped", good, &["preference.json", "36 and 35"]),
        ("three responses", "judge", &[good, three].concat(), &["line 2", "responses"]),
        ("no prompt", "judge", none, &["line 1", "prompt"]),
        ("nothing", "judge", "", &["empty"]),
    ];
    for (name, model, data, says) in cases {
        fs::write(at("in.jsonl"), data).unwrap();
        let words = ["prefer", "--model", model, "--data", "in.jsonl", "--out", "out"];
        let output = run(&worker, place.path(), &words);
        found.extend(amiss(name, &output, says, place.path()));
    }
    fs::write(at("in.jsonl"), PROMPT).unwrap();
    for (words, wanted) in [
        (["generate", "--prompts"], "a policy is wanted"),
        (["score", "--data"], "a reward model is wanted"),
    ] {
        let words = [words[0], words[1], "in.jsonl", "--model", "judge", "--out", "out"];
        let output = run(&worker, place.path(), &words);
        found.extend(amiss(words[0], &output, &["a preference model", wanted], place.path()));
    }
    nothing_amiss(&found);
    fs::write(at("in.jsonl"), good).unwrap();
    let words = ["prefer", "--model", "judge", "--data", "in.jsonl", "--out", "out"];
    let output = run(&worker, place.path(), &words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let line = fs::read_to_string(at("out")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
    let number = |key: &str| line[key].as_f64().unwrap();
    let mean = f64::midpoint(number("forward"), number("backward"));
    assert!((number("preference") - mean).abs() < 1e-12, "{line}");
}
