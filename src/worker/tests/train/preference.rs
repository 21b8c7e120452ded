//! The preference model: questions and probabilities as transformers gives them, both orders, a curve
//! as a plain loop makes it, a folder that says what it is.

use std::path::Path;

use rlhfd_config::{TrainSettings, Training};
use rlhfd_protocol::manifest::FolderKind;
use rlhfd_protocol::worker::Message;
use rlhfd_worker::checkpoint;
use rlhfd_worker::errors::{ModelError, WorkerError};
use rlhfd_worker::model::labels::{Labels, PREFERENCE};
use rlhfd_worker::model::{
    Devices, LoadOptions, ModelFolder, ModelKind, Precision, Trainable, Transformer,
};
use rlhfd_worker::prefer::{Preference, Questions, prefer_batch};
use rlhfd_worker::render::Renderer;
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::job::{PublishedAs, TrainJob};
use rlhfd_worker::watch::Watch;
use serde::Deserialize;
use tch::Device;

use crate::support::{
    files, golden, interrupted, job, model, run_quietly, small, squared_distance, tensors,
    with_state,
};

#[derive(Deserialize)]
struct GoldenModel {
    model: String,
    labels: [u32; 2],
    cases: Vec<GoldenCase>,
}

#[derive(Deserialize)]
struct GoldenCase {
    context: Vec<Message>,
    responses: [String; 2],
    ids: Vec<u32>,
    forward: f64,
    backward: f64,
    preference: f64,
}

#[derive(Deserialize)]
struct GoldenRun {
    model: String,
    seed: u64,
    pairs: String,
    chosen_as_a: Vec<bool>,
    settings: serde_json::Map<String, serde_json::Value>,
    steps: Vec<GoldenStep>,
    #[serde(rename = "final")]
    last: String,
    initial_to_final_norm: f64,
}

#[derive(Deserialize)]
struct GoldenStep {
    loss: f64,
    lr: f64,
    grad_norm: f64,
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// A model and what its texts go through.
struct Judge {
    model: Transformer,
    renderer: Renderer,
    labels: Labels,
}

impl Judge {
    fn open(dir: &Path) -> Self {
        Self::of(&ModelFolder::open(dir).unwrap())
    }

    fn of(folder: &ModelFolder) -> Self {
        let options = LoadOptions {
            devices: Devices::one(Device::Cpu),
            precision: Precision::Float32,
            trainable: Trainable::Nothing,
        };
        let renderer = Renderer::open(folder).unwrap();
        let labels = renderer.labels().unwrap();
        Self { model: Transformer::load(folder, &options).unwrap(), renderer, labels }
    }

    fn questions(&self, context: &[Message], [first, second]: [&String; 2]) -> Questions {
        Questions::of(&self.renderer, context, [first, second]).unwrap()
    }

