//! Supervised fine-tuning: masks as transformers makes them, the curve as TRL makes it, documents
//! that never see each other.

use std::path::{Path, PathBuf};

use rlhfd_config::{TrainSettings, Training};
use rlhfd_protocol::worker::Message;
use rlhfd_worker::errors::TextError;
use rlhfd_worker::model::rotary::Tree;
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::render::{Renderer, Turn};
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::blocks::Block;
use rlhfd_worker::train::conversations;
use rlhfd_worker::train::head::{self, Wanted};
use rlhfd_worker::train::job::{Outcome, TrainJob};
use rlhfd_worker::train::mixture::{self, DataFile};
use rlhfd_worker::train::pack::Packed;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::support::{golden, job, model, run_quietly, small, squared_distance, tensors};

#[derive(Deserialize)]
struct GoldenMasks {
    name: String,
    template: String,
    cases: Vec<GoldenMask>,
}

#[derive(Deserialize)]
struct GoldenMask {
    conversation: usize,
    tokens: usize,
    /// First token, and one past the last.
    assistant: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct GoldenRun {
    model: String,
    template: String,
    conversations: String,
    settings: serde_json::Map<String, serde_json::Value>,
    blocks: Vec<Vec<usize>>,
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

/// A tiny model with another chat template.
fn with_template(dir: &Path, base: &str, template: &str) -> PathBuf {
    let to = dir.join("model");
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(model(base)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(to.join("chat_template.jinja"), template).unwrap();
    to
}

fn renderer(folder: &Path) -> Renderer {
    Renderer::open(&ModelFolder::open(folder).unwrap()).unwrap()
}

fn chat() -> Vec<Vec<Message>> {
    read("conversations.json")
}

/// The runs of ones: first, and one past the last.
fn runs(mask: &[bool]) -> Vec<(usize, usize)> {
    let before = |at: usize| at > 0 && mask[at - 1];
    let starts = (0..mask.len()).filter(|at| mask[*at] && !before(*at));
    starts
        .map(|start| (start, (start..mask.len()).find(|at| !mask[*at]).unwrap_or(mask.len())))
        .collect()
}

#[test]
fn masks_are_those_of_transformers_id_for_id() {
    let conversations = chat();
    let mut checked = 0;
    for golden in read::<Vec<GoldenMasks>>("masks.json") {
        let dir = tempfile::tempdir().unwrap();
        let renderer = renderer(&with_template(dir.path(), "tiny-tied", &golden.template));
        assert!(renderer.marks_assistant());
        for case in &golden.cases {
            let messages = &conversations[case.conversation];
            let rendered = renderer.rendered(messages, Turn::Closed).unwrap();
            let mask = renderer.tokenizer.covered(&rendered.text, &rendered.assistant).unwrap();
            assert_eq!(mask.len(), case.tokens, "{} {}", golden.name, case.conversation);
            assert_eq!(runs(&mask), case.assistant, "{} {}", golden.name, case.conversation);
            let taught = renderer.taught(messages);
            if golden.name == "content" {
                // Its marks leave the stop id out: refused, but where an answer's own text has one.
                let stops = taught.is_ok_and(|taught| taught.learnt == mask);
                let said = |m: &Message| m.role == "assistant" && m.content.contains("<|");
                assert!(!stops || messages.iter().any(said), "{}", case.conversation);
            } else {
                assert_eq!(taught.unwrap().learnt, mask, "{} {}", golden.name, case.conversation);
            }
            checked += 1;
        }
    }
    assert!(checked >= 60, "{checked}");
}

#[test]
fn turn_by_turn_gives_the_same_masks_where_beginnings_hold() {
    let conversations = chat();
    let unmarked = renderer(&model("tiny-tied"));
    assert!(!unmarked.marks_assistant());
    let golden = read::<Vec<GoldenMasks>>("masks.json").swap_remove(0);
    let (mut same, mut refused) = (0, 0);
    for case in &golden.cases {
        match unmarked.taught(&conversations[case.conversation]) {
            Ok(taught) => {
                assert_eq!(runs(&taught.learnt), case.assistant, "{}", case.conversation);
                same += 1;
            }
            Err(TextError::TurnChanges { .. }) => refused += 1,
            Err(error) => panic!("{}: {error}", case.conversation),
        }
    }
    assert!(same >= 20 && refused * 5 < same, "{same} the same, {refused} refused");
}

/// Qwen's manner: what an earlier turn thought is taken out once another follows.
const FORGETS: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}\
    {% if m.role == 'assistant' and loop.last %}{{ 'think ' }}{% endif %}\
    {{ m.content + '<|im_end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const WITHOUT_STOP: &str = "{% for m in messages %}{{ m.role + ':\\n' + m.content + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}";
const MARKS_NO_STOP: &str = "{% for m in messages %}{{ '<|im_start|>' }}{% generation %}\
    {{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}{% endfor %}";
const MARKS_NOTHING: &str = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}\
    {% if false %}{% generation %}{% endgeneration %}{% endif %}";

#[test]
fn a_template_that_does_not_say_where_answers_stand_is_refused_by_line() {
    let turn = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let (u, a) = (turn("user", "q"), turn("assistant", "a"));
    let good = format!(r#"{{"messages": [{u}, {a}]}}"#);
    let long = format!(r#"{{"messages": [{u}, {a}, {u}, {a}]}}"#);
    for (template, reasons) in [
        (FORGETS, ["line 2", "message 2", "\"a\"", "{% generation %}"]),
        (WITHOUT_STOP, ["line 1", "message 2", "no stop id", "stop id"]),
        (MARKS_NO_STOP, ["line 1", "no stop id would be learnt", "never end", "stop id"]),
        (MARKS_NOTHING, ["line 1", "marks nothing", "U+FDD0", "generation"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let base = with_template(dir.path(), "tiny-tied", template);
        let data = dir.path().join("data.jsonl");
        std::fs::write(&data, format!("{good}\n{long}\n")).unwrap();
        let job = job(Training::Sft, base, data, dir.path().join("out"));
        let error = run_quietly(&job).unwrap_err().to_string();
        for reason in reasons {
            assert!(error.contains(reason), "{reason} is not in {error}");
        }
        assert!(!job.out.exists());
    }
}

#[test]
fn conversations_that_do_not_fit_are_an_error_where_none_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden("conversations_sft.jsonl");
    let mut job = job(Training::Sft, model("tiny-tied"), data, dir.path().join("out"));
    job.settings.block_tokens = 2;
    let error = run_quietly(&job).unwrap_err();
    assert!(matches!(error, TrainError::NoConversations { conversations: 60, .. }), "{error}");
    assert!(error.to_string().contains("too_long: 60"), "{error}");
}

/// A job in the golden settings, and what TRL made in them.
fn golden_job(dir: &Path, words: &[&str]) -> (TrainJob, GoldenRun) {
    let run: GoldenRun = read("sft.json");
    let base = with_template(dir, &run.model, &run.template);
    let mut job = job(Training::Sft, base, golden(&run.conversations), dir.join("out"));
    let lines = run.settings.iter().map(|(key, value)| format!("{key} = {value}\n"));
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    job.settings = TrainSettings::read(Training::Sft, &lines.collect::<String>(), &words).unwrap();
    (job, run)
}

fn against_trl(words: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let (job, golden_run) = golden_job(dir.path(), words);
    let outcome = run_quietly(&job).unwrap();
    let theirs = tensors(&golden(&golden_run.last));
    let ours = tensors(&job.out.join("model.safetensors"));
    let distance = squared_distance(&ours, &theirs).sqrt() / golden_run.initial_to_final_norm;
    assert_eq!(outcome.rows.len(), golden_run.steps.len());
    let mut wrong = Vec::new();
    for (ours, theirs) in outcome.rows.iter().zip(&golden_run.steps) {
        for (name, difference, tolerance) in [
            ("loss", ours.loss - theirs.loss, 1e-4),
            ("grad_norm", ours.grad_norm / theirs.grad_norm - 1.0, 1e-3),
            ("lr", ours.lr - theirs.lr, 1e-12),
        ] {
            if difference.abs() > tolerance {
                wrong.push(format!("step {}: {name} differs by {difference:.2e}", ours.step));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\nweights: {distance:.2e}", wrong.join("\n"));
    assert!(distance < 1e-2, "relative distance {distance}");
    outcome
}

#[test]
fn sft_follows_trl_step_by_step() {
    let outcome = against_trl(&[]);
    let (first, last) = (outcome.rows.first().unwrap(), outcome.rows.last().unwrap());
    assert!(first.loss - last.loss > 0.5, "{} {}", first.loss, last.loss);
    let accuracy = |row: &rlhfd_worker::train::steps::StepRow| row.token_accuracy.unwrap();
    assert!(accuracy(first) < 0.2 && accuracy(last) > accuracy(first));
    assert_eq!((last.accuracy, last.margin, last.score_chosen), (None, None, None));
}

#[test]
fn sft_follows_trl_however_the_batch_is_cut_and_with_activation_checkpointing() {
    against_trl(&["micro_batch_sequences=5"]);
    against_trl(&["activation_checkpointing=true"]);
}

/// The blocks of the golden job.
fn golden_blocks(dir: &Path) -> (Vec<Block>, GoldenRun, PathBuf) {
    let (job, run) = golden_job(dir, &[]);
    let documents =
        conversations::read(&[DataFile::once(golden(&run.conversations))], &renderer(&job.base), 0)
            .unwrap();
    let (documents, _) = mixture::spread(documents);
    let fitted = conversations::fit(documents, &job.settings, 1024);
    assert!(fitted.dropped.is_empty());
    (fitted.blocks, run, job.base)
}

#[test]
fn blocks_are_those_of_trl() {
    let dir = tempfile::tempdir().unwrap();
    let (blocks, run, _) = golden_blocks(dir.path());
    let lengths = |block: &Block| block.documents.iter().map(|d| d.ids.len()).collect();
    let lengths: Vec<Vec<usize>> = blocks.iter().map(lengths).collect();
    assert_eq!(lengths, run.blocks);
}

/// Mean negative log-prob of a block's learnt tokens; `trees` say what sees what.
fn mean_loss(model: &Transformer, packed: &Packed, trees: &[Tree]) -> f64 {
    let hidden = model.hidden_trees(&packed.ids, trees).squeeze_dim(0);
    let hidden = hidden.index_select(0, &packed.predicting);
    let scored = head::forward(model, &hidden, &packed.targets, Wanted::Logprobs);
    -scored.logprobs.mean(Kind::Double).double_value(&[])
}

#[test]
fn a_packed_block_costs_what_its_documents_cost_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (blocks, _, base) = golden_blocks(dir.path());
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Nothing,
    };
    let model = Transformer::load(&ModelFolder::open(&base).unwrap(), &options).unwrap();
    for block in blocks.iter().filter(|block| block.documents.len() > 1).take(4) {
        let packed = Packed::new(&[block], Device::Cpu);
        let together = mean_loss(&model, &packed, &packed.trees);
        let alone = block.documents.iter().map(|document| {
            let one = Block { documents: vec![document.clone()] };
            let packed = Packed::new(&[&one], Device::Cpu);
            mean_loss(&model, &packed, &packed.trees) * document.loss_tokens() as f64
        });
        let alone = alone.sum::<f64>() / block.loss_tokens() as f64;
        assert!((together - alone).abs() < 1e-5, "{together} {alone}");
        // A block that is read as one sequence, as packing without borders would.
        let tokens = i64::try_from(packed.tokens()).unwrap();
        let contaminated = mean_loss(&model, &packed, &[Tree::plain(tokens)]);
        assert!((contaminated - alone).abs() > 1e-3, "{contaminated} {alone}");
    }
}

#[test]
fn packing_changes_neither_loss_nor_gradient_of_a_step_over_all_documents() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let words = ["batch_sequences=60", "micro_batch_sequences=7", "epochs=1", "warmup_ratio=0"];
    let packed = run_quietly(&golden_job(one.path(), &words).0).unwrap();
    let words = [words.as_slice(), &["packing=false"]].concat();
    let apart = run_quietly(&golden_job(two.path(), &words).0).unwrap();
    let (packed, apart) = (&packed.rows[0], &apart.rows[0]);
    assert!((packed.loss - apart.loss).abs() < 1e-5, "{} {}", packed.loss, apart.loss);
    assert!((packed.grad_norm / apart.grad_norm - 1.0).abs() < 1e-4);
    assert_eq!(packed.token_accuracy, apart.token_accuracy);
}

/// The backward pass through many sequences in a row is the one of each alone.
#[test]
fn gradients_of_a_packed_row_are_those_of_its_sequences() {
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Everything,
    };
    let folder = ModelFolder::open(&model("tiny-tied")).unwrap();
    let gradient = |of: &dyn Fn(&Transformer) -> Tensor| {
        let model = Transformer::load(&folder, &options).unwrap();
        of(&model).backward();
        let name = "model.layers.0.self_attn.k_proj.weight";
        model.parameters().iter().find(|(own, _)| own == name).unwrap().1.grad()
    };
    let ids = Tensor::arange(9, (Kind::Int64, Device::Cpu)) + 20;
    let lengths = [4_i64, 2, 3];
    let packed = gradient(&|model| {
        model.hidden_packed(&ids.unsqueeze(0), &lengths).square().sum(Kind::Float)
    });
    let alone = gradient(&|model| {
        let parts = ids.split_with_sizes(lengths, 0);
        let squares =
            parts.iter().map(|ids| model.hidden(&ids.unsqueeze(0)).square().sum(Kind::Float));
        squares.reduce(|sum, part| sum + part).unwrap()
    });
    assert!(packed.allclose(&alone, 1e-4, 1e-5, false));
}

#[test]
fn adapters_learn_from_conversations_over_a_frozen_base() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["lora_rank=4", "lora_alpha=8", "learning_rate=5e-3", "epochs=4"];
    let job = small(dir.path(), Training::Sft, "tiny-tied", &words);
    let outcome = run_quietly(&job).unwrap();
    let (first, last) = (outcome.rows.first().unwrap(), outcome.rows.last().unwrap());
    assert!(last.loss < first.loss - 0.1, "{} {}", first.loss, last.loss);
    assert!(job.out.join("adapter/adapter_model.safetensors").is_file());
    let embedding = |folder: &Path| {
        let all = tensors(&folder.join("model.safetensors"));
        all.into_iter().find(|(name, _)| name == "model.embed_tokens.weight").unwrap().1
    };
    assert!(embedding(&job.out).equal(&embedding(&model("tiny-tied"))));
}
