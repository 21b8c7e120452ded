//! Training against TRL on tiny random models, and what must hold of any training: resumed = not
//! interrupted, frozen tensors to the bit, clear errors.
//!
//! In: the golden files (`tests/golden/README.md`). Out: checkpoints in temporary folders. May not
//! enter: anything that makes golden values.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::cell::Cell;
use std::path::{Path, PathBuf};

use rlhfd_config::{TrainSettings, Training};
use rlhfd_worker::checkpoint;
use rlhfd_worker::device::Compute;
use rlhfd_worker::model::safetensors::WeightFile;
use rlhfd_worker::model::{Head, ModelFolder, Precision};
use rlhfd_worker::render::RenderRule;
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::batches::Order;
use rlhfd_worker::train::job::{Outcome, PairSource, StateKeeping, TrainJob, run};
use rlhfd_worker::train::state::Resume;
use rlhfd_worker::train::steps::StepRow;
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::watch::Watch;
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const CPU: Compute = Compute { device: Device::Cpu, precision: Precision::Float32 };

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn model(name: &str) -> PathBuf {
    golden("models").join(name)
}

#[derive(Deserialize)]
struct GoldenRun {
    model: String,
    reference: Option<String>,
    pairs: String,
    pairs_used: usize,
    settings: serde_json::Map<String, Value>,
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
    accuracy: f64,
    margin: f64,
    implicit_reward_chosen: Option<f64>,
    implicit_reward_rejected: Option<f64>,
}

