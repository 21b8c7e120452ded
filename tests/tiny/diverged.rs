//! An absurd learning rate, in a whole run with the real worker: the update is stopped, the head stays.

use rlhfd_tests::dump;
use rlhfd_tests::scene::Scene;
use rlhfd_tests::wait;

use crate::{queue, settings};

#[test]
fn an_absurd_learning_rate_is_stopped_told_and_taken_back() {
    let settings = settings()
        .set("run", "iterations_max", "1")
        .set("run", "prompts_per_iteration", "6")
        .set("generate", "max_new_tokens", "16")
        .set("evaluate", "prompts_max", "2")
        .set("train", "learning_rate", "3.0");
    let Some(scene) = Scene::real(&settings) else { return };
    let _daemon = scene.start();
    queue(&scene);
    let paused =
        || dump::text(&scene.database(), "SELECT paused_reason FROM runs").filter(|why| why != "-");
    let why = wait::until("the run to pause", paused, || scene.told());
    assert!(why.contains("went wrong") && why.contains("the learning rate is too high"), "{why}");
    let stopped =
        "SELECT count(*) FROM iterations i JOIN iteration_totals USING (run_id, iteration)
                   JOIN runs r ON r.id = i.run_id AND r.head_id = r.initial_id
                   WHERE ended_ms IS NOT NULL AND policy_out IS NULL
                   AND divergence IN ('loss_exploded', 'kl_beyond_limit', 'non_finite')";
    assert_eq!(scene.number(stopped), 1);
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE kind = 'policy'"), 0);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
}
