//! LoRA: against peft, frozen bases, adapters that go on, and what is refused.

use std::path::{Path, PathBuf};

use rlhfd_config::{TrainSettings, Training};
use rlhfd_worker::checkpoint;
use rlhfd_worker::device::Compute;
use rlhfd_worker::file_mode::{MergeArgs, merge};
use rlhfd_worker::logprob::host_floats;
use rlhfd_worker::model::adapter_folder::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_NOTE};
use rlhfd_worker::model::{
    AdapterFolder, Devices, Dropout, LoadOptions, ModelFolder, Precision, Trainable, Transformer,
};
use rlhfd_worker::train::job::{AdapterBase, PairSource, PublishedAs, TrainJob, run};
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::watch::Watch;
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{golden, interrupted, model, run_quietly, small, tensors, with_state};

const LORA: [&str; 4] = ["lora_rank=4", "lora_alpha=8", "learning_rate=5e-3", "epochs=4"];

fn lora(dir: &Path, training: Training, base: &str, words: &[&str]) -> TrainJob {
    small(dir, training, base, &[&LORA[..], words].concat())
}

#[derive(Deserialize)]
struct WithAdapter {
    model: String,
    adapter: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<i64>,
    values: Vec<f32>,
}

/// Logits of every position, or the score of the last one.
fn values(model: &Transformer, ids: &[i64]) -> Vec<f32> {
    let hidden = model.hidden(&Tensor::from_slice(ids).unsqueeze(0));
    if model.config.head == rlhfd_worker::model::Head::Language {
        return host_floats(&model.logits(&hidden));
    }
    let last = hidden.select(0, 0).narrow(0, ids.len() as i64 - 1, 1);
    host_floats(&model.scores(&last))
}

#[test]
fn logits_and_scores_equal_pefts_with_the_adapter_beside_and_merged() {
    let text = std::fs::read(golden("lora.json")).unwrap();
    let all: Vec<WithAdapter> = serde_json::from_slice(&text).unwrap();
    assert_eq!(all.len(), 3);
    for with in all {
        let folder = ModelFolder::open(&model(&with.model)).unwrap();
        let adapter = golden("adapters").join(&with.adapter);
        let adapters = AdapterFolder::open(&adapter, &folder.config).unwrap().adapters;
        let options = LoadOptions {
            devices: Devices::one(Device::Cpu),
            precision: Precision::Float32,
            trainable: Trainable::Nothing,
        };
        let plain = Transformer::load(&folder, &options).unwrap();
        let without: Vec<_> = with.cases.iter().map(|case| values(&plain, &case.ids)).collect();
        let dropout = Dropout { probability: 0.5, seed: 0 };
        let beside = plain.with_adapters(&adapters, dropout).unwrap();
        let merged = Transformer::load(&folder, &options).unwrap();
        let mut changed = 0;
        for (name, parameter) in merged.parameters() {
            changed += usize::from(adapters.changes(name));
            parameter.shallow_clone().copy_(&adapters.merged(name, parameter));
        }
        let heads = usize::from(adapters.score_head.is_some());
        assert_eq!(changed, adapters.modules().count() + heads);
        for (case, without) in with.cases.iter().zip(without) {
            for (how, own) in [("beside", &beside), ("merged", &merged)] {
                let own = values(own, &case.ids);
                assert_eq!(own.len(), case.values.len());
                let apart = |one: &[f32]| {
                    one.iter().zip(&case.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
                };
                assert!(apart(&own) <= 1e-4, "{} {how}: {}", with.adapter, apart(&own));
                assert!(apart(&without) > 1e-2, "{}: the adapter shows", with.adapter);
            }
        }
    }
}

#[test]
fn the_base_stays_frozen_and_the_published_weights_are_merged_with_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["lora_targets=['q_proj','1.mlp.up_proj']"];
    let job = lora(dir.path(), Training::Dpo, "tiny-untied", &words);
    let outcome = run_quietly(&job).unwrap();
    let (first, last) = (outcome.rows.first().unwrap(), outcome.rows.last().unwrap());
    // With the adapter's second matrix 0 the policy is the reference.
    assert!(
        first.margin.unwrap().abs() < 1e-5 && (first.loss - std::f64::consts::LN_2).abs() < 1e-5
    );
    assert!(last.loss < first.loss - 0.05, "{} {}", first.loss, last.loss);
    let folder = ModelFolder::open(&job.out).unwrap();
    let adapter = AdapterFolder::open(&job.out.join("adapter"), &folder.config).unwrap();
    let modules: Vec<&str> = adapter.adapters.modules().collect();
    let wanted = ["0.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.q_proj"];
    assert_eq!(modules, wanted.map(|module| format!("model.layers.{module}")));
    let mut merged = 0;
    for file in folder.files() {
        let before = tensors(&model("tiny-untied").join(file.path.file_name().unwrap()));
        for entry in &file.entries {
            let now = file.read(entry).unwrap();
            let (_, before) = before.iter().find(|(name, _)| *name == entry.name).unwrap();
            assert!(now.equal(&adapter.adapters.merged(&entry.name, before)), "{}", entry.name);
            let adapted = adapter.adapters.changes(&entry.name);
            assert_eq!(now.equal(before), !adapted, "{}", entry.name);
            merged += usize::from(adapted);
        }
    }
    assert_eq!(merged, 3);
}