fn golden_run(name: &str) -> GoldenRun {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// The first lines of a file of pairs, in a file of their own.
fn first_pairs(dir: &Path, from: &Path, count: usize) -> PathBuf {
    let text = std::fs::read_to_string(from).unwrap();
    let lines: Vec<&str> = text.lines().take(count).collect();
    let path = dir.join("pairs.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn settings(training: Training, map: &serde_json::Map<String, Value>) -> TrainSettings {
    let text: String = map.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    TrainSettings::read(training, &text, &[]).unwrap()
}

fn job(training: Training, base: PathBuf, pairs: PathBuf, out: PathBuf) -> TrainJob {
    let reference = (training == Training::Dpo).then(|| base.clone());
    TrainJob {
        training,
        base,
        pairs: PairSource::Text { path: pairs, rule: RenderRule::Conversation, reference },
        settings: TrainSettings::defaults(training).unwrap(),
        order: Order::AsGiven,
        seed: 0,
        out,
        unit: String::new(),
        parent_sha256: String::new(),
        state: None,
    }
}

fn run_quietly(job: &TrainJob) -> Result<Outcome, TrainError> {
    run(job, CPU, &Observer { watch: &Watch::default(), stepped: &|_, _| {} })
}

fn tensors(path: &Path) -> Vec<(String, Tensor)> {
    let file = WeightFile::open(path).unwrap();
    file.entries.iter().map(|entry| (entry.name.clone(), file.read(entry).unwrap())).collect()
}

fn squared_distance(one: &[(String, Tensor)], two: &[(String, Tensor)]) -> f64 {
    two.iter()
        .map(|(name, theirs)| {
            let (_, ours) = one.iter().find(|(candidate, _)| candidate == name).unwrap();
            let difference = ours.to_kind(Kind::Double) - theirs.to_kind(Kind::Double);
            (&difference * &difference).sum(Kind::Double).double_value(&[])
        })
        .sum()
}

fn against_trl(training: Training, name: &str, words: &[&str]) {
    let golden_run = golden_run(name);
    let dir = tempfile::tempdir().unwrap();
    let pairs = first_pairs(dir.path(), &golden(&golden_run.pairs), golden_run.pairs_used);
    let out = dir.path().join("out");
    let mut job = job(training, model(&golden_run.model), pairs, out.clone());
    if let PairSource::Text { reference: Some(reference), .. } = &mut job.pairs {
        *reference = model(golden_run.reference.as_ref().unwrap());
    }
    job.settings = settings(training, &golden_run.settings);
    if !words.is_empty() {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let text = job.settings.to_toml(training);
        job.settings = TrainSettings::read(training, &text, &words).unwrap();
    }
    let outcome = run_quietly(&job).unwrap();
    assert_eq!(outcome.rows.len(), golden_run.steps.len());
    let first = golden_run.steps.first().unwrap().loss;
    let least = golden_run.steps.iter().map(|step| step.loss).fold(f64::MAX, f64::min);
    assert!(first - least > 0.05, "the golden loss must fall: {first} to {least}");
    let ours = tensors(&out.join("model.safetensors"));
    let theirs = tensors(&golden(&golden_run.last));
    let distance = squared_distance(&ours, &theirs).sqrt() / golden_run.initial_to_final_norm;
    let mut wrong = Vec::new();
    for (ours, theirs) in outcome.rows.iter().zip(&golden_run.steps) {
        let norm = ours.grad_norm / theirs.grad_norm - 1.0;
        let mut table = vec![
            ("loss", ours.loss - theirs.loss, 1e-4),
            ("grad_norm", norm, 1e-3),
            ("lr", ours.lr - theirs.lr, 1e-12),
            ("margin", ours.margin - theirs.margin, 1e-3),
        ];
        // At the first step every margin is 0 but for rounding.
        if theirs.margin.abs() > 1e-3 {
            table.push(("accuracy", ours.accuracy - theirs.accuracy, 1e-6));
        }
        for (name, ours, theirs) in [
            ("chosen", ours.implicit_reward_chosen, theirs.implicit_reward_chosen),
            ("rejected", ours.implicit_reward_rejected, theirs.implicit_reward_rejected),
        ] {
            if let Some(theirs) = theirs {
                table.push((name, ours.unwrap() - theirs, 1e-3));
            }
        }
        for (name, difference, tolerance) in table {
            if difference.abs() > tolerance {
                wrong.push(format!("step {}: {name} differs by {difference:.2e}", ours.step));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\nweights: {distance:.2e}", wrong.join("\n"));
    assert!(distance < 1e-2, "relative distance {distance}");
    checkpoint::verify(&out).unwrap();
}

#[test]
fn dpo_follows_trl_step_by_step() {
    against_trl(Training::Dpo, "dpo.json", &[]);
}

#[test]
fn dpo_follows_trl_however_the_batch_is_cut() {
    against_trl(Training::Dpo, "dpo.json", &["micro_batch_pairs=5"]);
}

#[test]
fn dpo_follows_trl_with_activation_checkpointing() {
    against_trl(Training::Dpo, "dpo.json", &["activation_checkpointing=true"]);
}

#[test]
fn dpo_follows_trl_with_truncated_pairs_and_a_short_last_batch() {
    against_trl(Training::Dpo, "dpo_cut.json", &[]);
}

#[test]
fn a_reward_model_follows_trl_step_by_step() {
    against_trl(Training::Reward, "reward.json", &[]);
}

#[test]
fn a_reward_model_follows_trl_with_activation_checkpointing() {
    against_trl(Training::Reward, "reward.json", &["activation_checkpointing=true"]);
}

fn small(dir: &Path, training: Training, base: &str, words: &[&str]) -> TrainJob {
    let pairs = first_pairs(dir, &golden("pairs.jsonl"), 10);
    let mut job = job(training, model(base), pairs, dir.join("out"));
    let words: Vec<String> = [
        "learning_rate=1e-3",
        "batch_pairs=4",
        "epochs=2",
        "warmup_ratio=0",
        "weight_decay=0.1",
        "max_length=512",
    ]
    .iter()
    .chain(words)
    .map(|word| (*word).to_owned())
    .collect();
    job.settings = TrainSettings::read(training, "", &words).unwrap();
    job.order = Order::Shuffled { seed: 5 };
    job
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let standing = checkpoint::verify(dir).unwrap();
    let paths = standing.manifest.files.iter().map(|file| file.path.clone());
    paths.map(|path| (path.clone(), std::fs::read(dir.join(path)).unwrap())).collect()
}

/// Runs until `stop_after` steps are made, then is cancelled as a drain does it.
fn interrupted(job: &TrainJob, stop_after: u64) {
    let watch = Watch::default();
    let stepped = |row: &StepRow, _: u64| {
        if row.step == stop_after {
            watch.cancel();
        }
    };
    let error = run(job, CPU, &Observer { watch: &watch, stepped: &stepped }).unwrap_err();
    assert!(matches!(error, TrainError::Cancelled { .. }), "{error}");
    assert!(!job.out.exists());
}

fn with_state(job: &TrainJob, dir: &Path, every_steps: u64) -> TrainJob {
    let state =
        StateKeeping { folder: dir.join("state"), resume: Resume::Newest, every_steps, every_s: 0 };
    TrainJob { state: Some(state), unit: "1/train".into(), ..job.clone() }
}

#[test]
fn a_resumed_training_gives_the_same_bytes_as_an_undisturbed_one() {
    for (training, base) in [(Training::Dpo, "tiny-tied"), (Training::Reward, "tiny-tied")] {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let undisturbed = with_state(&small(one.path(), training, base, &[]), one.path(), 2);
        let whole = run_quietly(&undisturbed).unwrap();
        assert_eq!((whole.rows.len(), whole.first_step), (6, 1));

        let job = with_state(&small(two.path(), training, base, &[]), two.path(), 2);
        interrupted(&job, 3);
        let saved: Vec<_> = std::fs::read_dir(two.path().join("state")).unwrap().collect();
        assert!(!saved.is_empty());
        let resumed = run_quietly(&job).unwrap();
        assert_eq!(resumed.first_step, 4, "a cancel saves the step that was made");
        assert_eq!(resumed.rows, whole.rows);
        assert_eq!(files(&job.out), files(&undisturbed.out));
        assert_eq!(resumed.standing.sha256, whole.standing.sha256);
    }
}

#[test]
fn a_kill_between_two_saves_costs_only_the_steps_since() {
    let dir = tempfile::tempdir().unwrap();
    let job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 2);
    let whole = run_quietly(&job).unwrap();
    // What a kill in step 4 leaves: the saves of steps 2 (and 4, which is taken away here).
    std::fs::remove_dir_all(&job.out).unwrap();
    std::fs::remove_dir_all(dir.path().join("state/step-00000004")).unwrap();
    let again = run_quietly(&job).unwrap();
    assert_eq!((again.first_step, again.standing), (3, whole.standing));
}

#[test]
fn without_resume_a_training_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 2);
    interrupted(&job, 3);
    if let Some(state) = &mut job.state {
        state.resume = Resume::Never;
    }
    assert_eq!(run_quietly(&job).unwrap().first_step, 1);
}

#[test]
fn a_damaged_state_is_passed_over_and_another_trainings_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 1);
    interrupted(&job, 4);
    let newest = dir.path().join("state/step-00000004/state.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let mut other = job.clone();
    other.settings.beta = 0.3;
    assert!(matches!(run_quietly(&other), Err(TrainError::ForeignState { .. })));
    assert_eq!(run_quietly(&job).unwrap().first_step, 4);
}

#[test]
fn what_a_unit_has_published_is_taken_as_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 2);
    let first = run_quietly(&job).unwrap();
    let stepped = Cell::new(0);
    let count = |_: &StepRow, _: u64| stepped.set(stepped.get() + 1);
    let observer = Observer { watch: &Watch::default(), stepped: &count };
    let again = run(&job, CPU, &observer).unwrap();
    assert_eq!((stepped.get(), again.first_step), (0, 7));
    assert_eq!((again.standing, again.rows), (first.standing, first.rows));
    let other = TrainJob { unit: "2/train".into(), ..job };
    assert!(matches!(run_quietly(&other), Err(TrainError::Checkpoint(_))));
}

