//! Tests of `check`: models that are wrong in many ways at once, and the memory plan's arithmetic.

use std::fs;
use std::path::PathBuf;

use rlhfd_config::{LoraTargets, Training};

use super::memory::{generating, nearest_fit, updating};
use super::report::Level;
use super::weights::Weights;
use super::*;
use crate::gpu::scripted::ScriptedProbe;
use crate::gpu::{DeviceFact, Inventory};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 16, "vocab_size": 32, "eos_token_id": 2, "pad_token_id": 2}"#;

/// A folder with one tensor of four f32 numbers.
fn model(folder: &Path, config: &str, tensor: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("tokenizer.json"), r#"{"model": {}}"#).unwrap();
    fs::write(folder.join("chat_template.jinja"), "x").unwrap();
    let header =
        format!(r#"{{"{tensor}": {{"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 16]);
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

fn asked(root: &Path, text: &str) -> Asked {
    let config: PathBuf = root.join("rlhfd.toml");
    fs::write(&config, text).unwrap();
    Asked {
        config: Some(config),
        state: Some(root.join("state")),
        socket: Some(root.join("rlhfd.sock")),
    }
}

fn bad(report: &Report) -> Vec<String> {
    let bad = report.0.iter().filter(|(level, _, _)| *level == Level::Bad);
    bad.map(|(_, about, what)| format!("{about}: {what}")).collect()
}

fn has(findings: &[String], part: &str) {
    assert!(findings.iter().any(|finding| finding.contains(part)), "`{part}` not in {findings:#?}");
}

#[test]
fn all_that_is_wrong_with_the_models_is_told_at_once() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    model(&at("policy"), CONFIG, "model.norm.weight");
    fs::remove_file(at("policy/tokenizer.json")).unwrap();
    let whole = fs::read(at("policy/model.safetensors")).unwrap();
    fs::write(at("policy/model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    model(&at("scorer"), CONFIG, "model.norm.weight");
    let text = "[run]\npolicy = 'policy'\nreference = 'nowhere'\n[devices]\nuse = ['GPU-x']\n\
                [[label.scorers]]\nmodel = 'scorer'\n\
                [[label.scorers]]\nname = 'watch'\nmodel = 'gone'\ncanary = true\n";
    let report = examine(&asked(root.path(), text), Runner::Oneself);
    let found = bad(&report);
    has(&found, "gone: there is no model folder");
    has(&found, "it has no tokenizer.json");
    has(&found, "but its header tells of");
    has(&found, "nowhere: there is no model folder");
    has(&found, "a policy (LlamaForCausalLM, no score.weight), and a reward model is wanted");
    has(&found, "[devices] use names GPU-x, which is not there");
    assert!(!report.is_well());
    assert!(!at("state").exists(), "check writes nothing");
}

#[test]
fn sound_models_and_an_empty_state_are_well() {
    let root = tempfile::tempdir().unwrap();
    model(&root.path().join("policy"), CONFIG, "model.norm.weight");
    model(&root.path().join("scorer"), CONFIG, "score.weight");
    let text = "[run]\npolicy = 'policy'\n[devices]\nuse = ['cpu']\n\
                [[label.scorers]]\nmodel = 'scorer'\n";
    let report = examine(&asked(root.path(), text), Runner::Oneself);
    // The worker's program and libtorch are not part of every build of this crate.
    let found: Vec<String> = bad(&report)
        .into_iter()
        .filter(|finding| !finding.starts_with("libtorch") && !finding.starts_with("worker"))
        .collect();
    assert_eq!(found, Vec::<String>::new());
    let mut text = Vec::new();
    report.print(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for part in ["its pad id is also a stop id", "none yet; the first start makes", "max_length is"]
    {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn a_database_that_is_none_and_a_wrong_configuration_are_both_told() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("state/db")).unwrap();
    fs::write(root.path().join("state/db/rlhfd.db"), "no database").unwrap();
    let found = bad(&examine(&asked(root.path(), "[run]\nsead = 1\n"), Runner::Oneself));
    has(&found, "did you mean `seed`?");
    has(&found, "run.policy: is missing");
    has(&found, "database: ");
}

#[test]
fn the_families_are_those_that_the_worker_computes() {
    // Read as text: control and worker never depend on each other.
    let table = include_str!("../../worker/model/families.rs");
    let computed: Vec<&str> = table
        .split("causal: \"")
        .skip(1)
        .filter_map(|rest| rest.split("ForCausalLM\"").next())
        .collect();
    assert_eq!(computed, folder::FAMILIES);
}

/// LLaMA-3-8B: 8.03 billion parameters.
fn llama3_8b() -> Facts {
    Facts {
        layers: 32,
        width: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        mlp_width: 14_336,
        vocabulary: 128_256,
        tied: false,
        weights: Weights { parameters: 8_030_261_248, ..Weights::default() },
        pad_id: None,
        stop_ids: vec![128_001],
    }
}

#[test]
fn the_plan_of_an_8b_model_is_what_the_sum_says() {
    // bf16: 8.03e9 × 2 B = 15,317 MiB of weights. The cache of one prompt's 8 responses:
    // 2 × 32 blocks × 8 heads × 128 × 2 B = 131,072 B a token, × 3,072 tokens × 8 = 3,072 MiB, and
    // logits of 8 × 128,256 × 6 B = 5.87 MiB.
    let needs = generating(&llama3_8b(), 8, 3072, 2);
    assert_eq!((needs.weights, needs.activations), (15_317, 3_078));
    // Training all of it: f32 master, two moments, gradient: 16 B × 8.03e9 = 122,532 MiB.
    let config = CheckedConfig::from_text("[run]\npolicy='p'\n", Path::new("/")).unwrap();
    let needs = updating(&llama3_8b(), (Training::Dpo, &config.train.settings), 2);
    assert_eq!((needs.weights, needs.optimiser), (15_317, 122_533));
    // Half of the blocks: 16 × (2·4096·128·40 + 3·4096·14,336 + 2·4096) = 3.49e9 × 16 B.
    let mut half = config.train.settings.clone();
    half.trainable_layers = Some(16);
    assert_eq!(updating(&llama3_8b(), (Training::Dpo, &half), 2).optimiser, 53_250);
}

#[test]
fn adapters_alone_have_an_optimisers_state() {
    // A block's maps, inputs + outputs: q and o 8,192 each, k and v 5,120 each, the MLP's three
    // 18,432 each: 81,920, × rank 16 × 32 blocks = 41.9e6 parameters × 16 B = 640 MiB.
    let config = CheckedConfig::from_text("[run]\npolicy='p'\n", Path::new("/")).unwrap();
    let mut lora = config.train.settings.clone();
    lora.lora_rank = 16;
    let needs = updating(&llama3_8b(), (Training::Dpo, &lora), 2);
    assert_eq!((needs.weights, needs.optimiser), (15_317, 640));
    // Query maps of block 0 to 31 alone: 8,192 × 16 × 32 × 16 B = 64 MiB; of one block 2 MiB.
    for (target, mib) in [("q_proj", 64), ("layers.7.self_attn.q_proj", 2)] {
        lora.lora_targets = LoraTargets::Named(vec![target.to_owned()]);
        assert_eq!(updating(&llama3_8b(), (Training::Dpo, &lora), 2).optimiser, mib);
    }
    // Dropout at micro-batches of 2 pairs of 2048 tokens: 2 × 32 × 4096 inputs × 2 B × 8192 tokens.
    let before = updating(&llama3_8b(), (Training::Dpo, &lora), 2).activations;
    lora.lora_targets = LoraTargets::Named(vec!["q_proj".to_owned()]);
    lora.lora_dropout = 0.1;
    assert_eq!(updating(&llama3_8b(), (Training::Dpo, &lora), 2).activations - before, 4096);
}

#[test]
fn a_lora_target_that_matches_nothing_is_told_before_any_work() {
    let root = tempfile::tempdir().unwrap();
    model(&root.path().join("policy"), CONFIG, "model.norm.weight");
    let text = "[run]\npolicy = 'policy'\n[train]\nlora_rank = 8\nlora_targets = ['q_pro']\n";
    let report = examine(&asked(root.path(), text), Runner::Oneself);
    has(&bad(&report), "lora_targets: \"q_pro\" matches no linear map");
}

#[test]
fn the_nearest_setting_that_fits_is_named_and_fits() {
    let config = CheckedConfig::from_text("[run]\npolicy='p'\n", Path::new("/")).unwrap();
    let settings = &config.train.settings;
    let model = llama3_8b();
    let fit = |free| nearest_fit(&model, (Training::Dpo, settings), 2, free);
    assert_eq!(fit(1_000), None);
    let words = fit(80_000).unwrap();
    assert!(words.starts_with("micro_batch_pairs = 1, activation_checkpointing = true"));
    let layers: u32 = words.rsplit(' ').next().unwrap().parse().unwrap();
    let mut named = settings.clone();
    named.micro_batch_pairs = 1;
    named.activation_checkpointing = true;
    named.trainable_layers = Some(layers);
    assert!(updating(&model, (Training::Dpo, &named), 2).total() <= 80_000);
    named.trainable_layers = Some(layers + 1);
    assert!(
        updating(&model, (Training::Dpo, &named), 2).total() > 80_000,
        "{layers} is not the most"
    );
}

#[test]
fn a_training_over_blocks_is_planned_by_its_blocks() {
    // A block keeps, for each token, 5·4096 + 2·32·128 + 2·8·128 + 4·14,336 = 88,064 numbers in each of 32
    // layers, × 2 B × 3072 tokens = 16,512 MiB; logits of 1024 tokens and their gradient, in f32,
    // 2 × 4 B × 128,256 × 1024 = 1,002 MiB.
    let config = CheckedConfig::from_text("[run]\npolicy='p'\n", Path::new("/")).unwrap();
    let job = &config.preference;
    let of = |settings| updating(&llama3_8b(), (job.training, settings), 2);
    assert_eq!(of(&job.settings).activations, 16_512 + 1_002);
    let mut two = job.settings.clone();
    two.micro_batch_sequences = 2;
    assert_eq!(of(&two).activations, 2 * 16_512 + 1_002);
    let room = of(&job.settings).total();
    let words = nearest_fit(&llama3_8b(), (job.training, &two), 2, room);
    assert_eq!(words.as_deref(), Some("micro_batch_sequences = 1"));
}

#[test]
fn a_training_that_no_gpu_holds_is_planned_over_as_few_as_hold_it() {
    let text =
        "[run]\npolicy='p'\n[train]\nmicro_batch_pairs = 1\nactivation_checkpointing = true\n";
    let config = CheckedConfig::from_text(text, Path::new("/")).unwrap();
    let models = ModelFacts { policy: Some(llama3_8b()), ..ModelFacts::default() };
    let told = |count: usize, free_mib: u64| {
        let room = |n| system::Room { name: format!("GPU {n}"), is_cuda: true, free_mib };
        let rooms: Vec<_> = (0..count).map(room).collect();
        let mut report = Report::default();
        memory::plan(&config, &models, &rooms, &mut report);
        let found = report.0.into_iter().find(|(_, about, _)| *about == "train").unwrap();
        (found.0, found.2)
    };
    // Of 137,852 MiB of weights and their training state each of two holds a half: 16 blocks of 3,744 and
    // one end of 9,018. Beside them 16 inputs of 4096 tokens (512), a block's activations (688), on the
    // second logits (1,002); a tenth more, and 500 for a process.
    let (level, words) = told(2, 80_896);
    assert_eq!(level, Level::Well, "{words}");
    assert!(words.starts_with("fits over 2 devices: 77"), "{words}");
    assert!(words.contains("of 80896 MiB on GPU 0, 78"), "{words}");
    let (level, words) = told(4, 78_000);
    assert!(level == Level::Well && words.starts_with("fits over 3 devices"), "{words}");
    let (level, words) = told(2, 78_000);
    assert!(level == Level::Bad && words.contains("trainable_layers"), "{words}");
    // A single device is asked first.
    assert!(told(2, 200_000).1.starts_with("needs about"));
}

#[test]
fn the_shares_of_devices_add_up_to_what_one_needs() {
    let config = CheckedConfig::from_text("[run]\npolicy='p'\n", Path::new("/")).unwrap();
    let mut lora = config.train.settings.clone();
    lora.lora_rank = 16;
    let mut top = config.train.settings.clone();
    top.trainable_layers = Some(8);
    let model = llama3_8b();
    let all = [
        generating(&model, 8, 3072, 2),
        super::memory::forwarding(&model, 4096, 2),
        updating(&model, (Training::Dpo, &config.train.settings), 2),
        updating(&model, (Training::Dpo, &lora), 2),
    ];
    for needs in all {
        let (one, alone) = (needs.demand.planned_mib(&[1])[0], needs.total());
        assert!(one.abs_diff(alone) * 100 <= alone, "{one} and {alone}");
    }
    // Of blocks that do not learn, activations are planned as well: rather too much than too little.
    let top = updating(&model, (Training::Dpo, &top), 2);
    assert!(top.demand.planned_mib(&[1])[0] >= top.total());
}

#[test]
fn every_training_that_the_chain_needs_is_planned() {
    let root = tempfile::tempdir().unwrap();
    model(&root.path().join("policy"), CONFIG, "model.norm.weight");
    let text = "[run]\npolicy = 'policy'\nstart = 'sft/main'\n[devices]\nuse = ['cpu']\n\
                [preference]\ndata = ['p.jsonl']\nbase = 'gone'\n[sft]\nblock_tokens = 4000000\n\
                micro_batch_sequences = 1000\n";
    let report = examine(&asked(root.path(), text), Runner::Oneself);
    let found = bad(&report);
    has(&found, "sft: does not fit");
    has(&found, "preference: ");
    has(&found, "gone: there is no model folder");
    let well = |about: &str| {
        report.0.iter().any(|(_, found, what)| *found == about && what.contains("needs"))
    };
    assert!(well("train") && well("reward") && !well("preference"));
}

#[test]
fn a_gpu_is_planned_with_less_its_reserve() {
    let gpu = DeviceFact {
        uuid: "GPU-a".into(),
        name: "A".into(),
        memory_mib: Some(81_920),
        temperature_c: Some(61),
        ..DeviceFact::cpu()
    };
    let probe = ScriptedProbe::new(vec![Inventory::Gpus(vec![gpu])]);
    let config = CheckedConfig::from_text("[run]\npolicy='p'\n", Path::new("/")).unwrap();
    let mut report = Report::default();
    let rooms = system::devices(Some(&config), &probe, &mut report);
    assert_eq!((rooms[0].free_mib, rooms[0].is_cuda), (81_920 - 1_024, true));
    let told = |words: &str| report.0.iter().any(|(_, _, what)| what.contains(words));
    assert!(told("A (GPU-a): 80896 MiB to plan with, 61 °C"));
    assert!(told("units are taken up to 85 °C, beside others, at all hours"));
}

#[test]
fn the_batch_is_halved_until_it_fits_and_never_below_a_response() {
    let root = tempfile::tempdir().unwrap();
    let policy = root.path().join("policy");
    model(&policy, CONFIG, "model.norm.weight");
    // A token's keys and values: 2 · 2 layers · 1 head · 4 numbers · 4 bytes = 64 bytes. A response
    // of 524288 tokens takes 32 MiB.
    let together = |free| rows_together(&policy, 524_288, 4, free, 16);
    assert_eq!(together(100_000), 16);
    // 500 MiB for the process, and 10 % more than what is counted: 4 rows take 642, 8 take 783.
    assert_eq!(together(700), 4);
    assert_eq!(together(10), 1);
    assert_eq!(rows_together(&root.path().join("nowhere"), 1, 4, 10, 16), 16);
}

#[test]
fn a_gate_without_prompts_kept_for_evaluation_is_told() {
    let root = tempfile::tempdir().unwrap();
    let told = |gate: &str| {
        let text = format!("[run]\npolicy = 'p'\n[gate]\n{gate}\n");
        let config = CheckedConfig::from_text(&text, root.path()).unwrap();
        let mut report = Report::default();
        run::gate(&config, &root.path().join("state"), &mut report);
        report.0.into_iter().map(|(level, _, what)| (level, what)).collect::<Vec<_>>()
    };
    let found = told("win_rate_min = 0.5");
    assert!(found[0].0 == Level::Warn && found[0].1.contains("none is"), "{found:?}");
    // What training itself says needs no evaluation.
    assert!(told("chosen_logprob_fall_max = 10").is_empty());
    assert!(told("").is_empty());
}

#[test]
fn what_the_service_cannot_see_is_told_with_the_drop_in_that_opens_it() {
    let root = tempfile::tempdir().unwrap();
    let look = |policy: &str, rest: &str| {
        let text = format!("[run]\npolicy = '{policy}'\n{rest}");
        let config = CheckedConfig::from_text(&text, root.path()).unwrap();
        let room = |name: &str| system::Room { name: name.into(), is_cuda: true, free_mib: 1 };
        let mut report = Report::default();
        service::drop_ins(&config, &[room("a"), room("b")][..rest.len().min(2)], &mut report);
        report
    };
    let told = |report: &Report, level: Level| -> Vec<String> {
        let found = report.0.iter().filter(|(found, _, _)| *found == level);
        found.map(|(_, _, what)| what.clone()).collect()
    };
    let closed = look("/var/lib/rlhfd/models/p", "");
    assert!(told(&closed, Level::Warn).is_empty() && closed.is_well());
    let home = look("/home/someone/p", "");
    has(&told(&home, Level::Warn), "home-models.conf");
    has(&told(&home, Level::Warn), "[run] policy lies at /home/someone/p");
    let open =
        look("/opt/p", "[control]\nreaders_socket = '/opt/r.sock'\n[reward]\ndata = ['/tmp/d']\n");
    has(&told(&open, Level::Warn), "multi-gpu.conf");
    has(&bad(&open), "[reward] data lies at /tmp/d");
    has(&bad(&open), "readers_socket is /opt/r.sock");
}