#[test]
fn an_adapters_folder_says_what_peft_needs_and_where_nothing_lies() {
    let dir = tempfile::tempdir().unwrap();
    let job = lora(dir.path(), Training::Dpo, "tiny-tied", &["lora_rs=true", "lora_alpha=2.5"]);
    run_quietly(&job).unwrap();
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(job.out.join("adapter").join(name)).unwrap();
        assert!(!text.contains('/'), "no path in {name}: {text}");
        serde_json::from_str(&text).unwrap()
    };
    let config = read(ADAPTER_CONFIG);
    assert_eq!((&config["r"], &config["lora_alpha"]), (&Value::from(4), &Value::from(2.5)));
    assert_eq!((&config["use_rslora"], &config["task_type"]), (&true.into(), &"CAUSAL_LM".into()));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    let note = read(BASE_NOTE);
    assert_eq!(note["name"], "tiny-tied");
    assert_eq!(note["sha256"], checkpoint::model_sum(&model("tiny-tied")).unwrap());
    let theirs = tensors(&golden("adapters/start").join(ADAPTER_WEIGHTS));
    let mut ours = tensors(&job.out.join("adapter").join(ADAPTER_WEIGHTS));
    ours.retain(|(name, tensor)| {
        theirs.iter().any(|(own, like)| own == name && like.size() == tensor.size())
    });
    assert_eq!(ours.len(), theirs.len(), "peft's own names and shapes");
}

#[test]
fn resuming_and_recomputing_drop_the_same_inputs() {
    let words = ["lora_dropout=0.3", "micro_batch_pairs=1", "epochs=2"];
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let undisturbed =
        with_state(&lora(one.path(), Training::Dpo, "tiny-tied", &words), one.path(), 2);
    let whole = run_quietly(&undisturbed).unwrap();
    let job = with_state(&lora(two.path(), Training::Dpo, "tiny-tied", &words), two.path(), 2);
    interrupted(&job, 3);
    let resumed = run_quietly(&job).unwrap();
    assert_eq!((resumed.first_step, &resumed.rows), (4, &whole.rows));
    assert_eq!(resumed.standing.sha256, whole.standing.sha256);
    // A backward pass that dropped others than its forward pass would have another gradient.
    let recomputed = TrainJob {
        settings: TrainSettings { activation_checkpointing: true, ..job.settings.clone() },
        out: two.path().join("recomputed"),
        state: None,
        ..job.clone()
    };
    let other_seed = TrainJob { seed: 9, out: two.path().join("other"), state: None, ..job };
    let plain = lora(one.path(), Training::Dpo, "tiny-tied", &words[1..]);
    let plain = TrainJob { out: one.path().join("plain"), ..plain };
    let norms = |job: &TrainJob| -> Vec<f64> {
        run_quietly(job).unwrap().rows.iter().map(|row| row.grad_norm).collect()
    };
    let own: Vec<f64> = whole.rows.iter().map(|row| row.grad_norm).collect();
    let apart =
        |other: &[f64]| own.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart(&norms(&recomputed)) < 1e-5);
    assert!(apart(&norms(&other_seed)) > 1e-3 && apart(&norms(&plain)) > 1e-3);
}

