//! Training against TRL on tiny random models, and what must hold of any training: resumed = not
//! interrupted, frozen tensors to the bit, clear errors.
//!
//! In: the golden files (`tests/golden/README.md`). Out: checkpoints in temporary folders. May not
//! enter: anything that makes golden values.

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