#[test]
fn frozen_tensors_are_the_same_to_the_bit_and_all_others_moved() {
    let checkpointing = ["trainable_layers=1", "activation_checkpointing=true"];
    for (training, base) in [
        (Training::Dpo, "tiny-tied"),
        (Training::Dpo, "tiny-untied"),
        (Training::Reward, "tiny-reward"),
    ] {
        let top = ModelFolder::open(&model(base)).unwrap().config.layers - 1;
        let learning = [format!("model.layers.{top}."), "model.norm.".into(), "score.".into()];
        for words in [&checkpointing[..1], &checkpointing[..]] {
            let dir = tempfile::tempdir().unwrap();
            let job = small(dir.path(), training, base, words);
            run_quietly(&job).unwrap();
            let mut moved = 0;
            for file in ModelFolder::open(&job.out).unwrap().files() {
                let before = model(base).join(file.path.file_name().unwrap());
                let before = tensors(&before);
                for entry in &file.entries {
                    let now = file.read(entry).unwrap();
                    let (_, before) = before.iter().find(|(name, _)| *name == entry.name).unwrap();
                    let learns = learning.iter().any(|prefix| entry.name.starts_with(prefix));
                    assert_eq!(!now.equal(before), learns, "{base}: {}", entry.name);
                    moved += usize::from(learns);
                }
            }
            assert!(moved >= 10, "{base}: {moved}");
        }
    }
}

