//! The check before the first step, in a whole run: a stored log-prob that the policy does not give again
//! stops the update until a person looked.

use rlhfd_tests::dump;
use rlhfd_tests::scene::Scene;
use rlhfd_tests::wait;
use rusqlite::Connection;

use crate::{frozen, queue, settings};

/// The stored log-probs of every response, by its row.
fn stored(scene: &Scene) -> Vec<(i64, Vec<u8>)> {
    let connection = Connection::open(scene.database()).unwrap();
    let mut statement =
        connection.prepare("SELECT response_id, logprobs FROM response_texts").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

fn store(scene: &Scene, rows: &[(i64, Vec<u8>)]) {
    let mut connection = Connection::open(scene.database()).unwrap();
    let changes = connection.transaction().unwrap();
    for (response, logprobs) in rows {
        let update = "UPDATE response_texts SET logprobs = ?2 WHERE response_id = ?1";
        changes.execute(update, rusqlite::params![response, logprobs]).unwrap();
    }
    changes.commit().unwrap();
}

#[test]
fn a_stored_log_prob_that_the_policy_does_not_give_pauses_the_run_before_any_step() {
    let settings = settings()
        .set("run", "iterations_max", "1")
        .set("run", "prompts_per_iteration", "6")
        .set("generate", "max_new_tokens", "16")
        .set("evaluate", "prompts_max", "2");
    let Some(scene) = Scene::real(&settings) else { return };
    let daemon = scene.start();
    queue(&scene);
    frozen(&scene, "u.work = 'logprobs' AND u.stage = 'train'");
    daemon.kill();
    let right = stored(&scene);
    // A defect is planted: every first token has another log-prob.
    let wrong: Vec<_> = right
        .iter()
        .map(|(response, logprobs)| {
            let first = (-9.5_f32).to_le_bytes();
            (*response, [&first[..], &logprobs[4..]].concat())
        })
        .collect();
    store(&scene, &wrong);
    let daemon = scene.start();
    let paused =
        || dump::text(&scene.database(), "SELECT paused_reason FROM runs").filter(|why| why != "-");
    let why = wait::until("the run to pause", paused, || scene.told());
    assert!(why.contains("the log-prob of token 0 is -9.5 as it is stored"), "{why}");
    assert!(why.contains("1/train") && why.contains("of iteration 1, sample"), "{why}");
    let tried = "SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id
                 WHERE u.work = 'train_dpo' AND a.outcome = 'failed' AND a.cause = 'input'";
    assert_eq!(scene.number(tried), 1, "it is not tried again by itself");
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE kind = 'policy'"), 0);
    daemon.terminate();
    // The iteration is as it was frozen; the check is today's.
    scene.configure(&settings.set("train", "rescore_responses", "0"));
    let _daemon = scene.start();
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(1);
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE kind = 'policy'"), 1);
}
