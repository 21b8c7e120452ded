//! Arms of two policies on a tiny model: each response has the log-probs of the model that wrote it.

use rlhfd_tests::dump;
use rlhfd_tests::scene::Scene;

use crate::{Victim, killed, queue, settings};

/// f32 numbers as a BLOB's text holds them.
fn floats(blob: &str) -> Vec<f32> {
    let digits = blob.trim_start_matches('x').as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
    bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn an_arm_of_the_initial_policy_samples_from_that_very_model() {
    let arms = "name = \"head\"\nn = 2\n\n\
                [[generate.arms]]\nname = \"start\"\npolicy = \"initial\"\nn = 2";
    let settings = settings()
        .with("[generate.arms]", arms)
        .with("pair", "rule = \"all\"")
        .set("run", "prompts_per_iteration", "6")
        .set("train", "batch_pairs", "4")
        .set("train", "epochs", "2")
        .set("generate", "max_new_tokens", "24")
        .set("evaluate", "prompts_max", "2");
    let Some(scene) = Scene::real(&settings) else { return };
    let daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(2);
    // The reference is the initial policy, computed by itself: far from what the head says.
    let dump = dump::dump(&scene.database());
    let known = |arm: &str| -> Vec<f32> {
        let own = format!(
            "SELECT group_concat(hex(t.logprobs), '') || ' ' || group_concat(hex(k.logprobs), '')
             FROM responses x JOIN response_texts t ON t.response_id = x.id
             JOIN reference_logprobs k ON k.response_id = x.id
             WHERE x.purpose = 'generate' AND x.iteration = 2 AND x.arm = '{arm}'"
        );
        let told = dump::text(&scene.database(), &own).unwrap();
        let (sampled, reference) = told.split_once(' ').unwrap();
        let (sampled, reference) = (floats(sampled), floats(reference));
        assert!(sampled.len() == reference.len() && sampled.len() > 100, "{}", sampled.len());
        sampled.iter().zip(&reference).map(|(a, b)| (a - b).abs()).collect()
    };
    let farthest = |arm: &str| known(arm).into_iter().fold(0.0, f32::max);
    assert!(farthest("start") < 1e-4, "{}", farthest("start"));
    assert!(farthest("head") > 1e-2, "{}", farthest("head"));
    daemon.terminate();
    let Some(scene) = Scene::real(&settings) else { return };
    killed(&scene, "u.stage = 'generate' AND u.iteration = 2", Victim::Worker);
    dump::assert_same(&dump, &dump::dump(&scene.database()), "a kill among two policies");
}