    fn prefer(&self, pairs: &[Questions]) -> Vec<Preference> {
        prefer_batch(&self.model, self.labels, pairs, &Watch::default()).unwrap()
    }
}

#[test]
fn preferences_are_those_of_transformers_in_both_orders() {
    let (mut checked, mut apart) = (0, 0.0_f64);
    for golden in read::<Vec<GoldenModel>>("preferences.json") {
        let judge = Judge::open(&model(&golden.model));
        assert_eq!([judge.labels.a, judge.labels.b], golden.labels);
        let questions: Vec<Questions> = golden
            .cases
            .iter()
            .map(|case| judge.questions(&case.context, case.responses.each_ref()))
            .collect();
        for (index, case) in golden.cases.iter().enumerate() {
            let name = format!("{} {index}", golden.model);
            assert_eq!(questions[index].first_as_a, case.ids, "{name}");
            let alone = judge.prefer(&questions[index..=index])[0];
            let together = judge.prefer(&questions)[index];
            for ours in [alone, together] {
                for (ours, theirs) in [
                    (ours.forward, case.forward),
                    (ours.backward, case.backward),
                    (ours.mean(), case.preference),
                ] {
                    assert!((ours - theirs).abs() < 1e-5, "{name}: {ours} {theirs}");
                }
            }
            apart = apart.max((alone.mean() - alone.forward).abs());
            checked += 1;
        }
    }
    assert!(checked >= 20 && apart > 0.1, "{checked}; one order alone is off by {apart}");
}

#[test]
fn exchanging_the_responses_flips_the_preference_exactly() {
    let mut one_sided = 0;
    for golden in read::<Vec<GoldenModel>>("preferences.json") {
        let judge = Judge::open(&model(&golden.model));
        let asked = |exchange: bool| {
            let of = |case: &GoldenCase| {
                let [first, second] = case.responses.each_ref();
                let responses = if exchange { [second, first] } else { [first, second] };
                judge.questions(&case.context, responses)
            };
            judge.prefer(&golden.cases.iter().map(of).collect::<Vec<_>>())
        };
        for (one, other) in asked(false).into_iter().zip(asked(true)) {
            assert!((one.mean() + other.mean() - 1.0).abs() < 1e-15, "{one:?} {other:?}");
            assert_eq!(one.mean() > 0.5, other.mean() < 0.5);
            // What one order alone would say of the two does not come to 1.
            one_sided += usize::from((one.forward + other.forward - 1.0).abs() > 0.01);
        }
        let case = &golden.cases[0];
        let same = judge.questions(&case.context, [&case.responses[0], &case.responses[0]]);
        assert_eq!(judge.prefer(&[same])[0].mean(), 0.5, "a response is as good as itself");
    }
    assert!(one_sided >= 20, "{one_sided}");
}

fn golden_job(out: &Path, words: &[&str]) -> (TrainJob, GoldenRun) {
    let run: GoldenRun = read("preference.json");
    let mut job = job(Training::Preference, model(&run.model), golden(&run.pairs), out.join("out"));
    let lines = run.settings.iter().map(|(key, value)| format!("{key} = {value}\n"));
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let text: String = lines.collect();
    job.settings = TrainSettings::read(Training::Preference, &text, &words).unwrap();
    job.seed = run.seed;
    (job, run)
}

#[test]
fn training_follows_a_plain_loop_step_by_step() {
    for words in [&[][..], &["micro_batch_sequences=7"], &["activation_checkpointing=true"]] {
        let dir = tempfile::tempdir().unwrap();
        let (job, golden_run) = golden_job(dir.path(), words);
        let outcome = run_quietly(&job).unwrap();
        assert_eq!(outcome.rows.len(), golden_run.steps.len());
        for (ours, theirs) in outcome.rows.iter().zip(&golden_run.steps) {
            let step = ours.step;
            assert!(
                (ours.loss - theirs.loss).abs() < 1e-4,
                "{step}: {} {}",
                ours.loss,
                theirs.loss
            );
            assert!((ours.grad_norm / theirs.grad_norm - 1.0).abs() < 1e-3, "{step}");
            assert!((ours.lr - theirs.lr).abs() < 1e-12, "{step}");
        }
        let theirs = tensors(&golden(&golden_run.last));
        let ours = tensors(&job.out.join("model.safetensors"));
        let distance = squared_distance(&ours, &theirs).sqrt() / golden_run.initial_to_final_norm;
        assert!(distance < 1e-2, "relative distance {distance}");
    }
}

#[test]
fn packing_changes_neither_loss_nor_gradient_of_a_step_over_all_pairs() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let words = ["batch_sequences=24", "micro_batch_sequences=3", "epochs=1", "warmup_ratio=0"];
    let apart = run_quietly(&golden_job(one.path(), &words).0).unwrap();
    let words = [words.as_slice(), &["packing=true"]].concat();
    let packed = run_quietly(&golden_job(two.path(), &words).0).unwrap();
    let (packed, apart) = (&packed.rows[0], &apart.rows[0]);
    assert!((packed.loss - apart.loss).abs() < 1e-5, "{} {}", packed.loss, apart.loss);
    assert!((packed.grad_norm / apart.grad_norm - 1.0).abs() < 1e-4);
}

