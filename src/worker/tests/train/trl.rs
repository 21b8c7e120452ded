//! Every step as TRL makes it: loss, rate, gradient norm, margins, and the final weights.

use rlhfd_config::{TrainSettings, Training};
use rlhfd_worker::checkpoint;
use rlhfd_worker::model::ModelFolder;
use rlhfd_worker::render::RenderRule;
use rlhfd_worker::train::job::{AdapterBase, PairSource};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{first_lines, golden, job, model, run_quietly, squared_distance, tensors};

#[derive(Deserialize)]
struct GoldenRun {
    model: String,
    reference: Option<String>,
    adapter: Option<String>,
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

fn settings(training: Training, map: &serde_json::Map<String, Value>) -> TrainSettings {
    let text: String = map.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    TrainSettings::read(training, &text, &[]).unwrap()
}

fn against_trl(training: Training, name: &str, words: &[&str]) {
    let golden_run = golden_run(name);
    let dir = tempfile::tempdir().unwrap();
    let pairs = first_lines(dir.path(), &golden(&golden_run.pairs), golden_run.pairs_used);
    let out = dir.path().join("out");
    let mut job = job(training, model(&golden_run.model), pairs, out.clone());
    if let PairSource::Text { reference: Some(reference), .. } = &mut job.pairs {
        *reference = model(golden_run.reference.as_ref().unwrap());
    }
    job.settings = settings(training, &golden_run.settings);
    if let Some(adapter) = &golden_run.adapter {
        let base = AdapterBase { dir: job.base.clone(), sha256: String::new() };
        job.adapter_base = Some(base);
        job.base = golden("adapters").join(adapter);
    }
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
    let learnt = match golden_run.adapter {
        Some(_) => "adapter/adapter_model.safetensors",
        None => "model.safetensors",
    };
    let ours = tensors(&out.join(learnt));
    let theirs = tensors(&golden(&golden_run.last));
    let distance = squared_distance(&ours, &theirs).sqrt() / golden_run.initial_to_final_norm;
    let mut wrong = Vec::new();
    for (ours, theirs) in outcome.rows.iter().zip(&golden_run.steps) {
        let norm = ours.grad_norm / theirs.grad_norm - 1.0;
        let mut table = vec![
            ("loss", ours.loss - theirs.loss, 1e-4),
            ("grad_norm", norm, 1e-3),
            ("lr", ours.lr - theirs.lr, 1e-12),
            ("margin", ours.margin.unwrap() - theirs.margin, 1e-3),
        ];
        // At the first step every margin is 0 but for rounding.
        if theirs.margin.abs() > 1e-3 {
            table.push(("accuracy", ours.accuracy.unwrap() - theirs.accuracy, 1e-6));
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
fn dpo_of_an_adapter_follows_trl_and_peft_step_by_step() {
    against_trl(Training::Dpo, "dpo_lora.json", &[]);
    against_trl(Training::Dpo, "dpo_lora.json", &["activation_checkpointing=true"]);
}

#[test]
fn a_reward_model_follows_trl_step_by_step() {
    against_trl(Training::Reward, "reward.json", &[]);
}

#[test]
fn a_reward_model_follows_trl_with_activation_checkpointing() {
    against_trl(Training::Reward, "reward.json", &["activation_checkpointing=true"]);
}

#[test]
fn a_reward_model_with_margins_and_centring_follows_trl_step_by_step() {
    against_trl(Training::Reward, "reward_margin.json", &[]);
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
