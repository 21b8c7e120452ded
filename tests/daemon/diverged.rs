//! Updates and training jobs that go wrong: the head stays, the cause is told, the loop pauses or goes on.

use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::{dump, wait};

use crate::story;

/// The first update explodes after two steps.
const PLAN: &str = r#"{"faults": [{"name": "boom", "work": "train_dpo", "after": 2,
    "act": {"kind": "fail", "failure": {"diverged": "loss_exploded"}, "exit": false}}]}"#;

fn told(scene: &Scene, sql: &str) -> String {
    dump::text(&scene.database(), sql).unwrap()
}

const HEADS: &str = "SELECT group_concat(policy_in || ' ' || coalesce(policy_out, '-') || ' ' ||
    coalesce(divergence, '-'), '; ') FROM iteration_history";

#[test]
fn an_update_that_went_wrong_pauses_the_run_with_its_cause_and_leaves_the_head() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(PLAN);
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    let run = scene.status()["run"].clone();
    assert_eq!((&run["head"], &run["paused_by"]), (&"initial".into(), &"daemon".into()));
    let reason = run["paused_reason"].as_str().unwrap();
    assert!(reason.contains("update of iteration 1 went wrong (loss_exploded"), "{reason}");
    assert!(reason.contains("most likely the learning rate is too high"), "{reason}");
    let blamed = "SELECT count(*) FROM attempts WHERE counted = 1";
    let kept = "SELECT count(*) FROM checkpoints WHERE kind = 'policy'";
    assert_eq!((scene.number(blamed), scene.number(kept)), (0, 0));
    let states = scene.state().join("runs/main/state");
    let gone = || {
        let left = std::fs::read_dir(&states).map_or(0, Iterator::count);
        (left == 0).then_some(())
    };
    wait::until("the training's own state to go", gone, || scene.told());
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(2);
    assert_eq!(told(&scene, HEADS), "initial - loss_exploded; initial iteration-0002 -");
    assert_eq!(scene.status()["run"]["head"], "iteration-0002");
    story::check_laws(&scene);
}

#[test]
fn the_loop_goes_on_from_the_old_head_where_it_is_asked_to() {
    let settings = Settings::default().set("train", "on_divergence", "\"keep_head\"");
    let scene = Scene::fake(&settings);
    scene.plan(PLAN);
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    assert_eq!(told(&scene, HEADS), "initial - loss_exploded; initial iteration-0002 -");
    assert_eq!(scene.number("SELECT count(*) FROM events WHERE kind = 'run_paused'"), 0);
    // What the update that went wrong was to learn from is learnt from by the next one.
    let from_both = "SELECT count(DISTINCT p.iteration) FROM training_set_members m
        JOIN preferences p ON p.id = m.preference_id JOIN units u ON u.id = m.unit_id
        WHERE u.iteration = 2";
    assert_eq!(scene.number(from_both), 2);
    story::check_laws(&scene);
}