/// Chosen and rejected answers of the golden pairs, as the model is asked about them.
fn golden_questions(judge: &Judge) -> Vec<Questions> {
    #[derive(Deserialize)]
    struct Pair {
        chosen: Vec<Message>,
        rejected: Vec<Message>,
    }
    let text = std::fs::read_to_string(golden("pairs.jsonl")).unwrap();
    let pairs = text.lines().map(|line| serde_json::from_str::<Pair>(line).unwrap());
    pairs
        .map(|pair| {
            let (chosen, context) = pair.chosen.split_last().unwrap();
            let rejected = pair.rejected.last().unwrap();
            judge.questions(context, [&chosen.content, &rejected.content])
        })
        .collect()
}

#[test]
fn what_is_learnt_is_that_the_chosen_answer_is_better_wherever_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (job, golden_run) = golden_job(dir.path(), &["epochs=12", "learning_rate=3e-3"]);
    run_quietly(&job).unwrap();
    let (before, after) = (Judge::open(&job.base), Judge::open(&job.out));
    let mean = |judge: &Judge| {
        let preferences = judge.prefer(&golden_questions(judge));
        preferences.iter().map(|one| one.mean()).sum::<f64>() / preferences.len() as f64
    };
    let (before, after_mean) = (mean(&before), mean(&after));
    assert!(after_mean > before + 0.1 && after_mean > 0.6, "{before} to {after_mean}");
    // Both places are drawn, so that the label is not a place.
    let as_a = golden_run.chosen_as_a.iter().filter(|as_a| **as_a).count();
    assert!(as_a > 6 && as_a < golden_run.chosen_as_a.len() - 6);
    let preferences = after.prefer(&golden_questions(&after));
    let sum = |of: fn(&Preference) -> f64| preferences.iter().map(of).sum::<f64>();
    let count = preferences.len() as f64;
    let orders = (sum(|one| one.forward) / count, sum(|one| one.backward) / count);
    assert!(orders.0 > 0.55 && orders.1 > 0.55, "{orders:?}");
}

#[test]
fn its_folder_says_what_it_is_and_is_taken_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let job = small(dir.path(), Training::Preference, "tiny-tied", &["block_tokens=512"]);
    let outcome = run_quietly(&job).unwrap();
    assert_eq!(outcome.standing.manifest.kind, FolderKind::PreferenceModel);
    let open = || ModelFolder::open(&job.out).unwrap();
    assert_eq!(open().kind(), ModelKind::PreferenceModel);
    let renderer = Renderer::open(&open()).unwrap();
    let labels = open().preference_labels().unwrap();
    renderer.require_labels(labels).unwrap();
    for (error, words) in [
        (open().require_policy().unwrap_err(), ["preference.json", "a policy"]),
        (open().require_reward_model().unwrap_err(), ["prefer", "a reward model"]),
        (
            ModelFolder::open(&job.base).unwrap().preference_labels().unwrap_err(),
            ["train preference", "a policy"],
        ),
        (
            ModelFolder::open(&model("tiny-reward")).unwrap().preference_labels().unwrap_err(),
            ["train preference", "a reward model"],
        ),
    ] {
        assert!(matches!(error, ModelError::WrongKind { .. }), "{error}");
        let error = error.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
    }
    // A policy is not trained from it; a preference model goes on.
    let next = |training: Training, out: &str| {
        let mut next = small(dir.path(), training, "tiny-tied", &[]);
        (next.base, next.out) = (job.out.clone(), dir.path().join(out));
        run_quietly(&next)
    };
    let error = next(Training::Sft, "policy").unwrap_err();
    assert!(matches!(error, TrainError::Model(ModelError::WrongKind { .. })), "{error}");
    next(Training::Preference, "next").unwrap();
    // Labels that are not the tokenizer's.
    let other = Labels { a: labels.b, b: labels.a };
    std::fs::write(job.out.join(PREFERENCE), other.to_bytes().unwrap()).unwrap();
    let error = renderer.require_labels(open().preference_labels().unwrap()).unwrap_err();
    assert!(matches!(error, WorkerError::Model(ModelError::Preference { .. })), "{error}");
    assert!(checkpoint::verify(&job.out).is_err());
}

