//! A model whose blocks lie on two devices computes and learns what it does on one, to the bit.
//!
//! Both "devices" are the CPU, so that bits can be compared; that each state crosses is counted.

use rlhfd_config::Training;
use rlhfd_protocol::worker::{Arm, Purpose, ScorePosition};
use rlhfd_worker::device::Compute;
use rlhfd_worker::generate::{Generation, PromptTask, Written, generate_batch};
use rlhfd_worker::logprob::{Sequence, response_logprobs};
use rlhfd_worker::model::placement::moves;
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::score::score_batch;
use rlhfd_worker::train::job::{TrainJob, run};
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::watch::Watch;
use tch::{Device, Tensor};

use crate::support::{CPU, files, interrupted, model, run_quietly, small, with_state};

/// The CPU twice, with rooms.
fn twice(rooms: [u64; 2]) -> Devices {
    Devices::several(&[Device::Cpu; 2], &rooms).unwrap()
}

fn split(rooms: [u64; 2]) -> Compute {
    Compute { devices: twice(rooms), ..CPU }
}

fn run_split(job: &TrainJob, rooms: [u64; 2]) -> rlhfd_worker::train::job::Outcome {
    let observer = Observer { watch: &Watch::default(), filled: &|_, _| {}, stepped: &|_, _| {} };
    run(job, split(rooms), &observer).unwrap()
}

fn load(name: &str, devices: Devices) -> Transformer {
    let options =
        LoadOptions { devices, precision: Precision::Float32, trainable: Trainable::Nothing };
    Transformer::load(&ModelFolder::open(&model(name)).unwrap(), &options).unwrap()
}

/// A response's ids, and its log-probs' bits.
type Response = (Vec<u32>, Vec<u32>);

/// All that is computed with a policy, in bits.
fn computed(model: &Transformer) -> (Vec<u32>, Vec<Response>) {
    let watch = Watch::default();
    let sequence = |ids: &[u32]| Sequence { ids: ids.to_vec(), prompt_tokens: 3 };
    let sequences = [sequence(&[5, 6, 7, 8, 9, 10, 11]), sequence(&[5, 6, 7, 20, 21])];
    let logprobs = response_logprobs(model, &sequences, &watch).unwrap();
    let arm =
        Arm { name: "a".into(), temperature: 1.0, top_p: 0.9, top_k: 0, n: 3, first_sample: 0 };
    let generation = Generation {
        run_seed: 3,
        purpose: Purpose::Generate,
        iteration: 1,
        arms: vec![arm],
        max_new_tokens: 9,
        stop_ids: vec![2],
    };
    // Of unequal lengths, so that a mask hides columns.
    let prompts = [vec![5, 6, 7, 8, 9], vec![11, 12]].map(|ids| PromptTask { ids, occurrence: 0 });
    let written = generate_batch(model, &prompts, &generation, &watch).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let mut responses = Vec::new();
    for written in written {
        let all = match written {
            Written::Responses(all) => Some(all),
            Written::NonFinite => None,
        };
        responses.extend(all.unwrap().into_iter().map(|own| (own.ids, bits(&own.logprobs))));
    }
    (logprobs.iter().flat_map(|own| bits(own)).collect(), responses)
}

#[test]
fn log_probs_and_responses_are_the_same_wherever_the_border_lies() {
    for name in ["tiny-tied", "tiny-untied", "family-qwen2-window", "family-smollm3"] {
        let alone = computed(&load(name, CPU.devices));
        for rooms in [[1, 1], [1, 9], [3, 1]] {
            let before = moves();
            let model = load(name, twice(rooms));
            assert_eq!(computed(&model), alone, "{name} {rooms:?}");
            assert!(moves() > before, "{name} {rooms:?}: nothing crossed");
        }
    }
}

/// Over the border once, and of a tied model back to the embedding, where its head is.
#[test]
fn a_pass_crosses_once_a_border_and_once_back_to_a_tied_head() {
    let ids = Tensor::from_slice(&[5_i64, 6, 7]).unsqueeze(0);
    for (name, crossings) in [("tiny-tied", 2), ("tiny-untied", 1)] {
        let model = load(name, twice([1, 1]));
        let before = moves();
        let _hidden = model.hidden(&ids);
        assert_eq!(moves() - before, crossings, "{name}");
        let alone = load(name, CPU.devices);
        let before = moves();
        let _hidden = alone.hidden(&ids);
        assert_eq!(moves() - before, 0, "{name} on a single device");
    }
}

#[test]
fn scores_are_the_same() {
    let sequences = [vec![5, 6, 7, 8], vec![5, 6, 9]];
    let scores = |devices| {
        let model = load("family-llama3-score", devices);
        score_batch(&model, &sequences, ScorePosition::Last, &Watch::default()).unwrap()
    };
    assert_eq!(scores(twice([1, 1])), scores(CPU.devices));
}

/// Every kind of training, with all that lies between a loss and a weight: kept and recomputed
/// activations, frozen blocks below the border and above, adapters with dropout, a new score head.
#[test]
fn a_training_publishes_the_same_bytes() {
    let recomputed = "activation_checkpointing=true";
    let adapters = ["lora_rank=4", "lora_alpha=8", "lora_dropout=0.2"];
    let cases: [(Training, &str, &[&str]); 8] = [
        (Training::Dpo, "tiny-tied", &[]),
        (Training::Dpo, "tiny-untied", &[recomputed]),
        (Training::Dpo, "tiny-tied", &[recomputed]),
        (Training::Dpo, "tiny-untied", &["trainable_layers=1"]),
        (Training::Dpo, "tiny-tied", &["trainable_layers=1", recomputed]),
        (Training::Dpo, "tiny-tied", &adapters),
        (Training::Sft, "tiny-untied", &[]),
        (Training::Reward, "tiny-tied", &["trainable_layers=1"]),
    ];
    for (training, base, words) in cases {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let alone = small(one.path(), training, base, words);
        let whole = run_quietly(&alone).unwrap();
        for (place, rooms) in [[1, 1], [1, 2]].into_iter().enumerate() {
            let mut job = small(two.path(), training, base, words);
            job.out = two.path().join(format!("out-{place}"));
            let before = moves();
            let over = run_split(&job, rooms);
            let case = format!("{training:?} {base} {words:?} {rooms:?}");
            assert!(moves() > before, "{case}: nothing crossed");
            assert_eq!(over.rows, whole.rows, "{case}");
            assert_eq!(files(&job.out), files(&alone.out), "{case}");
        }
    }
}

/// A training that was begun on one device goes on over two.
#[test]
fn a_saved_state_goes_on_over_other_devices() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let alone = with_state(&small(one.path(), Training::Dpo, "tiny-tied", &[]), one.path(), 2);
    let whole = run_quietly(&alone).unwrap();
    let job = with_state(&small(two.path(), Training::Dpo, "tiny-tied", &[]), two.path(), 2);
    interrupted(&job, 3);
    let over = run_split(&job, [1, 1]);
    assert_eq!((over.first_step, &over.rows), (4, &whole.rows));
    assert_eq!(files(&job.out), files(&alone.out));
}
