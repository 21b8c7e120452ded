//! Configurations, databases and places that are wrong when the daemon starts.

use std::fs;
use std::path::Path;

use rlhfd_tests::scene::{Scene, Settings, text};
use rlhfd_tests::{dump, wait};
use rusqlite::Connection;

/// Starts a daemon that must refuse, and gives its exit code and words.
fn refused(scene: &Scene) -> (i32, String) {
    let mut daemon = scene.start_unasked();
    let code = daemon.ended().code().unwrap_or(-1);
    (code, scene.log())
}

#[test]
fn a_wrong_configuration_is_told_whole_and_by_line() {
    let cases: [(Settings, &[&str]); 12] = [
        (
            Settings::default().set("train", "learning_rat", "1.0"),
            &["learning_rat", "learning_rate"],
        ),
        (Settings::default().with("trian", "epochs = 1"), &["trian", "train"]),
        (Settings::default().set("train", "epochs", "\"many\""), &["epochs", "many"]),
        (Settings::default().set("train", "epochs", "0"), &["epochs"]),
        (Settings::default().set("train", "label_smoothing", "0.1"), &["cdpo"]),
        (
            Settings::default().with("[generate.arms]", "temperature = 1.0\nn = 0"),
            &["generate.arms.n", "is 0"],
        ),
        (Settings::default().set("run", "seed", "-1"), &["seed"]),
        (Settings::default().set("scheduler", "unit_tokens_cpu", "[]"), &["unit_tokens_cpu"]),
        (Settings::default().set("label", "length_penalty", "0.001"), &["length_unit"]),
        (Settings::default().set("[label.scorers]", "canary", "true"), &["canaries alone"]),
        (Settings::default().set("[label.scorers]", "weight", "0"), &["canary = true"]),
        (Settings::default().with("pair", "rule = \"threshold\""), &["threshold = 0.5"]),
    ];
    for (settings, says) in cases {
        let scene = Scene::fake(&settings);
        let (code, said) = refused(&scene);
        assert_eq!(code, 78, "{said}");
        for word in says {
            assert!(said.contains(word), "no word of {word:?} in: {said}");
        }
        assert!(!scene.database().exists(), "a wrong configuration made a database: {said}");
        let check = scene.rlhfd(&["check"]).output().unwrap();
        assert!(!check.status.success());
    }
}

#[test]
fn a_configuration_that_is_no_toml_names_the_line() {
    let scene = Scene::fake(&Settings::default());
    fs::write(scene.path("rlhfd.toml"), "[run]\nseed = = 3\n").unwrap();
    let (code, said) = refused(&scene);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("line 2") || said.contains(":2"), "{said}");
}

#[test]
fn a_missing_configuration_is_named() {
    let scene = Scene::fake(&Settings::default());
    fs::remove_file(scene.path("rlhfd.toml")).unwrap();
    let (code, said) = refused(&scene);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("rlhfd.toml"), "{said}");
}

/// A database as a daemon leaves it.
fn with_database() -> Scene {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    scene.add_prompts("a", 0, 3, "0");
    assert!(daemon.terminate().success());
    scene
}

fn file(scene: &Scene) -> std::path::PathBuf {
    scene.state().join("db/rlhfd.db")
}

/// The daemon refuses this database with these words, and leaves every byte as it was.
fn refuses_database(scene: &Scene, says: &[&str]) {
    let before = fs::read(file(scene)).unwrap();
    fs::write(scene.path("daemon.log"), "").unwrap();
    let (code, said) = refused(scene);
    assert!(code != 0 && code != 101 && code != 134, "exit {code}: {said}");
    for word in says {
        assert!(said.contains(word), "no word of {word:?} in: {said}");
    }
    assert!(fs::read(file(scene)).unwrap() == before, "the database was touched");
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let scene = with_database();
    let connection = Connection::open(file(&scene)).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    drop(connection);
    refuses_database(&scene, &["999", "newer"]);
}

#[test]
fn the_database_of_another_application_is_refused_and_left_alone() {
    let scene = with_database();
    let connection = Connection::open(file(&scene)).unwrap();
    connection.pragma_update(None, "application_id", 42).unwrap();
    drop(connection);
    refuses_database(&scene, &["application"]);
}

#[test]
fn a_damaged_or_cut_database_is_refused_and_left_alone() {
    let scene = with_database();
    let whole = fs::read(file(&scene)).unwrap();
    let mut damaged = whole.clone();
    damaged[..16].copy_from_slice(b"not a database!!");
    fs::write(file(&scene), &damaged).unwrap();
    refuses_database(&scene, &["rlhfd.db"]);
    fs::write(file(&scene), &whole[..whole.len() / 2]).unwrap();
    refuses_database(&scene, &["rlhfd.db"]);
    fs::write(file(&scene), "Dear diary").unwrap();
    refuses_database(&scene, &["rlhfd.db"]);
    // Put back, everything is there again.
    fs::write(file(&scene), &whole).unwrap();
    let _daemon = scene.start();
    assert_eq!(scene.number("SELECT count(*) FROM prompts"), 3);
}

#[test]
fn the_full_integrity_check_belongs_to_rlhfd_check() {
    let scene = with_database();
    let mut damaged = fs::read(file(&scene)).unwrap();
    let from = damaged.len() - 5 * 4096;
    // Deep inside: the header is well, a table is not.
    damaged[from..].fill(0xab);
    fs::write(file(&scene), &damaged).unwrap();
    let output = scene.rlhfd(&["check"]).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("rlhfd.db") || said.contains("database"), "{said}");
    assert!(fs::read(file(&scene)).unwrap() == damaged, "check wrote to the database");
}

