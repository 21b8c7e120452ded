//! Checkpoints that are altered while an iteration is under way.
//!
//! What nothing relies on yet is made again; what an iteration goes on from takes the iteration back to its
//! parent. A worker that finds it says so; the daemon looks itself, and acts by what it finds.

use std::fs;
use std::path::Path;

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, signal};
use rustix::process::Signal;

use crate::story;

/// Another bit in the middle of a file.
fn alter(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn weights(scene: &Scene, checkpoint: &str) -> std::path::PathBuf {
    scene.state().join("runs/main/checkpoints").join(checkpoint).join("model.safetensors")
}

const UNSOUND: &str = "SELECT count(*) FROM attempts WHERE cause = 'unsound' AND counted = 0";

/// A scene whose training holds when its checkpoint's folder stands and nobody knows of it yet.
fn holds_when_published() -> Scene {
    let scene = Scene::fake(&Settings::default());
    scene.plan(r#"{"faults": [{"name": "here", "work": "published", "act": {"kind": "hold"}}]}"#);
    scene
}

#[test]
fn a_checkpoint_that_is_altered_before_its_row_is_trained_again() {
    let scene = holds_when_published();
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    alter(&weights(&scene, "iteration-0001"));
    scene.release("here");
    story::ends_the_same(&scene, "an altered checkpoint without a row");
    // The training's attempt, and that of the checkpoint unit.
    assert_eq!(scene.number(UNSOUND), 2);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    let told = "SELECT count(*) FROM events WHERE kind = 'checkpoint_unsound'";
    assert_eq!(scene.number(told), 1);
}

#[test]
fn a_checkpoint_that_is_gone_before_its_row_is_trained_again() {
    let scene = holds_when_published();
    let daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    daemon.kill();
    fs::remove_dir_all(weights(&scene, "iteration-0001").parent().unwrap()).unwrap();
    let _daemon = scene.start();
    story::ends_the_same(&scene, "a checkpoint that is gone");
}

#[test]
fn an_iteration_whose_policy_is_altered_goes_back_to_its_parent() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(r#"{"ms_per_item": 20}"#);
    let daemon = scene.start();
    story::queue(&scene);
    let begun = "SELECT count(*) FROM responses WHERE purpose = 'generate' AND iteration = 2";
    scene.wait_number("the second iteration's first responses", begun, 1);
    daemon.kill();
    alter(&weights(&scene, "iteration-0001"));
    let _daemon = scene.start();
    let cancelled =
        "SELECT count(*) FROM iterations WHERE iteration = 2 AND cancelled_ms IS NOT NULL";
    scene.wait_number("the iteration to be cancelled", cancelled, 1);
    scene.wait_iterations(2);
    let parent = "SELECT c.name FROM iterations i JOIN checkpoints c ON c.id = i.policy_in
                  WHERE i.iteration = 3";
    assert_eq!(dump::text(&scene.database(), parent).as_deref(), Some("initial"));
    assert_eq!(scene.status()["run"]["head"], "iteration-0003");
    let told = "SELECT count(*) FROM events WHERE level IN ('warn', 'error')
                AND message LIKE '%checkpoint iteration-0001 is not sound%'";
    assert!(scene.number(told) >= 2, "the checkpoint and the iteration are told");
}

/// The second iteration's first unit of generation fails by this word, where there is one, after its policy was
/// harmed or not; the daemon runs on.
fn told_by_a_worker(failure: Option<&str>, harm: impl Fn(&Path)) -> Scene {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    scene.add_prompts("first", 0, 14, "0");
    scene.wait_iterations(1);
    harm(&weights(&scene, "iteration-0001"));
    let fault = |failure| {
        format!(
            r#"{{"faults": [{{"name": "told", "work": "generate", "purpose": "generate",
                "act": {{"kind": "fail", "failure": "{failure}", "exit": false}}}}]}}"#
        )
    };
    // Who comes next has the fault in its plan.
    scene.plan(&failure.map_or("{}".to_owned(), fault));
    for worker in daemon.workers() {
        signal(worker, Signal::KILL);
    }
    scene.add_prompts("second", 20, 50, "0");
    scene.wait_iterations(2);
    assert!(daemon.terminate().success());
    scene
}

/// What an iteration was begun from, and whether it was cancelled.
fn begun(scene: &Scene, iteration: u32) -> String {
    let sql = format!(
        "SELECT c.name || ' ' || (i.cancelled_ms IS NOT NULL) FROM iterations i
         JOIN checkpoints c ON c.id = i.policy_in WHERE i.iteration = {iteration}"
    );
    dump::text(&scene.database(), &sql).unwrap_or_default()
}

fn gone_back_from(scene: &Scene) {
    assert_eq!(begun(scene, 2), "iteration-0001 1");
    assert_eq!(begun(scene, 3), "initial 0");
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    assert_eq!(scene.number("SELECT count(*) FROM units WHERE state = 'set_aside'"), 0);
}

#[test]
fn a_policy_that_a_worker_finds_altered_is_gone_back_from_while_the_daemon_runs() {
    gone_back_from(&told_by_a_worker(None, alter));
}

#[test]
fn a_policy_that_is_gone_is_no_matter_of_the_unit_that_finds_it() {
    gone_back_from(&told_by_a_worker(Some("input"), |weights| {
        fs::remove_file(weights.with_file_name("manifest.json")).unwrap();
    }));
}

#[test]
fn a_worker_that_finds_a_whole_policy_altered_has_its_unit_done_again() {
    let scene = told_by_a_worker(Some("unsound"), |_| ());
    assert_eq!(begun(&scene, 2), "iteration-0001 0");
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 1);
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE sound = 0"), 0);
}
