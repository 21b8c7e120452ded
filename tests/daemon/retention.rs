//! What nobody needs any more goes, one checkpoint at a time, and a removal that was cut off is made good.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use rlhfd_tests::models::copy;
use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::{dump, wait};
use rusqlite::Connection;

use crate::story;

fn settings(keep: &str) -> Settings {
    Settings::default()
        .set("run", "iterations_max", "5")
        .set("run", "prompts_per_iteration", "6")
        .set("store", "keep_checkpoints", keep)
        .set("store", "keep_responses", keep)
}

/// A run of five iterations that kept everything.
fn ended() -> Scene {
    let scene = Scene::fake(&settings("0"));
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(5);
    scene.ctl_ok(&["pin", "iteration-0001"]);
    assert!(daemon.terminate().success());
    scene
}

fn folder(scene: &Scene, iteration: u32) -> PathBuf {
    scene.state().join(format!("runs/main/checkpoints/iteration-{iteration:04}"))
}

fn standing(scene: &Scene) -> BTreeSet<u32> {
    (1..=5).filter(|iteration| folder(scene, *iteration).is_dir()).collect()
}

/// What stays of five: the head with the policy before it, the best one, and those given.
fn needed(scene: &Scene, others: &[u32]) -> BTreeSet<u32> {
    let best = "SELECT coalesce(c.iteration, 5) FROM runs r JOIN checkpoints c ON c.id = r.best_id";
    let best = u32::try_from(scene.number(best)).unwrap();
    others.iter().copied().chain([4, 5, best]).collect()
}

fn wait_standing(scene: &Scene, wanted: &BTreeSet<u32>) {
    let left = || (standing(scene) == *wanted && begun(scene) == 0).then_some(());
    wait::until(&format!("the checkpoints {wanted:?} to be left"), left, || scene.told());
}

/// Removals that have not come to their end.
fn begun(scene: &Scene) -> i64 {
    scene.number("SELECT count(*) FROM checkpoints WHERE removal_ms NOTNULL AND removed_ms IS NULL")
}

