//! The check before the first step, in a whole run: a stored log-prob that the policy does not give again
//! stops the update until a person looked.

use rlhfd_tests::dump;
use rlhfd_tests::scene::Scene;
use rlhfd_tests::wait;
use rusqlite::Connection;

use crate::{queue, settings};

/// A defect is planted: the first token of every response is stored with -9.5 as its log-prob.
const PLANT: &str = "CREATE TRIGGER plant AFTER INSERT ON response_texts BEGIN
    UPDATE response_texts SET logprobs = CAST(x'000018C1' || substr(new.logprobs, 5) AS BLOB)
    WHERE response_id = new.response_id; END";

fn change(scene: &Scene, sql: &str) {
    let connection = Connection::open(scene.database()).expect("the database");
    connection.busy_timeout(std::time::Duration::from_secs(30)).expect("a timeout");
    connection.execute_batch(sql).expect(sql);
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
    change(&scene, PLANT);
    queue(&scene);
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
    change(&scene, "DROP TRIGGER plant");
    // The iteration is as it was frozen; the check is today's.
    scene.configure(&settings.set("train", "rescore_responses", "0"));
    let _daemon = scene.start();
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(1);
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE kind = 'policy'"), 1);
}