/// The same folder under another name: another model, for all that a path says.
fn copied(base: &str, to: &Path) -> PathBuf {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(model(base)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to.to_owned()
}

fn with_reference(job: &TrainJob, dir: &Path) -> TrainJob {
    let mut job = job.clone();
    if let PairSource::Text { reference, .. } = &mut job.pairs {
        *reference = Some(dir.to_owned());
    }
    job
}

#[test]
fn an_adapter_goes_on_over_its_base_which_is_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("tiny-tied");
    let one = lora(dir.path(), Training::Dpo, "tiny-tied", &["lora_targets=['q_proj']"]);
    run_quietly(&one).unwrap();
    let two = TrainJob { base: one.out.clone(), out: dir.path().join("two"), ..one.clone() };
    let gone_on = run_quietly(&two).unwrap();
    assert!(
        gone_on.rows[0].margin.unwrap() > 0.1,
        "it begins where the first ended, away from the base"
    );
    // The same with the reference as a model of its own, and with the base named.
    let own = copied("tiny-tied", &dir.path().join("reference"));
    let named = AdapterBase { dir: base.clone(), sha256: String::new() };
    let apart = TrainJob {
        adapter_base: Some(named),
        out: dir.path().join("apart"),
        ..with_reference(&two, &own)
    };
    let loaded = run_quietly(&apart).unwrap();
    assert_eq!(gone_on.rows, loaded.rows);
    // A rate of nearly nothing: the adapter is what it was, not a new one on merged weights.
    let still = TrainJob {
        settings: TrainSettings { learning_rate: 1e-30, weight_decay: 0.0, ..two.settings.clone() },
        out: dir.path().join("still"),
        ..two.clone()
    };
    run_quietly(&still).unwrap();
    let weights = |job: &TrainJob| std::fs::read(job.out.join("adapter").join(ADAPTER_WEIGHTS));
    assert_eq!(weights(&still).unwrap(), weights(&one).unwrap());
    let merged = |job: &TrainJob| std::fs::read(job.out.join("model.safetensors")).unwrap();
    assert_eq!(merged(&still), merged(&one));
    // A new adapter on the merged weights only where the policy itself is named.
    let itself = AdapterBase { dir: one.out.clone(), sha256: String::new() };
    let anew = TrainJob {
        adapter_base: Some(itself),
        out: dir.path().join("anew"),
        ..with_reference(&two, &one.out)
    };
    assert!(run_quietly(&anew).unwrap().rows[0].margin.unwrap().abs() < 1e-5);
}

#[test]
fn an_adapter_on_another_base_or_of_another_shape_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = lora(dir.path(), Training::Dpo, "tiny-tied", &["epochs=1"]);
    run_quietly(&one).unwrap();
    let two = TrainJob { base: one.out.clone(), out: dir.path().join("two"), ..one.clone() };
    let refused = |job: &TrainJob, words: &str| {
        let error = run_quietly(job).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("try: "), "{words}: {error}");
        assert!(!job.out.exists());
    };
    // Another model of the same shape: only its sum tells.
    let other = copied("tiny-tied", &dir.path().join("other"));
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    refused(&with_reference(&two, &other), "was made on tiny-tied");
    let named = AdapterBase { dir: other, sha256: String::new() };
    refused(&TrainJob { adapter_base: Some(named), ..two.clone() }, "was made on tiny-tied");
    let named = Some(AdapterBase { dir: one.out.clone(), sha256: String::new() });
    let without = TrainJob { base: model("tiny-tied"), adapter_base: named, ..two.clone() };
    refused(&without, "holds no adapter");
    let mut rank = two.clone();
    rank.settings.lora_rank = 8;
    refused(&rank, "lora_rank is 8, the adapter's is 4");
    let words = ["epochs=1", "lora_targets=['q_proj']"];
    let fewer = lora(dir.path(), Training::Dpo, "tiny-tied", &words);
    refused(&TrainJob { settings: fewer.settings, ..two }, "lora_targets");
}

#[test]
fn a_target_that_matches_nothing_is_refused_with_the_names_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    for target in ["query", "proj", "lm_head", "layers.2.self_attn.q_proj"] {
        let words = format!("lora_targets=['v_proj','{target}']");
        let job = lora(dir.path(), Training::Dpo, "tiny-tied", &[&words]);
        let error = run_quietly(&job).unwrap_err().to_string();
        let names = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj";
        assert!(error.contains(&format!("{target:?}")) && error.contains(names), "{error}");
        assert!(!job.out.exists());
    }
}