#[test]
fn old_checkpoints_go_but_those_that_are_needed_or_pinned() {
    let scene = ended();
    assert_eq!(standing(&scene), (1..=5).collect());
    let texts = "SELECT count(*) FROM response_texts t JOIN responses r ON r.id = t.response_id
                 WHERE r.purpose = 'generate'";
    let before = scene.number(texts);
    scene.configure(&settings("1"));
    let _daemon = scene.start();
    wait_standing(&scene, &needed(&scene, &[1]));
    scene.ctl_ok(&["unpin", "iteration-0001"]);
    wait_standing(&scene, &needed(&scene, &[]));
    let rows = "SELECT count(*) FROM checkpoints WHERE kind = 'policy'";
    assert_eq!(scene.number(rows), 5, "rows stay");
    let gone = "SELECT count(*) FROM checkpoints WHERE removed_ms NOTNULL AND removal_why NOTNULL
                AND sound = 0";
    let removed = 5 - i64::try_from(standing(&scene).len()).unwrap();
    assert!(removed >= 2);
    assert_eq!(scene.number(gone), removed);
    let told = "SELECT count(*) FROM events WHERE kind = 'checkpoint_removed'";
    assert_eq!(scene.number(told), removed);
    let shown = scene.ctl_ok(&["checkpoints"]);
    assert!(shown.contains("removed)"), "{shown}");
    // Whoever wants one of them is told what became of it.
    let first = (1..=5).find(|iteration| !folder(&scene, *iteration).is_dir()).unwrap();
    let refused = scene.ctl(&["pin", &format!("iteration-{first:04}")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("no files any more"), "{said}");
    assert!(!scene.ctl(&["rollback", &first.to_string()]).status.success());
    // Of the iterations before the newest, only what preferences have keeps its text.
    let unpaired =
        "SELECT count(*) = 0 FROM response_texts t JOIN responses r ON r.id = t.response_id
        WHERE r.purpose = 'generate' AND r.iteration <= 4 AND NOT EXISTS (
            SELECT 1 FROM preferences p WHERE p.chosen_id = r.id OR p.rejected_id = r.id)";
    scene.wait_number("old texts to be swept", unpaired, 1);
    assert!(scene.number(texts) < before);
    let inputs = fs::read_dir(scene.state().join("runs/main/iterations")).unwrap().count();
    assert_eq!(inputs, 1, "the newest iteration's input stays");
    story::check_laws(&scene);
}

#[test]
fn a_removal_that_was_cut_off_is_made_good_at_the_next_start() {
    let scene = ended();
    // Marked, and nothing done yet; marked, and renamed already; marked, and gone.
    let aside = folder(&scene, 3).with_file_name(".iteration-0003.removed");
    fs::rename(folder(&scene, 3), &aside).unwrap();
    fs::remove_dir_all(folder(&scene, 4)).unwrap();
    let database = Connection::open(scene.database()).unwrap();
    database
        .execute_batch(
            "UPDATE checkpoints SET removal_ms = 1, removal_why = 'a test', sound = 0
             WHERE iteration IN (2, 3, 4)",
        )
        .unwrap();
    drop(database);
    let copy_of = scene.path("copy");
    copy(&folder(&scene, 2), &copy_of);
    let daemon = scene.start();
    assert_eq!(standing(&scene), BTreeSet::from([1, 5]));
    assert!(!aside.exists());
    let ended = "SELECT count(*) FROM checkpoints WHERE removed_ms NOTNULL";
    assert_eq!((begun(&scene), scene.number(ended)), (0, 3));
    assert_eq!(scene.status()["run"]["head"], "iteration-0005");
    daemon.terminate();
    // Done again it changes nothing; and a folder that a person brings back is taken up.
    copy(&copy_of, &folder(&scene, 2));
    let _daemon = scene.start();
    assert_eq!(scene.number(ended), 2);
    let back =
        "SELECT name FROM checkpoints WHERE iteration = 2 AND sound = 1 AND removal_ms IS NULL";
    assert_eq!(dump::text(&scene.database(), back).as_deref(), Some("iteration-0002"));
}

#[test]
fn a_state_folder_at_its_budget_pauses_and_goes_on_when_there_is_room() {
    let settings =
        Settings::default().set("store", "disk_probe_ms", "100").set("store", "budget_mib", "12");
    let scene = Scene::fake(&settings);
    fs::create_dir_all(scene.state()).unwrap();
    let ballast = scene.state().join("ballast");
    fs::write(&ballast, vec![0; 13 << 20]).unwrap();
    let _daemon = scene.start();
    story::queue(&scene);
    let told = || scene.status().to_string().contains("[store] budget_mib").then_some(());
    wait::until("status to speak of the budget", told, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    fs::remove_file(&ballast).unwrap();
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

#[test]
fn a_training_does_not_begin_where_its_checkpoint_would_not_fit() {
    let settings = Settings::default()
        .set("run", "iterations_max", "1")
        .set("store", "disk_probe_ms", "100")
        .set("store", "budget_mib", "12");
    let scene = Scene::fake(&settings);
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "logprobs", "after": 1, "act": {"kind": "hold"}}]}"#,
    );
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    let ballast = scene.state().join("ballast");
    fs::write(&ballast, vec![0; 13 << 20]).unwrap();
    let told =
        || scene.status()["waits_for"].to_string().contains("[store] budget_mib").then_some(());
    wait::until("status to speak of the budget", told, || scene.told());
    scene.release("here");
    // What runs ends, and its rows are kept; nothing begins after it.
    let asked = "SELECT count(*) FROM units WHERE work = 'logprobs' AND state = 'done'";
    scene.wait_number("the running unit to end", asked, 1);
    let trained = "SELECT count(*) FROM training_steps";
    assert_eq!(scene.number(trained), 0);
    fs::remove_file(&ballast).unwrap();
    scene.wait_iterations(1);
    assert!(scene.number(trained) > 0);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    story::check_laws(&scene);
}

/// One more iteration, of the four prompts that are left.
fn sixth(settings: Settings) -> Settings {
    settings.set("run", "iterations_max", "6").set("run", "prompts_per_iteration", "4")
}

#[test]
fn a_state_folder_full_of_what_nobody_needs_is_tidied_and_goes_on() {
    let scene = ended();
    // Superfluous checkpoints fill the budget; nothing but their removal makes room.
    for iteration in [2, 3] {
        fs::write(folder(&scene, iteration).join("ballast"), vec![0; 20 << 20]).unwrap();
    }
    let settings =
        settings("1").set("store", "disk_probe_ms", "100").set("store", "budget_mib", "30");
    scene.configure(&sixth(settings));
    let _daemon = scene.start();
    scene.wait_iterations(6);
    assert!(!folder(&scene, 2).exists() && !folder(&scene, 3).exists());
    story::check_laws(&scene);
}

#[test]
fn a_folder_that_does_not_go_is_told_once_and_holds_up_nothing() {
    let scene = ended();
    // Its removal was begun, and what stands there is no folder: it fails, for root too.
    fs::remove_dir_all(folder(&scene, 2)).unwrap();
    fs::write(folder(&scene, 2), "x").unwrap();
    let database = Connection::open(scene.database()).unwrap();
    let begin = "UPDATE checkpoints SET removal_ms = 1, sound = 0 WHERE iteration = 2";
    database.execute_batch(begin).unwrap();
    drop(database);
    scene.configure(&sixth(settings("1")));
    let _daemon = scene.start();
    scene.wait_iterations(6);
    let gone = "SELECT count(*) FROM checkpoints WHERE removed_ms NOTNULL";
    scene.wait_number("another one to go", gone, 1);
    let one_stays = || (begun(&scene) == 1).then_some(());
    wait::until("no other removal to be under way", one_stays, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM events WHERE kind = 'folder_stuck'"), 1);
    assert!(!scene.status().to_string().contains("cannot be written"));
}
