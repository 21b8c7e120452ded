//! References that move, on a tiny model: the log-probs of every pair are those of that very checkpoint.

use std::fs;

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings};

use crate::{Victim, json_lines, killed, offline_pairs, queue, worker};

/// Three small iterations; every response of every update is scored again before its first step.
fn settings(reference: &str) -> Settings {
    crate::settings()
        .set("run", "iterations_max", "3")
        .set("run", "prompts_per_iteration", "6")
        .set("generate", "max_new_tokens", "16")
        .set("train", "epochs", "2")
        .set("train", "rescore_responses", "64")
        .set("train", "reference", reference)
        .set("evaluate", "prompts_max", "2")
        .set("evaluate", "max_new_tokens", "16")
}

/// The offline pairs of an update have the log-probs that file mode computes with its reference.
fn check_offline(scene: &Scene, file: &str, (iteration, reference): (u32, &str)) {
    let model = format!("state/runs/main/checkpoints/{reference}");
    let out = format!("sums-{iteration}.jsonl");
    worker(scene, &["logprobs", "--model", &model, "--data", file, "--out", &out]);
    let sums = json_lines(&fs::read_to_string(scene.path(&out)).unwrap());
    let folder = scene.state().join(format!("runs/main/iterations/{iteration:04}"));
    let pairs = json_lines(&fs::read_to_string(folder.join("pairs.jsonl")).unwrap());
    assert!(pairs.len() > sums.len() && sums.len() == 6);
    for (pair, sum) in pairs.iter().zip(&sums) {
        for side in ["chosen", "rejected"] {
            let own = pair[format!("reference_logprob_{side}")].as_f64().unwrap();
            let theirs = sum[side].as_f64().unwrap();
            assert!((own - theirs).abs() < 1e-3, "{reference}, {side}: {own} and {theirs}");
        }
    }
    let rescored = json_lines(&fs::read_to_string(folder.join("rescore.jsonl")).unwrap());
    assert_eq!(rescored.len(), pairs.len().min(32), "both sides of a pair are scored again");
}

/// Works the story off, with what must hold; gives the rows.
fn told(reference: &str, held: [&str; 3]) -> Option<dump::Dump> {
    let settings = settings(reference).set("train", "offline", "[\"kept\"]");
    let scene = Scene::real(&settings)?;
    let daemon = scene.start();
    let file = offline_pairs(&scene, 6);
    scene.ctl_ok(&["preferences", "add", &file, "--set", "kept"]);
    queue(&scene);
    scene.wait_iterations(3);
    let names = "SELECT group_concat(reference, ' ') FROM iteration_history";
    assert_eq!(dump::text(&scene.database(), names).unwrap(), held.join(" "));
    let first = "SELECT abs(loss - 0.693147) < 0.001 FROM training_steps t
                 JOIN units u ON u.id = t.unit_id WHERE u.iteration = 1 AND t.step = 1";
    assert_eq!(scene.number(first), 1, "the first update begins where its reference is");
    for (iteration, reference) in [(2, held[1]), (3, held[2])] {
        check_offline(&scene, &file, (iteration, reference));
    }
    let dump = dump::dump(&scene.database());
    daemon.terminate();
    Some(dump)
}

#[test]
fn all_of_an_update_is_known_under_the_policy_before_and_a_kill_changes_nothing() {
    let held = ["initial", "iteration-0001", "iteration-0002"];
    if told("\"previous\"", held).is_none() {
        return;
    }
    let calm = Scene::real(&settings("\"previous\"")).unwrap();
    let daemon = calm.start();
    queue(&calm);
    calm.wait_iterations(3);
    let undisturbed = dump::dump(&calm.database());
    daemon.terminate();
    // A step whose policy is its reference has no margin, in every iteration.
    let own = "SELECT count(*) FROM training_steps t JOIN units u ON u.id = t.unit_id
               WHERE t.step = 1 AND abs(t.loss - 0.693147) < 0.001";
    assert_eq!(calm.number(own), 3);
    let scene = Scene::real(&settings("\"previous\"")).unwrap();
    killed(&scene, "u.work = 'logprobs' AND u.detail IS NOT NULL", Victim::Worker);
    let _daemon = scene.start();
    scene.wait_iterations(3);
    dump::assert_same(&undisturbed, &dump::dump(&scene.database()), "killed among earlier pairs");
}

#[test]
fn all_of_an_update_is_known_under_a_moving_average() {
    let held = ["initial", "reference-0001", "reference-0002"];
    let (Some(one), Some(two)) = (told("\"average\"", held), told("\"average\"", held)) else {
        return;
    };
    dump::assert_same(&one, &two, "two averages of the same weights");
}