#[test]
fn a_reward_model_learns_by_adapters_and_a_head_of_its_own() {
    for base in ["tiny-tied", "tiny-reward"] {
        let dir = tempfile::tempdir().unwrap();
        let job = lora(dir.path(), Training::Reward, base, &["lora_targets=['v_proj']"]);
        let outcome = run_quietly(&job).unwrap();
        let (first, last) = (outcome.rows.first().unwrap(), outcome.rows.last().unwrap());
        assert!(last.loss < first.loss - 0.05, "{base}: {} {}", first.loss, last.loss);
        let folder = ModelFolder::open(&job.out).unwrap().require_reward_model().unwrap();
        let adapter = AdapterFolder::open(&job.out.join("adapter"), &folder.config).unwrap();
        let head = adapter.adapters.score_head.unwrap();
        let merged = tensors(&job.out.join("model.safetensors"));
        let (_, published) = merged.iter().find(|(name, _)| name == "score.weight").unwrap();
        assert!(published.equal(&head));
        if base == "tiny-reward" {
            let before = tensors(&model(base).join("model.safetensors"));
            let (_, before) = before.iter().find(|(name, _)| name == "score.weight").unwrap();
            assert!(!before.equal(&head), "the head learns");
        }
        let text = std::fs::read(job.out.join("adapter").join(ADAPTER_CONFIG)).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&config["task_type"], &config["modules_to_save"][0]),
            (&"SEQ_CLS".into(), &"score".into())
        );
        assert!(head.kind() == Kind::Float && head.size() == [1, folder.config.width as i64]);
        // It goes on, head and all, where its base is named.
        let still = TrainJob {
            base: job.out.clone(),
            adapter_base: Some(AdapterBase { dir: model(base), sha256: String::new() }),
            settings: TrainSettings {
                learning_rate: 1e-30,
                weight_decay: 0.0,
                ..job.settings.clone()
            },
            out: dir.path().join("still"),
            ..job.clone()
        };
        run_quietly(&still).unwrap();
        let weights = |job: &TrainJob| std::fs::read(job.out.join("adapter").join(ADAPTER_WEIGHTS));
        assert_eq!(weights(&still).unwrap(), weights(&job).unwrap(), "{base}");
    }
}

/// What a GPU does, on CPU: adapters computed with in bf16 keep f32 masters, which move as in f32.
#[test]
fn bf16_compute_moves_f32_adapters_as_f32_compute_does() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["learning_rate=1e-5", "epochs=4", "weight_decay=0"];
    let one = lora(dir.path(), Training::Dpo, "tiny-tied", &words);
    let two = TrainJob { out: dir.path().join("two"), ..one.clone() };
    run_quietly(&one).unwrap();
    let bf16 = Compute { devices: Devices::one(Device::Cpu), precision: Precision::Bfloat16 };
    let watch = Watch::default();
    let observer = Observer { watch: &watch, filled: &|_, _| {}, stepped: &|_, _| {} };
    run(&two, bf16, &observer).unwrap();
    // The second matrices begin at 0, so that they are what moved.
    let moved = |job: &TrainJob| {
        let mut all = tensors(&job.out.join("adapter").join(ADAPTER_WEIGHTS));
        all.retain(|(name, _)| name.ends_with("lora_B.weight"));
        assert!(all.iter().all(|(_, tensor)| tensor.kind() == Kind::Float));
        let all: Vec<Tensor> = all.iter().map(|(_, tensor)| tensor.view(-1)).collect();
        Tensor::cat(&all, 0).to_kind(Kind::Double)
    };
    let (f32_move, bf16_move) = (moved(&one), moved(&two));
    let product = f32_move.dot(&bf16_move).double_value(&[]);
    let norms = f32_move.norm().double_value(&[]) * bf16_move.norm().double_value(&[]);
    assert!(norms > 0.0 && product / norms > 0.9, "cosine {}", product / norms);
}