#[test]
fn adapters_make_a_preference_model_merged_or_over_their_base() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["lora_rank=4", "lora_alpha=8", "learning_rate=5e-3"];
    let merged = small(dir.path(), Training::Preference, "tiny-tied", &words);
    run_quietly(&merged).unwrap();
    let mut alone = merged.clone();
    alone.out = dir.path().join("alone");
    alone.published = PublishedAs::Adapter;
    run_quietly(&alone).unwrap();
    let over = ModelFolder::open(&merged.base).unwrap().with_adapter(&alone.out).unwrap();
    assert_eq!(over.kind(), ModelKind::PreferenceModel);
    let (merged, over, base) =
        (Judge::open(&merged.out), Judge::of(&over), Judge::open(&merged.base));
    let of = |judge: &Judge| judge.prefer(&golden_questions(judge));
    let (merged, over, base) = (of(&merged), of(&over), of(&base));
    let apart = |one: &[Preference], two: &[Preference]| {
        one.iter().zip(two).map(|(a, b)| (a.mean() - b.mean()).abs()).fold(0.0, f64::max)
    };
    assert!(apart(&merged, &over) < 1e-5 && apart(&merged, &base) > 0.01);
}

#[test]
fn an_interrupted_training_ends_in_the_same_bits() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = small(one.path(), Training::Preference, "tiny-tied", &[]);
    run_quietly(&TrainJob { unit: "1/train".into(), ..whole.clone() }).unwrap();
    let cut = small(two.path(), Training::Preference, "tiny-tied", &[]);
    let cut = with_state(&cut, two.path(), 1);
    interrupted(&cut, 2);
    let outcome = run_quietly(&cut).unwrap();
    assert_eq!(outcome.first_step, 3);
    assert_eq!(files(&whole.out), files(&cut.out));
    // Another seed calls other responses A, so that its state is another training's.
    let other = TrainJob { seed: 9, out: two.path().join("other"), ..cut };
    assert!(matches!(run_quietly(&other).unwrap_err(), TrainError::ForeignState { .. }));
}

#[test]
fn what_cannot_be_asked_is_refused_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let turn = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let (u, a, b) = (turn("user", "q"), turn("assistant", "a"), turn("assistant", "b"));
    let good = format!(r#"{{"chosen": [{u}, {a}], "rejected": [{u}, {b}]}}"#);
    let plain = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let refused = |lines: &[&str], words: &[&str]| {
        let data = dir.path().join("data.jsonl");
        std::fs::write(&data, lines.join("\n")).unwrap();
        let mut job = job(Training::Preference, model("tiny-tied"), data, dir.path().join("out"));
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        job.settings = TrainSettings::read(Training::Preference, "", &words).unwrap();
        let result = run_quietly(&job).map(|_| ());
        assert_eq!(result.is_ok(), job.out.exists());
        let _ = std::fs::remove_dir_all(&job.out);
        result.map_err(|error| error.to_string())
    };
    let long = format!(r#"{{"chosen": [{u}, {a}, {u}, {b}], "rejected": [{u}, {b}]}}"#);
    let told = refused(&[&good, &long], &[]).unwrap_err();
    assert!(told.contains("line 2") && told.contains("3 messages"), "{told}");
    let told = refused(&[&good, plain], &["block_tokens=8"]).unwrap_err();
    assert!(told.contains("block_tokens") && told.contains("too_long: 2"), "{told}");
    refused(&[&good, plain], &[]).unwrap();
}
