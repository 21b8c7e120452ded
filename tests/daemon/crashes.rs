//! `kill -9` of the daemon, and of a worker, in the middle of each kind of work.
//!
//! The worker holds at the chosen place until the test has seen it there, so every kill falls where
//! its name says. Afterwards the run ends with the same rows and the same checkpoints.

use rlhfd_tests::scene::{Scene, Settings, signal};
use rustix::process::Signal;

use crate::story;

/// What is killed.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Daemon,
    Worker,
}

/// A plan by which the worker holds at this point of its first unit of the kind.
fn hold(point: &str) -> String {
    format!(r#"{{"faults": [{{"name": "here", {point}, "act": {{"kind": "hold"}}}}]}}"#)
}

/// Tells the story with one kill at `point`.
fn killed(scene: &Scene, point: &str, victim: Victim) {
    scene.plan(&hold(point));
    let mut daemon = scene.start();
    story::queue(scene);
    let worker = scene.held("here");
    match victim {
        Victim::Worker => signal(worker, Signal::KILL),
        Victim::Daemon => {
            daemon.kill();
            daemon = scene.start();
        }
    }
    scene.wait_iterations(2);
    let counted = "SELECT count(*) FROM attempts WHERE counted = 1";
    assert_eq!(scene.number(counted), 0, "a kill from outside was counted");
    let died = "SELECT count(*) FROM attempts WHERE outcome = 'died'";
    assert!(scene.number(died) >= 1, "nobody noticed the kill");
    drop(daemon);
}

const GENERATE: &str = r#""work": "generate", "purpose": "generate", "after": 1"#;
const LABEL: &str = r#""work": "score", "after": 1"#;
const TRAIN: &str = r#""work": "train_dpo", "after": 3"#;
const EVALUATE: &str = r#""work": "generate", "purpose": "evaluate", "after": 1"#;

fn check(point: &str, victim: Victim) {
    let scene = Scene::fake(&Settings::default());
    killed(&scene, point, victim);
    story::ends_the_same(&scene, point);
}

#[test]
fn the_daemon_dies_while_responses_are_generated() {
    check(GENERATE, Victim::Daemon);
}

#[test]
fn the_daemon_dies_while_responses_are_labelled() {
    check(LABEL, Victim::Daemon);
}

#[test]
fn the_daemon_dies_while_the_policy_is_evaluated() {
    check(EVALUATE, Victim::Daemon);
}

#[test]
fn the_worker_dies_while_responses_are_generated() {
    check(GENERATE, Victim::Worker);
}

#[test]
fn the_worker_dies_while_responses_are_labelled() {
    check(LABEL, Victim::Worker);
}

#[test]
fn the_worker_dies_while_the_policy_is_evaluated() {
    check(EVALUATE, Victim::Worker);
}

/// The first step of the second attempt at the first iteration's training.
const FIRST_STEP: &str = "SELECT a.first_step FROM attempts a JOIN units u ON u.id = a.unit_id
    WHERE u.work = 'train_dpo' AND u.iteration = 1 AND a.number = 2";

#[test]
fn the_daemon_dies_between_two_saves_of_a_training() {
    let scene = Scene::fake(&Settings::default());
    killed(&scene, TRAIN, Victim::Daemon);
    assert_eq!(scene.number(FIRST_STEP), 3, "two of three steps were saved");
    story::ends_the_same(&scene, "daemon, train");
}

#[test]
fn the_worker_dies_between_two_saves_of_a_training() {
    let scene = Scene::fake(&Settings::default());
    killed(&scene, TRAIN, Victim::Worker);
    assert_eq!(scene.number(FIRST_STEP), 3, "two of three steps were saved");
    story::ends_the_same(&scene, "worker, train");
}

#[test]
fn without_resuming_the_second_attempt_begins_at_the_first_step() {
    let mut scene = Scene::fake(&Settings::default());
    scene.environment.push(("RLHFD_TEST_NO_RESUME".into(), "1".into()));
    scene.plan(&hold(TRAIN));
    let _daemon = scene.start();
    story::queue(&scene);
    signal(scene.held("here"), Signal::KILL);
    scene.wait_iterations(1);
    // The two tests above assert 3 here: they would fail if nothing were resumed.
    assert_eq!(scene.number(FIRST_STEP), 1);
}

#[test]
fn the_daemon_dies_when_a_checkpoint_stands_and_has_no_row() {
    let scene = Scene::fake(&Settings::default());
    killed(&scene, r#""work": "published""#, Victim::Daemon);
    story::ends_the_same(&scene, "between publishing and the row");
    let orphans = std::fs::read_dir(scene.state().join("orphans")).into_iter().flatten().count();
    assert_eq!(orphans, 0, "the checkpoint was of use and lies among the orphans");
}

#[test]
fn the_worker_dies_when_a_checkpoint_stands_and_has_no_row() {
    let scene = Scene::fake(&Settings::default());
    killed(&scene, r#""work": "published""#, Victim::Worker);
    story::ends_the_same(&scene, "between publishing and its answer");
}

#[test]
fn ten_kills_at_any_moment_lose_nothing() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(r#"{"ms_per_item": 3, "ms_per_step": 10}"#);
    let mut daemon = scene.start();
    story::queue(&scene);
    for kill in 1..=10 {
        // The next kill falls when some more attempts were begun than at the last one.
        let begun = "SELECT count(*) FROM attempts";
        let before = scene.number(begun);
        let ended = "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL";
        let ask = || {
            (scene.number(begun) >= before + 1 + kill % 3 || scene.number(ended) == 2).then_some(())
        };
        rlhfd_tests::wait::until("some attempts", ask, || scene.told());
        daemon.kill();
        daemon = scene.start();
    }
    story::ends_the_same(&scene, "ten kills");
    drop(daemon);
}
