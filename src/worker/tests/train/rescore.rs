//! The check before the first step: what is stored of a response must be what the loaded models give.

use std::path::{Path, PathBuf};

use rlhfd_config::Training;
use rlhfd_protocol::worker::{ModelRef, Published, TrainTarget};
use rlhfd_worker::checkpoint;
use rlhfd_worker::logprob::{Sequence, response_logprobs};
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::train::unit::train_dpo;
use rlhfd_worker::watch::Watch;
use serde_json::{Value, json};
use tch::Device;

use crate::support::{CPU, model, run_quietly, small};

const PROMPT: [u32; 3] = [5, 6, 7];
const SIDES: [[&[u32]; 2]; 2] = [[&[8, 9, 2], &[10, 2]], [&[11, 2], &[12, 13, 14, 2]]];

/// What a model gives each token of the sides, in their order.
fn logprobs(dir: &Path) -> Vec<Vec<f32>> {
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Nothing,
    };
    let model = Transformer::load(&ModelFolder::open(dir).unwrap(), &options).unwrap();
    let sequence = |side: &&[u32]| Sequence { ids: [&PROMPT, *side].concat(), prompt_tokens: 3 };
    let sequences: Vec<Sequence> = SIDES.iter().flatten().map(sequence).collect();
    response_logprobs(&model, &sequences, &Watch::default()).unwrap()
}

fn sum(logprobs: &[f32]) -> f64 {
    logprobs.iter().map(|logprob| f64::from(*logprob)).sum()
}

/// An iteration folder as control writes it.
struct Bench {
    dir: tempfile::TempDir,
    policy: PathBuf,
    reference: PathBuf,
}

impl Bench {
    /// Responses of `policy`, with the log-probs of `reference`.
    fn new(policy: &Path, reference: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (by_policy, by_reference) = (logprobs(policy), logprobs(reference));
        let pair = |n: usize| {
            let [chosen, rejected] = SIDES[n];
            let (own, other) = (&by_policy[2 * n..2 * n + 2], &by_reference[2 * n..2 * n + 2]);
            json!({
                "prompt_ids": PROMPT, "chosen_ids": chosen, "rejected_ids": rejected,
                "reference_logprob_chosen": sum(&other[0]),
                "reference_logprob_rejected": sum(&other[1]),
                "iteration": 1, "ordinal": n, "sample_chosen": 2, "sample_rejected": 0,
                "policy_logprobs_chosen": own[0], "policy_logprobs_rejected": own[1],
                "reference_logprobs_chosen": other[0], "reference_logprobs_rejected": other[1],
            })
        };
        let bench = Self { dir, policy: policy.to_owned(), reference: reference.to_owned() };
        bench.write(&[pair(0), pair(1)]);
        let settings =
            "learning_rate = 1e-3\nbatch_pairs = 2\nepochs = 3\nschedule = \"constant\"\n";
        std::fs::write(bench.dir.path().join("settings.toml"), settings).unwrap();
        bench
    }

    fn write(&self, pairs: &[Value]) {
        let lines: String = pairs.iter().map(|pair| format!("{pair}\n")).collect();
        for file in ["pairs.jsonl", "rescore.jsonl"] {
            std::fs::write(self.dir.path().join(file), &lines).unwrap();
        }
    }

