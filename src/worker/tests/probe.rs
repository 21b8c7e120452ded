//! The probe: sound models pass, and each thing that would silently spoil a run is found.
//!
//! In: the golden models, spoilt in one way each. Out: findings. May not enter: the daemon.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::fs;
use std::path::{Path, PathBuf};

use rlhfd_protocol::worker::{ModelRef, ScorePosition};
use rlhfd_worker::device;
use rlhfd_worker::model::labels::Labels;
use rlhfd_worker::probe;
use rlhfd_worker::watch::Watch;
use tempfile::TempDir;

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(model)
}

fn spoilt(model: &str, spoil: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(model)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    spoil(dir.path());
    dir
}

fn named(path: &Path) -> ModelRef {
    ModelRef { path: path.to_owned(), sha256: String::new() }
}

fn findings(policies: &[&Path], scorers: &[&Path]) -> Vec<String> {
    probed(policies, scorers, &[])
}

fn probed(policies: &[&Path], scorers: &[&Path], compare: &[&Path]) -> Vec<String> {
    let compare: Vec<ModelRef> = compare.iter().map(|path| named(path)).collect();
    let policies: Vec<ModelRef> = policies.iter().map(|path| named(path)).collect();
    let scorers: Vec<(ModelRef, ScorePosition)> =
        scorers.iter().map(|path| (named(path), ScorePosition::Transformers)).collect();
    let compute = device::open("cpu", &[], Some(1)).unwrap();
    let models = (policies.as_slice(), scorers.as_slice(), compare.as_slice());
    probe::run(models, 8, (compute, &Watch::default())).unwrap()
}

fn edit_template(dir: &Path, from: &str, to: &str) {
    let path = dir.join("chat_template.jinja");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn sound_models_pass() {
    let found = findings(
        &[&golden("tiny-tied"), &golden("tiny-untied")],
        &[&golden("tiny-reward"), &golden("tiny-reward-stop")],
    );
    assert_eq!(found, Vec::<String>::new());
}

/// A policy's folder as a preference model's that answers with these ids.
fn judge(a: u32, b: u32) -> TempDir {
    spoilt("tiny-tied", |dir| {
        let labels = Labels { a, b }.to_bytes().unwrap();
        fs::write(dir.join("preference.json"), labels).unwrap();
    })
}

#[test]
fn a_preference_model_passes_and_others_are_found() {
    let found = probed(&[], &[], &[judge(35, 36).path()]);
    assert_eq!(found, Vec::<String>::new());
    let strange = judge(36, 35);
    let found = probed(
        &[judge(35, 36).path()],
        &[judge(35, 36).path()],
        &[strange.path(), &golden("tiny-tied"), &golden("tiny-reward")],
    );
    assert_eq!(found.len(), 5, "{found:?}");
    for (found, part) in found.iter().zip([
        "a policy is wanted",
        "a reward model is wanted",
        "the tokenizer has 35 and 36",
        "a preference model is wanted",
        "a preference model is wanted",
    ]) {
        assert!(found.contains(part), "`{part}` is not in {found}");
    }
}

#[test]
fn a_template_that_does_not_open_the_answer_is_found() {
    let silent =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let write = |dir: &Path, text: &str| fs::write(dir.join("chat_template.jinja"), text).unwrap();
    let dir = spoilt("tiny-tied", |dir| write(dir, silent));
    let found = findings(&[dir.path()], &[]);
    assert!(found.len() == 1 && found[0].contains("has no generation prompt"), "{found:?}");
    // One that opens it after every turn of the user, asked or not, opens it.
    let always = silent.replace(
        "{% endfor %}",
        "{% if m.role == 'user' %}<|im_start|>assistant\n{% endif %}{% endfor %}",
    );
    let always = always.replace(
        "<|im_start|>{{ m.role }}\n",
        "{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{% endif %}",
    );
    let dir = spoilt("tiny-tied", |dir| write(dir, &always));
    assert_eq!(findings(&[dir.path()], &[]), Vec::<String>::new());
}

#[test]
fn an_answer_that_no_stop_id_ends_is_found() {
    let dir = spoilt("tiny-tied", |dir| edit_template(dir, "'<|im_end|>'", "'.'"));
    let found = findings(&[dir.path()], &[]);
    assert!(found.len() == 1 && found[0].contains("without a stop id"), "{found:?}");
}

/// The folder of a model whose template stands in tokenizer_config.json, with that template edited.
fn with_bos_written(times: usize) -> TempDir {
    spoilt("tiny-untied", |dir| {
        let path = dir.join("tokenizer_config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("{{ bos_token }}"));
        let bos = "{{ bos_token }}".repeat(times);
        fs::write(path, text.replace("{{ bos_token }}", &bos)).unwrap();
    })
}

#[test]
fn a_missing_and_a_doubled_bos_are_found() {
    let found = findings(&[with_bos_written(0).path()], &[]);
    assert!(found.len() == 1 && found[0].contains("its template writes none"), "{found:?}");
    let found = findings(&[with_bos_written(2).path()], &[]);
    assert!(found.len() == 1 && found[0].contains("two BOS"), "{found:?}");
}

#[test]
fn a_model_of_the_wrong_kind_or_none_at_all_is_a_finding_and_no_failure() {
    let found = findings(&[&golden("tiny-reward"), Path::new("/nowhere")], &[&golden("tiny-tied")]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[0].contains("a policy is wanted") && found[2].contains("a reward model is wanted")
    );
}
