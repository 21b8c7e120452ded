//! Checkpoints that are altered while an iteration is under way.
//!
//! What nothing relies on yet is made again; what an iteration goes on from takes the iteration back to its
//! parent.

use std::fs;
use std::path::Path;

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings};

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
    assert_eq!(scene.number(cancelled), 1);
    scene.wait_iterations(2);
    let parent = "SELECT c.name FROM iterations i JOIN checkpoints c ON c.id = i.policy_in
                  WHERE i.iteration = 3";
    assert_eq!(dump::text(&scene.database(), parent).as_deref(), Some("initial"));
    assert_eq!(scene.status()["run"]["head"], "iteration-0003");
    let told = "SELECT count(*) FROM events WHERE level IN ('warn', 'error')
                AND message LIKE '%checkpoint iteration-0001 is not sound%'";
    assert!(scene.number(told) >= 2, "the checkpoint and the iteration are told");
}