#[test]
fn a_socket_that_another_daemon_serves_is_not_taken_over() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let other = Scene::fake(&Settings::default());
    let output = other.rlhfd_at(&["run"], &scene.socket()).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("socket"), "{said}");
    assert_eq!(scene.status()["run"]["name"], "main");
}

#[test]
fn a_stale_socket_file_is_no_hindrance() {
    let scene = Scene::fake(&Settings::default());
    drop(std::os::unix::net::UnixListener::bind(scene.socket()).unwrap());
    let _daemon = scene.start();
    assert_eq!(scene.status()["run"]["name"], "main");
}

#[test]
fn a_file_at_the_sockets_place_is_left_alone() {
    let scene = Scene::fake(&Settings::default());
    fs::write(scene.socket(), "my notes").unwrap();
    let (code, said) = refused(&scene);
    assert!(code != 0 && code != 101, "{said}");
    assert!(said.contains("socket"), "{said}");
    assert_eq!(fs::read_to_string(scene.socket()).unwrap(), "my notes");
}

#[test]
fn a_state_folder_that_is_a_file_is_named() {
    let scene = Scene::fake(&Settings::default());
    fs::write(scene.state(), "").unwrap();
    let (code, said) = refused(&scene);
    assert!(code != 0 && code != 101, "{said}");
    assert!(said.contains("state"), "{said}");
}

/// The daemon serves, waits, and says these words in `status` and in `check`.
fn waits_for(scene: &Scene, says: &[&str], check_says: &[&str]) {
    let _daemon = scene.start();
    scene.add_prompts("a", 0, 20, "0");
    let ask = || {
        let status = scene.status()["waits_for"].to_string();
        says.iter().all(|word| status.contains(word)).then_some(())
    };
    wait::until(&format!("status to say {says:?}"), ask, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM responses"), 0);
    assert_eq!(dump::text(&scene.database(), "SELECT count(*) FROM iterations").unwrap(), "0");
    let output = scene.rlhfd(&["check"]).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!output.status.success(), "check found nothing: {said}");
    for word in check_says {
        assert!(said.contains(word), "check: no word of {word:?} in: {said}");
    }
}

fn overwrite(scene: &Scene, path: &str, change: impl Fn(&Path)) {
    change(&scene.path(path));
}

#[test]
fn a_missing_model_does_not_stop_the_daemon() {
    let scene = Scene::fake(&Settings::default());
    overwrite(&scene, "models/reward", |path| fs::remove_dir_all(path).unwrap());
    waits_for(&scene, &["reward"], &["reward"]);
    // What lies inside a folder is the real worker's to judge.
    let Some(scene) = Scene::real(&Settings::default()) else { return };
    overwrite(&scene, "models/policy/model.safetensors", |path| fs::remove_file(path).unwrap());
    waits_for(&scene, &["policy", "missing"], &["policy", "safetensors"]);
}

#[test]
fn a_policy_where_a_reward_model_is_wanted_is_told() {
    let settings =
        Settings::default().with("[label.scorers]", "name = \"reward\"\nmodel = \"models/policy\"");
    let Some(scene) = Scene::real(&settings) else { return };
    waits_for(&scene, &["policy", "reward model"], &["policy", "reward model"]);
    // A canary is looked at as the others are.
    let watch = "name = \"reward\"\nmodel = \"models/reward\"\n\n[[label.scorers]]\n\
                 name = \"watch\"\nmodel = \"models/policy\"\ncanary = true";
    let settings = Settings::default().with("[label.scorers]", watch);
    let Some(scene) = Scene::real(&settings) else { return };
    waits_for(&scene, &["policy", "reward model"], &["policy", "reward model"]);
}

#[test]
fn an_adapters_target_that_matches_nothing_is_told_before_any_work() {
    let settings = Settings::default().set("train", "lora_rank", "2").set(
        "train",
        "lora_targets",
        "[\"q_proj\", \"q_pro\"]",
    );
    let Some(scene) = Scene::real(&settings) else { return };
    let says = &["lora_targets", "q_pro", "no linear map"];
    waits_for(&scene, says, says);
}

#[test]
fn weights_that_are_cut_short_are_told() {
    let Some(scene) = Scene::real(&Settings::default()) else { return };
    overwrite(&scene, "models/policy/model.safetensors", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
    });
    waits_for(&scene, &["models/policy", "byte"], &["safetensors"]);
}

#[test]
fn too_little_free_space_begins_nothing_and_says_so() {
    // More free space than any disk has is asked for.
    let settings = Settings::default().set("store", "disk_free_min_mib", "1000000000000");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    let ask =
        || scene.status()["waits_for"].to_string().contains("disk_free_min_mib").then_some(());
    wait::until("status to speak of the disk", ask, || scene.told());
    scene.add_prompts("a", 0, 20, "0");
    wait::until("status to speak of the disk", ask, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    assert_eq!(scene.number("SELECT count(*) FROM responses"), 0);
}

#[test]
fn a_gpu_that_is_not_there_is_told() {
    let settings = Settings::default().with("devices", "use = [\"GPU-00000000-dead\"]");
    let scene = Scene::fake(&settings);
    waits_for(&scene, &["GPU-00000000-dead"], &["GPU-00000000-dead"]);
}