#[test]
fn freezing_gives_what_training_without_frozen_states_gives() {
    // All blocks learn but not the embedding: no frozen state; against one epoch less of a cache.
    let dir = tempfile::tempdir().unwrap();
    let one = small(dir.path(), Training::Dpo, "tiny-untied", &["trainable_layers=1"]);
    let kept = run_quietly(&one).unwrap();
    let two = TrainJob {
        settings: TrainSettings { activation_checkpointing: true, ..one.settings.clone() },
        out: dir.path().join("two"),
        ..one
    };
    let recomputed = run_quietly(&two).unwrap();
    for (a, b) in kept.rows.iter().zip(&recomputed.rows) {
        assert!((a.loss - b.loss).abs() < 1e-6 && (a.grad_norm - b.grad_norm).abs() < 1e-4);
    }
}

#[test]
fn a_sharded_untied_policy_learns_in_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    let job = small(dir.path(), Training::Dpo, "tiny-untied", &[]);
    let outcome = run_quietly(&job).unwrap();
    let (first, last) = (outcome.rows.first().unwrap(), outcome.rows.last().unwrap());
    assert!((first.loss - std::f64::consts::LN_2).abs() < 1e-5 && last.loss < first.loss - 0.05);
    let folder = ModelFolder::open(&job.out).unwrap();
    assert_eq!(folder.files().len(), 2);
    for file in folder.files() {
        let before = tensors(&model("tiny-untied").join(file.path.file_name().unwrap()));
        for entry in &file.entries {
            let (_, before) = before.iter().find(|(name, _)| *name == entry.name).unwrap();
            assert!(!file.read(entry).unwrap().equal(before), "{}", entry.name);
        }
    }
    let kinds: Vec<_> = outcome.standing.manifest.files.iter().map(|f| f.path.as_str()).collect();
    assert!(kinds.contains(&"steps.jsonl") && kinds.contains(&"model.safetensors.index.json"));
    assert!(!kinds.iter().any(|path| path.starts_with("master/")), "f32 is its own master");
}

/// The tiny model with its weights rounded to bf16.
fn in_bf16(dir: &Path, base: &str) -> PathBuf {
    let to = dir.join("bf16");
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(model(base)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let tensors: Vec<(String, Tensor)> = tensors(&model(base).join("model.safetensors"))
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_kind(Kind::BFloat16)))
        .collect();
    let path = to.join("model.safetensors");
    std::fs::remove_file(&path).unwrap();
    Tensor::write_safetensors(&tensors, &path).unwrap();
    to
}

#[test]
fn a_bf16_policy_goes_on_from_its_f32_masters() {
    let dir = tempfile::tempdir().unwrap();
    let base = in_bf16(dir.path(), "tiny-tied");
    // So small a rate that bf16 alone would hardly move.
    let words = ["learning_rate=1e-6", "epochs=1"];
    let mut one = small(dir.path(), Training::Dpo, "tiny-tied", &words);
    one.base = base.clone();
    let PairSource::Text { reference, .. } = &mut one.pairs else { unreachable!() };
    *reference = Some(base);
    run_quietly(&one).unwrap();
    let published = tensors(&one.out.join("model.safetensors"));
    assert!(published.iter().all(|(_, tensor)| tensor.kind() == Kind::BFloat16));
    let masters = tensors(&one.out.join("master/weights.safetensors"));
    assert!(masters.iter().all(|(_, tensor)| tensor.kind() == Kind::Float));
    for (name, master) in &masters {
        let (_, rounded) = published.iter().find(|(candidate, _)| candidate == name).unwrap();
        assert!(master.to_kind(Kind::BFloat16).equal(rounded), "{name}");
    }
    // A second training with a rate of nearly nothing starts at the masters, not at the rounded weights.
    let two = TrainJob {
        base: one.out.clone(),
        out: dir.path().join("two"),
        settings: TrainSettings { learning_rate: 1e-30, weight_decay: 0.0, ..one.settings.clone() },
        ..one.clone()
    };
    run_quietly(&two).unwrap();
    let again = tensors(&two.out.join("master/weights.safetensors"));
    assert_eq!(squared_distance(&again, &masters), 0.0);
    assert!(squared_distance(&masters, &tensors(&dir.path().join("bf16/model.safetensors"))) > 0.0);
}

