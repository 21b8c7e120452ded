//! Every family of the table against transformers, on tiny random models.
//!
//! In: `tests/golden/families.json`. Out: logits and scores within 1e-4, greedy tokens equal, alone and
//! side by side in a batch. May not enter: text.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::path::{Path, PathBuf};

use rlhfd_protocol::worker::{Arm, Purpose, ScorePosition};
use rlhfd_worker::generate::{Generation, PromptTask, Written, generate_batch};
use rlhfd_worker::logprob::host_floats;
use rlhfd_worker::model::families::FAMILIES;
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::score::score_batch;
use rlhfd_worker::watch::Watch;
use serde::Deserialize;
use tch::{Device, Tensor};

#[derive(Deserialize)]
struct Entry {
    model: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    #[serde(default)]
    logits: Vec<Vec<f32>>,
    #[serde(default)]
    greedy: Vec<u32>,
    score: Option<f32>,
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn load(folder: &ModelFolder) -> Transformer {
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Nothing,
    };
    Transformer::load(folder, &options).unwrap()
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= 1e-4, "{what}: value {index} is {a}, golden {b}");
    }
}

fn greedy(length: usize) -> Generation {
    Generation {
        run_seed: 0,
        purpose: Purpose::Generate,
        iteration: 0,
        arms: vec![Arm {
            name: "greedy".into(),
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            n: 1,
            first_sample: 0,
        }],
        max_new_tokens: length as u32,
        stop_ids: Vec::new(),
    }
}

#[test]
fn every_family_computes_what_transformers_computes() {
    let entries: Vec<Entry> =
        serde_json::from_slice(&std::fs::read(golden("families.json")).unwrap()).unwrap();
    let watch = Watch::default();
    let mut met = Vec::new();
    for Entry { model: name, cases } in &entries {
        let folder = ModelFolder::open(&golden("models").join(name)).unwrap();
        let model = load(&folder);
        met.push(folder.config.family.model_type);
        for case in cases {
            if let Some(score) = case.score {
                let ids = std::slice::from_ref(&case.ids);
                let ours = score_batch(&model, ids, ScorePosition::Transformers, &watch).unwrap();
                assert_close(&ours, &[score], name);
                continue;
            }
            let ids: Vec<i64> = case.ids.iter().map(|id| i64::from(*id)).collect();
            let hidden = model.hidden(&Tensor::from_slice(&ids).unsqueeze(0));
            let wanted: Vec<f32> = case.logits.iter().flatten().copied().collect();
            assert_close(&host_floats(&model.logits(&hidden)), &wanted, name);
        }
        // One batch of prompts of 1, 9 and 40 ids: the short ones begin at a later column, and the
        // windows slide past their beginnings.
        let written: Vec<&Case> = cases.iter().filter(|case| !case.greedy.is_empty()).collect();
        let Some(first) = written.first() else { continue };
        let tasks: Vec<PromptTask> = written
            .iter()
            .map(|case| PromptTask { ids: case.ids.clone(), occurrence: 0 })
            .collect();
        let generation = greedy(first.greedy.len());
        let together = generate_batch(&model, &tasks, &generation, &watch).unwrap();
        for (case, ours) in written.iter().zip(together) {
            let Written::Responses(responses) = ours else { panic!("{name}: not finite") };
            assert_eq!(responses[0].ids, case.greedy, "{name}, {} ids", case.ids.len());
        }
    }
    for family in FAMILIES {
        assert!(met.contains(&family.model_type), "{} is in no test", family.model_type);
    }
}
