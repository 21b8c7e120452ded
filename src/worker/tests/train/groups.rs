//! Reward training on groups: the same as on their pairs one by one, and what is held out.

use std::path::{Path, PathBuf};

use rlhfd_config::{TrainSettings, Training};
use rlhfd_worker::train::batches::Order;
use rlhfd_worker::train::job::{Outcome, PairSource};
use rlhfd_worker::train::report::Report;
use serde_json::{Value, json};

use crate::support::{job, model, run_quietly, squared_distance, tensors};

const PROMPTS: [&str; 3] = ["Where is the fox?", "Write a list, please.", "Tell me about a lamp."];
const RESPONSES: [&str; 4] =
    ["It waits.", "The fox is kind and true, and so is the river.", "stones stones!?", "Yes."];

/// Lines of groups with all pairs of the responses, and the same pairs one by one.
fn both_ways() -> (Vec<Value>, Vec<Value>) {
    let (mut groups, mut pairs) = (Vec::new(), Vec::new());
    for (index, prompt) in PROMPTS.iter().enumerate() {
        let turns = json!([{"role": "user", "content": prompt}]);
        let mut ranked = Vec::new();
        for better in 0..RESPONSES.len() {
            for worse in better + 1..RESPONSES.len() {
                // Not always the first: what wins differs from prompt to prompt.
                let (chosen, rejected) = if (better + worse + index) % 3 == 0 {
                    (worse, better)
                } else {
                    (better, worse)
                };
                ranked.push(json!([chosen, rejected]));
                let answer = |of: usize| json!([{"role": "assistant", "content": RESPONSES[of]}]);
                pairs.push(json!({"prompt": turns, "chosen": answer(chosen),
                    "rejected": answer(rejected)}));
            }
        }
        groups.push(json!({"prompt": turns, "responses": RESPONSES, "pairs": ranked}));
    }
    (groups, pairs)
}

fn written(dir: &Path, lines: &[Value]) -> PathBuf {
    let path = dir.join("data.jsonl");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path
}

fn trained(dir: &Path, lines: &[Value], words: &[&str]) -> Outcome {
    let data = written(dir, lines);
    let mut job = job(Training::Reward, model("tiny-reward"), data, dir.join("out"));
    let common = ["learning_rate=1e-3", "warmup_ratio=0", "schedule=constant"];
    let words: Vec<String> = common.iter().chain(words).map(|word| (*word).to_owned()).collect();
    job.settings = TrainSettings::read(Training::Reward, "", &words).unwrap();
    job.order = Order::AsGiven;
    run_quietly(&job).unwrap()
}

#[test]
fn a_group_teaches_what_its_pairs_teach_one_by_one() {
    let (groups, pairs) = both_ways();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Two groups of six pairs a step, then one; the same pairs in steps of twelve.
    let extra = ["epochs=2", "centring=0.05"];
    let of = |batch: &'static str, micro: &'static str| [batch, micro, extra[0], extra[1]];
    let by_group = trained(one.path(), &groups, &of("batch_pairs=2", "micro_batch_pairs=1"));
    let by_pair = trained(two.path(), &pairs, &of("batch_pairs=12", "micro_batch_pairs=5"));
    assert_eq!((by_group.rows.len(), by_pair.rows.len()), (4, 4));
    for (group, pair) in by_group.rows.iter().zip(&by_pair.rows) {
        assert!((group.loss - pair.loss).abs() < 1e-5, "{group:?} {pair:?}");
        assert!((group.grad_norm / pair.grad_norm - 1.0).abs() < 1e-5, "{group:?} {pair:?}");
        assert_eq!(group.accuracy, pair.accuracy);
    }
    let weights = |dir: &Path| tensors(&dir.join("out/model.safetensors"));
    let start = tensors(&model("tiny-reward").join("model.safetensors"));
    let moved = squared_distance(&weights(one.path()), &start).sqrt();
    let apart = squared_distance(&weights(one.path()), &weights(two.path())).sqrt();
    assert!(moved > 0.05 && apart < 1e-3 * moved, "{apart} of {moved}");
    assert_eq!(by_group.report.unwrap().trained, 18);
}

#[test]
fn how_groups_are_cut_changes_nothing_and_pairs_may_stand_among_them() {
    let (groups, pairs) = both_ways();
    let mixed = [&groups[..2], &pairs[12..15]].concat();
    let losses = |micro: &str| {
        let dir = tempfile::tempdir().unwrap();
        let outcome = trained(dir.path(), &mixed, &["batch_pairs=5", micro]);
        outcome.rows.iter().map(|row| row.loss).collect::<Vec<_>>()
    };
    let (one, all) = (losses("micro_batch_pairs=1"), losses("micro_batch_pairs=5"));
    assert_eq!((one.len(), all.len()), (1, 1));
    assert!((one[0] - all[0]).abs() < 1e-6, "{one:?} {all:?}");
}

#[test]
fn what_is_held_out_is_measured_by_source_and_crosses_no_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for index in 0..40 {
        let (prompt, source) = (format!("Where is {index}?"), ["a", "b"][index % 2]);
        for answer in ["It waits.", "Yes, it is kind."] {
            lines.push(json!({"prompt": prompt, "chosen": answer, "rejected": "stones stones!?",
                "source": source}));
        }
    }
    lines.push(lines[0].clone());
    lines.push(json!({"prompt": "x", "chosen": "It.", "rejected": "!", "chosen_score": 1,
        "rejected_score": 1}));
    let words = ["batch_pairs=8", "epochs=6", "held_out_share=0.3"];
    let outcome = trained(dir.path(), &lines, &words);
    let report = outcome.report.unwrap();
    let file = std::fs::read(dir.path().join("out/report.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Report>(&file).unwrap(), report);
    let named = outcome.standing.manifest.files.iter().any(|file| file.path == "report.json");
    assert!(named, "report.json stands under the manifest");
    let held_out = report.held_out.clone().unwrap();
    assert_eq!(report.pairs, 82);
    assert_eq!(report.dropped.values().copied().collect::<Vec<_>>(), [1, 1]);
    assert_eq!(report.trained + held_out.all.pairs, 80);
    // Two pairs a prompt, all on one side.
    assert_eq!(
        (held_out.all.pairs, held_out.all.responses),
        (2 * held_out.prompts, 4 * held_out.prompts)
    );
    assert!((4..=24).contains(&held_out.prompts), "{report:?}");
    let by_source = &held_out.by_source;
    assert_eq!(by_source["a"].pairs + by_source["b"].pairs, held_out.all.pairs);
    assert!(held_out.all.accuracy > 0.9, "{report:?}");
    assert!((0.0..0.5).contains(&held_out.all.calibration_error), "{report:?}");
    assert!(held_out.all.length_correlation.unwrap().abs() <= 1.0);
    let all = tempfile::tempdir().unwrap();
    let path = written(all.path(), &lines);
    let mut job = job(Training::Reward, model("tiny-reward"), path, all.path().join("out"));
    job.settings.held_out_share = 0.999_999;
    assert!(matches!(job.pairs, PairSource::Text { .. }));
    let said = run_quietly(&job).unwrap_err().to_string();
    assert!(said.contains("held_out: 80"), "{said}");
}
