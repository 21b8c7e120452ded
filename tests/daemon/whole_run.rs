//! One whole run of two iterations, and what stands in the tables and folders after it.

use std::fs;

use rlhfd_protocol::manifest::Manifest;
use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings};

use crate::story;

#[test]
fn two_iterations_run_unattended_and_leave_their_history() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    story::check_laws(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM iteration_history WHERE status = 'done'"), 2);
    // 12 prompts by 3 responses in each of two iterations, every one labelled.
    let responses = "SELECT count(*) FROM responses WHERE purpose = 'generate'";
    assert_eq!(scene.number(responses), 72);
    let steps = "SELECT min(n) FROM (SELECT count(*) AS n FROM training_steps GROUP BY unit_id)";
    assert!(scene.number(steps) >= 4, "the training is too short to be killed between saves");
    // The second iteration trains on the preferences of both.
    let members = "SELECT count(*) FROM training_set_members";
    let expected = "SELECT sum(CASE iteration WHEN 1 THEN 2 ELSE 1 END) FROM preferences";
    assert_eq!(scene.number(members), scene.number(expected));
    let line = "SELECT ancestor FROM checkpoint_lineage WHERE checkpoint = 'main/iteration-0002'
                AND depth = 2";
    assert_eq!(dump::text(&scene.database(), line).unwrap(), "main/initial");
    let reference = "SELECT count(DISTINCT reference) FROM iteration_history";
    assert_eq!(scene.number(reference), 1);
    let evaluated = "SELECT count(*) FROM evaluations WHERE kl_k3 IS NOT NULL AND win_rate
                     BETWEEN 0 AND 1 AND gain_low <= gain AND gain <= gain_high";
    assert!(scene.number(evaluated) >= 2);
    let totals = "SELECT count(*) FROM iteration_history WHERE loss_last IS NULL OR score_mean IS
        NULL OR kl_k3 IS NULL OR eval_win_rate IS NULL OR train_s IS NULL OR device IS NULL";
    assert_eq!(scene.number(totals), 0);
    assert!(daemon.terminate().success());
}

#[test]
fn folders_hold_neither_a_time_nor_an_absolute_path() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    daemon.terminate();
    let run = scene.state().join("runs/main");
    let place = scene.path("").to_string_lossy().into_owned();
    for folder in ["checkpoints/iteration-0001", "checkpoints/iteration-0002", "iterations/0001"] {
        let folder = run.join(folder);
        let text = fs::read(folder.join("manifest.json")).unwrap();
        let manifest: Manifest = serde_json::from_slice(&text).unwrap();
        assert!(manifest.paths_stay_inside());
        assert!(!manifest.files.is_empty());
        for file in &manifest.files {
            let bytes = fs::read(folder.join(&file.path)).unwrap();
            assert_eq!(bytes.len() as u64, file.bytes, "{}", file.path);
            let text = String::from_utf8_lossy(&bytes);
            let found = text.contains(place.trim_end_matches('/'));
            assert!(!found, "{} of {} names a place", file.path, folder.display());
        }
    }
    // A train unit's own state goes once its checkpoint has a row.
    let states = run.join("state");
    let left: Vec<_> = fs::read_dir(&states).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_same_run_twice_gives_the_same_rows_and_hashes() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    story::queue(&scene);
    story::ends_the_same(&scene, "a second undisturbed run");
}

#[test]
fn an_idle_daemon_stays_under_40_mb() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    let idle = daemon.resident_kib();
    println!("idle after two iterations: {idle} KiB resident");
    assert!(idle < 40_000, "the idle daemon holds {idle} KiB");
}