/// Two jobs alike, one published merged, one as the adapter alone.
fn both_ways(dir: &Path, training: Training, base: &str) -> [TrainJob; 2] {
    let merged = lora(dir, training, base, &["epochs=2"]);
    let alone =
        TrainJob { published: PublishedAs::Adapter, out: dir.join("alone"), ..merged.clone() };
    for job in [&merged, &alone] {
        run_quietly(job).unwrap();
    }
    [merged, alone]
}

#[test]
fn an_adapter_alone_is_merged_on_demand_to_the_same_model() {
    for (training, base) in [(Training::Dpo, "tiny-untied"), (Training::Reward, "tiny-tied")] {
        let dir = tempfile::tempdir().unwrap();
        let [merged, alone] = both_ways(dir.path(), training, base);
        assert!(!alone.out.join("config.json").exists());
        for name in [ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_NOTE] {
            let beside = std::fs::read(merged.out.join("adapter").join(name)).unwrap();
            assert_eq!(std::fs::read(alone.out.join(name)).unwrap(), beside, "{name}");
        }
        // As a file.
        let out = dir.path().join("merged again");
        let args = MergeArgs { base: model(base), adapter: alone.out.clone(), out: out.clone() };
        merge(&args).unwrap();
        let own = ["manifest.json", "steps.jsonl", "report.json"];
        for entry in std::fs::read_dir(&merged.out).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if path.is_file() && !own.iter().any(|own| *own == name) {
                let again = std::fs::read(out.join(name)).unwrap();
                assert_eq!(again, std::fs::read(&path).unwrap(), "{}", path.display());
            }
        }
        checkpoint::verify(&out).unwrap();
        // As it is loaded.
        let options = LoadOptions {
            devices: Devices::one(Device::Cpu),
            precision: Precision::Float32,
            trainable: Trainable::Nothing,
        };
        let folder = ModelFolder::open(&model(base)).unwrap().with_adapter(&alone.out).unwrap();
        let published = ModelFolder::open(&merged.out).unwrap();
        assert_eq!(folder.config.pad_id, published.config.pad_id);
        let loaded = [folder, published].map(|own| Transformer::load(&own, &options).unwrap());
        let [one, two] = loaded.each_ref().map(|model| values(model, &[5, 9, 17, 101]));
        assert_eq!(one, two);
    }
}

#[test]
fn an_adapter_alone_needs_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let [_, alone] = both_ways(dir.path(), Training::Dpo, "tiny-tied");
    let error = ModelFolder::open(&alone.out).unwrap_err().to_string();
    assert!(error.contains("--base"), "{error}");
    let base = |name: &str| ModelFolder::open(&model(name)).unwrap();
    let error = base("tiny-untied").with_adapter(&alone.out).unwrap_err().to_string();
    assert!(error.contains("was made on tiny-tied"), "{error}");
    let error = base("tiny-tied").with_adapter(&model("tiny-tied")).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    // peft's own say nothing of their base; their shapes do.
    let foreign = golden("adapters/start");
    base("tiny-tied").with_adapter(&foreign).unwrap();
    let error = base("tiny-untied").with_adapter(&foreign).unwrap_err().to_string();
    assert!(error.contains("has shape"), "{error}");
}

#[test]
fn an_adapter_that_computes_something_else_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelFolder::open(&model("tiny-tied")).unwrap().config;
    let from = golden("adapters/start");
    std::fs::copy(from.join(ADAPTER_WEIGHTS), dir.path().join(ADAPTER_WEIGHTS)).unwrap();
    let text = std::fs::read(from.join(ADAPTER_CONFIG)).unwrap();
    let whole: Value = serde_json::from_slice(&text).unwrap();
    for (key, value, words) in [
        ("peft_type", Value::from("IA3"), "IA3"),
        ("use_dora", true.into(), "use_dora"),
        ("rank_pattern", serde_json::json!({"q_proj": 2}), "rank_pattern"),
        ("bias", "all".into(), "bias is all"),
        ("r", 0.into(), "r is 0"),
        ("r", 3.into(), "has shape"),
    ] {
        let mut own = whole.clone();
        own[key] = value;
        let text = serde_json::to_vec(&own).unwrap();
        std::fs::write(dir.path().join(ADAPTER_CONFIG), text).unwrap();
        let error = AdapterFolder::open(dir.path(), &config).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("try: "), "{words}: {error}");
    }
}
