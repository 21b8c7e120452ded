//! Replay weights: a pair of weight 3 is what the same pair three times is.

use std::path::Path;

use rlhfd_protocol::worker::{ModelRef, TrainTarget};
use rlhfd_worker::train::steps::StepRow;
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::train::unit::train_dpo;
use rlhfd_worker::watch::Watch;
use tch::Tensor;

use crate::support::{CPU, model, squared_distance, tensors};

/// Trains on two pairs, each with its weight and so often; gives the steps and the weights.
fn trained(dir: &Path, pairs: &[(usize, f64)]) -> (Vec<StepRow>, Vec<(String, Tensor)>) {
    // The references stand apart, so that the two losses differ.
    let sides = [("[8, 9, 2]", "[10, 2]", -30.0, -10.0), ("[11, 2]", "[12, 13, 2]", -5.0, -25.0)];
    let line = |(which, weight): &(usize, f64)| {
        let (chosen, rejected, high, low) = sides[*which];
        format!(
            r#"{{"prompt_ids": [5, 6, 7], "chosen_ids": {chosen}, "rejected_ids": {rejected}, "reference_logprob_chosen": {high}, "reference_logprob_rejected": {low}, "weight": {weight}}}"#
        )
    };
    std::fs::create_dir(dir).unwrap();
    let lines: Vec<String> = pairs.iter().map(line).collect();
    std::fs::write(dir.join("pairs.jsonl"), lines.join("\n")).unwrap();
    let settings = "learning_rate = 1e-3\nbatch_pairs = 8\nmicro_batch_pairs = 1\nepochs = 3\n\
                    warmup_ratio = 0\nmax_grad_norm = 0.0\n";
    std::fs::write(dir.join("settings.toml"), settings).unwrap();
    let target = TrainTarget {
        micro_batch: None,
        out: dir.join("out"),
        unit: "1/train".into(),
        state: dir.join("state"),
        resume: false,
        seed: 3,
        save_every_steps: 100,
        save_every_s: 0,
        parent_sha256: String::new(),
    };
    let policy = ModelRef { path: model("tiny-tied"), sha256: String::new() };
    let observer = Observer { watch: &Watch::default(), filled: &|_, _| {}, stepped: &|_, _| {} };
    train_dpo((&policy, &policy, &policy), (dir, &target), CPU, &observer).unwrap();
    let steps = std::fs::read_to_string(target.out.join("steps.jsonl")).unwrap();
    let rows = steps.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (rows, tensors(&target.out.join("model.safetensors")))
}

#[test]
fn a_pair_of_weight_3_is_the_same_pair_three_times() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str, pairs: &[(usize, f64)]| trained(&dir.path().join(name), pairs);
    let (alone, _) = of("first", &[(0, 1.0)]);
    let (other, _) = of("second", &[(1, 5.0)]);
    let (weighted, by_weight) = of("weighted", &[(0, 1.0), (1, 3.0)]);
    let (repeated, by_repeating) = of("repeated", &[(0, 1.0), (1, 1.0), (1, 1.0), (1, 1.0)]);
    let (scaled, by_scale) = of("scaled", &[(0, 0.5), (1, 1.5)]);
    let (plain, _) = of("plain", &[(0, 1.0), (1, 1.0)]);
    // A lone pair's weight is nothing: the mean is normalised by the step's weights.
    let (first, second) = (alone[0].loss, other[0].loss);
    assert!((first - second).abs() > 0.5, "{first} and {second} show nothing");
    assert!((weighted[0].loss - (first + 3.0 * second) / 4.0).abs() < 1e-6);
    assert!((plain[0].loss - (first + second) / 2.0).abs() < 1e-6);
    let margins = [&weighted, &repeated].map(|rows| rows[0].margin.unwrap());
    assert!((margins[0] - margins[1]).abs() < 1e-5, "{margins:?}");
    assert_eq!((weighted.len(), repeated.len()), (3, 3));
    for (one, two) in weighted.iter().zip(&repeated).chain(weighted.iter().zip(&scaled)) {
        assert!((one.loss - two.loss).abs() < 1e-5, "{one:?} {two:?}");
        assert!((one.grad_norm / two.grad_norm - 1.0).abs() < 1e-4, "{one:?} {two:?}");
    }
    let start = tensors(&model("tiny-tied").join("model.safetensors"));
    let moved = squared_distance(&by_weight, &start).sqrt();
    for weights in [by_repeating, by_scale] {
        let apart = squared_distance(&by_weight, &weights).sqrt() / moved;
        assert!(apart < 1e-2, "the trained weights differ by {apart:.2e} of what they moved");
    }
}