    /// Changes a stored value.
    fn plant(&self, line: usize, key: &str, change: impl Fn(&mut Value)) {
        let path = self.dir.path().join("rescore.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let mut pairs: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        change(&mut pairs[line][key]);
        self.write(&pairs);
    }

    fn train(&self, watch: &Watch) -> Result<Published, TrainError> {
        let model = |path: &Path| ModelRef {
            path: path.to_owned(),
            sha256: checkpoint::model_sum(path).unwrap(),
        };
        let (policy, reference) = (model(&self.policy), model(&self.reference));
        let target = TrainTarget {
            micro_batch: None,
            out: self.dir.path().join("out"),
            unit: "1/train".into(),
            state: self.dir.path().join("state"),
            resume: true,
            seed: 3,
            save_every_steps: 1,
            save_every_s: 0,
            parent_sha256: "ab".into(),
        };
        let stepped = |_: &rlhfd_worker::train::steps::StepRow, _: u64| watch.cancel();
        let observer = Observer { watch, filled: &|_, _| {}, stepped: &stepped };
        train_dpo((&policy, &reference, &policy), (self.dir.path(), &target), CPU, &observer)
    }

    /// One step is made: what was stored was found again.
    fn begins(&self) {
        let error = self.train(&Watch::default()).unwrap_err();
        assert!(matches!(error, TrainError::Cancelled { step: 1 }), "{error}");
    }

    /// Nothing is made.
    fn refused(&self) -> String {
        let error = self.train(&Watch::default()).unwrap_err();
        assert!(matches!(error, TrainError::Rescored { .. }), "{error}");
        assert_eq!(error.failure_kind(), rlhfd_protocol::worker::FailureKind::Input);
        assert!(!self.dir.path().join("out").exists());
        error.to_string()
    }
}

/// A model that tiny-tied became by a few steps.
fn trained(dir: &Path) -> PathBuf {
    run_quietly(&small(dir, Training::Dpo, "tiny-tied", &[])).unwrap();
    dir.join("out")
}

#[test]
fn what_the_models_give_again_is_trained_on() {
    let one = model("tiny-tied");
    Bench::new(&one, &one).begins();
    let dir = tempfile::tempdir().unwrap();
    Bench::new(&trained(dir.path()), &one).begins();
    // What another policy wrote is held to the reference alone.
    let bench = Bench::new(&one, &one);
    for line in 0..2 {
        for side in ["chosen", "rejected"] {
            bench.plant(line, &format!("policy_logprobs_{side}"), |stored| *stored = Value::Null);
        }
    }
    bench.begins();
}

#[test]
fn a_wrong_log_prob_of_one_token_stops_the_training_and_is_named() {
    let bench = Bench::new(&model("tiny-tied"), &model("tiny-tied"));
    bench.plant(1, "policy_logprobs_rejected", |stored| {
        stored[2] = json!(stored[2].as_f64().unwrap() + 2e-3);
    });
    let said = bench.refused();
    assert!(said.contains("prompt 1 of iteration 1, sample 0: the log-prob of token 2"), "{said}");
    assert!(said.contains("under the policy") && said.contains("rlhfctl resume"), "{said}");
}

#[test]
fn another_policy_or_reference_than_the_one_that_is_stored_stops_the_training() {
    let (one, dir) = (model("tiny-tied"), tempfile::tempdir().unwrap());
    let other = trained(dir.path());
    let wrong_policy = Bench { policy: other.clone(), ..Bench::new(&one, &one) };
    let said = wrong_policy.refused();
    assert!(said.contains("under the policy"), "{said}");
    let wrong_reference = Bench { reference: other, ..Bench::new(&one, &one) };
    let said = wrong_reference.refused();
    assert!(said.contains("under the reference"), "{said}");
}

#[test]
fn reference_sums_of_swapped_sides_stop_the_training() {
    let bench = Bench::new(&model("tiny-tied"), &model("tiny-tied"));
    let sums = logprobs(&model("tiny-tied"));
    bench.plant(0, "reference_logprob_chosen", |stored| *stored = json!(sum(&sums[1])));
    bench.plant(0, "reference_logprob_rejected", |stored| *stored = json!(sum(&sums[0])));
    let said = bench.refused();
    assert!(said.contains("the sum of its log-probs"), "{said}");
}

#[test]
fn a_resumed_attempt_is_held_to_what_is_stored_too() {
    let bench = Bench::new(&model("tiny-tied"), &model("tiny-tied"));
    bench.begins();
    let state = bench.dir.path().join("state/step-00000001");
    assert!(state.is_dir(), "the first attempt left its step");
    // The policy has moved in the state, and not in its folder.
    let error = bench.train(&Watch::default()).unwrap_err();
    assert!(matches!(error, TrainError::Cancelled { step: 2 }), "{error}");
    bench.plant(0, "reference_logprobs_chosen", |stored| stored[0] = json!(-0.5));
    let said = bench.refused();
    assert!(said.contains("token 0 is -0.5"), "{said}");
}

#[test]
fn an_offline_pair_is_held_to_the_reference_and_where_that_is_the_policy_has_no_margin() {
    let (one, dir) = (model("tiny-tied"), tempfile::tempdir().unwrap());
    let offline = |reference: &Path| {
        let bench = Bench::new(&one, reference);
        for line in 0..2 {
            bench.plant(line, "iteration", |stored| *stored = json!(0));
            for side in ["chosen", "rejected"] {
                bench.plant(line, &format!("sample_{side}"), |stored| *stored = Value::Null);
                let policy = format!("policy_logprobs_{side}");
                bench.plant(line, &policy, |stored| *stored = Value::Null);
            }
        }
        bench
    };
    offline(&one).begins();
    let other = trained(dir.path());
    offline(&other).begins();
    // The reference is not the model that gave what is stored.
    let said = Bench { reference: one.clone(), ..offline(&other) }.refused();
    assert!(said.contains("offline pair") && said.contains("under the reference"), "{said}");
    // The same where the policy is not the reference, so that no margin tells of it.
    let mut unlike = offline(&other);
    (unlike.policy, unlike.reference) = (other.clone(), one.clone());
    assert!(unlike.refused().contains("the log-prob of token"));
    // The policy is the reference by its sum, and another model by its weights.
    let swapped = offline(&one);
    let sums = logprobs(&other);
    for (line, side, n) in
        [(0, "chosen", 0), (0, "rejected", 1), (1, "chosen", 2), (1, "rejected", 3)]
    {
        swapped
            .plant(line, &format!("reference_logprobs_{side}"), |stored| *stored = json!(sums[n]));
        swapped.plant(line, &format!("reference_logprob_{side}"), |stored| {
            *stored = json!(sum(&sums[n]));
        });
    }
    assert!(swapped.refused().contains("offline pair"));
}