#[test]
fn a_policy_becomes_a_reward_model_with_a_pad_id_that_is_no_stop_id() {
    let dir = tempfile::tempdir().unwrap();
    let job = small(dir.path(), Training::Reward, "tiny-tied", &["epochs=4"]);
    let outcome = run_quietly(&job).unwrap();
    let (first, last) = (outcome.rows.first().unwrap(), outcome.rows.last().unwrap());
    assert!(last.loss < first.loss - 0.05, "{} {}", first.loss, last.loss);
    assert!(last.implicit_reward_chosen.is_none() && last.score_chosen.is_some());
    let folder = ModelFolder::open(&job.out).unwrap().require_reward_model().unwrap();
    assert_eq!((folder.config.head, folder.config.labels), (Head::Score, Some(1)));
    let renderer = rlhfd_worker::render::Renderer::open(&folder).unwrap();
    let pad = folder.config.pad_id.unwrap();
    assert!(!renderer.tokenizer.is_stop(pad));
    assert_eq!(renderer.tokenizer.pad_id, Some(pad), "the tokenizer pads with it too");
    assert_eq!(outcome.standing.manifest.architecture, "LlamaForSequenceClassification");
    let other = TrainJob { seed: 1, out: dir.path().join("other"), ..job.clone() };
    let other = run_quietly(&other).unwrap();
    assert_ne!(other.rows[0].loss, first.loss, "the seed draws the head");
}

#[test]
fn a_step_that_is_not_finite_is_not_applied() {
    let dir = tempfile::tempdir().unwrap();
    let job =
        small(dir.path(), Training::Dpo, "tiny-tied", &["learning_rate=1e30", "max_grad_norm=0"]);
    let error = run_quietly(&job).unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    assert!(!job.out.exists());
}

#[test]
fn the_reference_is_the_one_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let one = small(dir.path(), Training::Dpo, "tiny-tied", &[]);
    run_quietly(&one).unwrap();
    let mut two = TrainJob { base: one.out.clone(), out: dir.path().join("two"), ..one.clone() };
    let first = run_quietly(&two).unwrap().rows[0].clone();
    assert!(first.margin > 0.05, "a trained policy stands off from the initial reference");
    let PairSource::Text { reference, .. } = &mut two.pairs else { unreachable!() };
    *reference = Some(two.base.clone());
    two.out = dir.path().join("three");
    let first = run_quietly(&two).unwrap().rows[0].clone();
    assert!(first.margin.abs() < 1e-4 && (first.loss - std::f64::consts::LN_2).abs() < 1e-5);
}

#[test]
fn bad_input_is_told_before_anything_is_written() {
    type Spoil = fn(&mut TrainJob, &Path);
    let cases: &[(&str, Spoil)] = &[
        ("missing", |job, dir| job.base = dir.join("nowhere")),
        ("reward model", |job, _| job.base = model("tiny-reward")),
        ("reward model", |job, _| {
            if let PairSource::Text { reference, .. } = &mut job.pairs {
                *reference = Some(model("tiny-reward"));
            }
        }),
        ("read", |job, dir| {
            if let PairSource::Text { path, .. } = &mut job.pairs {
                *path = dir.join("nothing.jsonl");
            }
        }),
        ("empty", |job, dir| set_pairs(job, dir, "")),
        ("line 1", |job, dir| set_pairs(job, dir, "{\"chosen\": 1}")),
        ("rejected", |job, dir| {
            set_pairs(job, dir, "{\"prompt\": \"q\", \"chosen\": \"a\"}");
        }),
        ("the same", |job, dir| {
            set_pairs(job, dir, r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#);
        }),
        ("different prompts", |job, dir| {
            set_pairs(
                job,
                dir,
                r#"{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}], "rejected": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "y"}]}"#,
            );
        }),
        ("no pair is left", |job, _| job.settings.max_length = 2),
        ("the model has 2 layers", |job, _| job.settings.trainable_layers = Some(3)),
        ("exists already", |job, _| {
            std::fs::create_dir(&job.out).unwrap();
            std::fs::write(job.out.join("mine"), "x").unwrap();
        }),
        ("cannot be created", |job, _| job.out = PathBuf::from("/proc/nowhere/out")),
        ("line 1", |job, dir| {
            let line = r#"{"prompt_ids": [1], "chosen_ids": [9999999], "rejected_ids": [2], "reference_logprob_chosen": -1, "reference_logprob_rejected": -1}"#;
            let path = dir.join("ids.jsonl");
            std::fs::write(&path, line).unwrap();
            job.pairs = PairSource::Ids { path };
        }),
    ];
    for (words, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut job = small(dir.path(), Training::Dpo, "tiny-tied", &[]);
        spoil(&mut job, dir.path());
        let error = run_quietly(&job).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!job.out.join("config.json").exists(), "{words}");
        let left = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
        let partial = left.filter(|entry| entry.file_name().to_string_lossy().contains("partial"));
        assert_eq!(partial.count(), 0, "{words}");
    }
}

