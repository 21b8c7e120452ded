//! What the published tensors are: frozen ones to the bit, masters beside bf16, a new score head.

use std::path::Path;

use rlhfd_config::{TrainSettings, Training};
use rlhfd_worker::device::Compute;
use rlhfd_worker::model::{Devices, Head, ModelFolder, Precision};
use rlhfd_worker::train::job::{PairSource, TrainJob, run};
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::watch::Watch;
use tch::{Device, Kind, Tensor};

use crate::support::{in_bf16, model, run_quietly, small, squared_distance, tensors};

#[test]
fn frozen_tensors_are_the_same_to_the_bit_and_all_others_moved() {
    let checkpointing = ["trainable_layers=1", "activation_checkpointing=true"];
    for (training, base) in [
        (Training::Dpo, "tiny-tied"),
        (Training::Dpo, "tiny-untied"),
        (Training::Sft, "tiny-tied"),
        (Training::Sft, "tiny-untied"),
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
    let generation = std::fs::read_to_string(job.out.join("generation_config.json")).unwrap();
    assert!(generation.contains(&format!("\"pad_token_id\": {pad}")), "{generation}");
    assert_eq!(outcome.standing.manifest.architecture, "LlamaForSequenceClassification");
    let other = TrainJob { seed: 1, out: dir.path().join("other"), ..job.clone() };
    let other = run_quietly(&other).unwrap();
    assert_ne!(other.rows[0].loss, first.loss, "the seed draws the head");
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
    let bf16 = Compute { devices: Devices::one(Device::Cpu), precision: Precision::Bfloat16 };
    run(
        &two,
        bf16,
        &Observer { watch: &Watch::default(), filled: &|_, _| {}, stepped: &|_, _| {} },
    )
    .unwrap();
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