/// The head's gradients by hand against libtorch's own autograd, with one chunk and with many, kept
/// and computed again.
#[test]
fn the_heads_gradients_are_autograds() {
    use rlhfd_worker::model::{LoadOptions, Trainable, Transformer};
    use rlhfd_worker::train::head::{self, Room, Wanted};
    let options = LoadOptions {
        device: Device::Cpu,
        precision: Precision::Float32,
        trainable: Trainable::Everything,
    };
    for base in ["tiny-tied", "tiny-untied"] {
        let folder = ModelFolder::open(&model(base)).unwrap();
        let model = Transformer::load(&folder, &options).unwrap();
        let width = i64::try_from(model.config.width).unwrap();
        tch::manual_seed(3);
        let hidden = Tensor::randn([11, width], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let targets = Tensor::arange(11, (Kind::Int64, Device::Cpu)) * 7;
        let coefficients = Tensor::linspace(-1.0, 2.0, 11, (Kind::Float, Device::Cpu));
        let logprobs = model.logits(&hidden).log_softmax(-1, Kind::Float);
        let logprobs = logprobs.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        (&logprobs * &coefficients).sum(Kind::Float).backward();
        let name = head::weight_name(&model);
        let (_, weight) = model.parameters().iter().find(|(own, _)| own == name).unwrap();
        let one_chunk = Room { chunk_bytes: 1 << 30, kept_bytes: 1 << 30 };
        let many = Room { chunk_bytes: 4 * 3 * 320, kept_bytes: 1 << 30 };
        let again = Room { kept_bytes: 0, ..many };
        for room in [one_chunk, many, again] {
            let scored =
                head::forward_in(room, &model, (&hidden, &targets), Wanted::WeightGradient);
            assert!(scored.logprobs.allclose(&logprobs, 1e-5, 1e-5, false));
            let gradient = scored.hidden_gradient(&coefficients).unwrap();
            assert!(gradient.allclose(&hidden.grad(), 1e-4, 1e-5, false), "{base} {room:?}");
            let mut sum = weight.zeros_like().detach();
            scored.add_weight_gradient(&model, &coefficients, &mut sum);
            assert!(sum.allclose(&weight.grad(), 1e-4, 1e-5, false), "{base} {room:?}");
        }
    }
}

/// What a GPU does, on CPU: bf16 compute over f32 masters moves the masters as f32 compute does,
/// at a rate that is far below bf16's resolution.
#[test]
fn bf16_compute_moves_f32_masters_as_f32_compute_does() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["learning_rate=5e-7", "epochs=4", "weight_decay=0"];
    let one = small(dir.path(), Training::Dpo, "tiny-tied", &words);
    run_quietly(&one).unwrap();
    let two = TrainJob { out: dir.path().join("two"), ..one.clone() };
    let bf16 = Compute { device: Device::Cpu, precision: Precision::Bfloat16 };
    run(&two, bf16, &Observer { watch: &Watch::default(), stepped: &|_, _| {} }).unwrap();
    let start = tensors(&model("tiny-tied").join("model.safetensors"));
    let moved = |out: &Path| {
        let parts: Vec<Tensor> = tensors(&out.join("model.safetensors"))
            .iter()
            .map(|(name, now)| {
                let (_, before) = start.iter().find(|(own, _)| own == name).unwrap();
                (now.to_kind(Kind::Double) - before.to_kind(Kind::Double)).view(-1)
            })
            .collect();
        Tensor::cat(&parts, 0)
    };
    let (f32_move, bf16_move) = (moved(&one.out), moved(&two.out));
    let product = f32_move.dot(&bf16_move).double_value(&[]);
    let norms = f32_move.norm().double_value(&[]) * bf16_move.norm().double_value(&[]);
    assert!(norms > 0.0 && product / norms > 0.9, "cosine {}", product / norms);
}

fn set_pairs(job: &mut TrainJob, dir: &Path, text: &str) {
    let own = dir.join("own.jsonl");
    std::fs::write(&own, text).unwrap();
    if let PairSource::Text { path, .. } = &mut job.pairs {
        *path = own;
    }
}

#[test]
fn plain_answers_begin_where_the_texts_part_as_in_trl() {
    use rlhfd_worker::render::{PairText, Renderer};
    let folder = ModelFolder::open(&model("tiny-tied")).unwrap();
    let renderer = Renderer::open(&folder).unwrap();
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        let text = PairText::Plain {
            prompt: prompt.into(),
            chosen: chosen.into(),
            rejected: rejected.into(),
        };
        let pair = renderer.pair(&text, RenderRule::Conversation).unwrap();
        let whole = |ids: &[u32]| {
            let ids = [pair.prompt.as_slice(), ids].concat();
            renderer.tokenizer.decode_whole(&ids).unwrap()
        };
        (whole(&pair.chosen), whole(&pair.rejected), pair)
    };
    // "answer" is one token of this tokenizer: the prompt's end merges into it.
    for prompt in ["A good ans", "A good answer", "Is it"] {
        let (chosen, rejected, pair) = pair(prompt, "wer is short.", "wer is long.");
        assert_eq!(chosen, format!("{prompt}wer is short.<|im_end|>"));
        assert_eq!(rejected, format!("{prompt}wer is long.<|im_end|>"));
        let alone = renderer.tokenizer.encode(prompt).unwrap();
        assert!(alone.starts_with(&pair.prompt) && pair.chosen != pair.rejected);
    }
}

/// The daemon's contract: a folder of token ids and settings in, a checkpoint folder out.
#[test]
fn an_iteration_folder_becomes_a_checkpoint() {
    use rlhfd_protocol::manifest::FolderKind;
    use rlhfd_protocol::worker::{ModelRef, TrainTarget};
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("iteration");
    std::fs::create_dir(&folder).unwrap();
    let line = |chosen: &str, rejected: &str, reference: f64| {
        format!(
            r#"{{"prompt_ids": [5, 6, 7], "chosen_ids": {chosen}, "rejected_ids": {rejected}, "reference_logprob_chosen": {reference}, "reference_logprob_rejected": {reference}, "prompt": 3}}"#
        )
    };
    let lines = [
        line("[8, 9, 2]", "[10, 2]", -20.0),
        line("[11, 2]", "[12, 13, 14, 2]", -15.0),
        line("[8, 2]", "[9, 2]", -12.0),
    ];
    std::fs::write(folder.join("pairs.jsonl"), lines.join("\n")).unwrap();
    let settings = "learning_rate = 1e-3\nbatch_pairs = 2\nepochs = 2\nmax_length = 6\n";
    std::fs::write(folder.join("settings.toml"), settings).unwrap();
    let target = TrainTarget {
        out: dir.path().join("checkpoints/one"),
        unit: "1/train".into(),
        state: dir.path().join("state"),
        resume: true,
        seed: 3,
        save_every_steps: 1,
        save_every_s: 0,
        parent_sha256: "ab".into(),
    };
    let policy = ModelRef { path: model("tiny-tied"), sha256: String::new() };
    let observer = Observer { watch: &Watch::default(), stepped: &|_, _| {} };
    let train = |target: &TrainTarget| {
        rlhfd_worker::train::unit::train_dpo((&policy, &folder), target, CPU, &observer)
    };
    let published = train(&target).unwrap();
    // The second pair is over-long: two are left, in one step an epoch.
    assert_eq!((published.steps, published.first_step), (2, 1));
    assert_eq!(published.dropped, [("too_long".to_owned(), 1)]);
    let standing = checkpoint::verify(&target.out).unwrap();
    assert_eq!((&standing.sha256, standing.bytes), (&published.sha256, published.bytes));
    let manifest = &standing.manifest;
    assert_eq!((manifest.kind, manifest.steps), (FolderKind::Policy, 2));
    assert_eq!((manifest.unit.as_str(), manifest.parent_sha256.as_str()), ("1/train", "ab"));
    assert_eq!(train(&target).unwrap().first_step, 3, "done already");
    std::fs::write(folder.join("settings.toml"), "learning_rat = 1").unwrap();
    let error = train(&TrainTarget { out: dir.path().join("two"), ..target }).unwrap_err();
    assert!(error.to_string().contains("learning_rate"), "{error}");
}
