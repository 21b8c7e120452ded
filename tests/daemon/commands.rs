//! pause, resume, cancel, start, a changed configuration, and two daemons at one place.

use rlhfd_tests::scene::{Scene, Settings, text};
use rlhfd_tests::wait;

use crate::story;

/// Starts a story whose worker holds in its first generation.
fn held_in_generate(scene: &Scene) {
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "generate", "after": 1,
            "act": {"kind": "hold"}}]}"#,
    );
}

#[test]
fn pause_lets_running_units_finish_and_resume_goes_on() {
    let scene = Scene::fake(&Settings::default());
    held_in_generate(&scene);
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    scene.ctl_ok(&["pause"]);
    scene.release("here");
    let running = "SELECT count(*) = 0 FROM units WHERE state = 'running'";
    scene.wait_number("running units to finish", running, 1);
    let done = "SELECT count(*) FROM units WHERE state = 'done' AND work <> 'probe'";
    let before = scene.number(done);
    assert_eq!(scene.status()["run"]["paused_by"], "operator");
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'"), 0);
    // Nothing new begins: a second question, and a second pause, change nothing.
    scene.ctl_ok(&["pause"]);
    assert_eq!(scene.number(done), before);
    scene.ctl_ok(&["resume"]);
    story::ends_the_same(&scene, "a pause");
}

#[test]
fn a_pause_outlives_the_daemon() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    scene.ctl_ok(&["pause"]);
    daemon.kill();
    let _daemon = scene.start();
    story::queue(&scene);
    assert_eq!(scene.status()["run"]["paused_by"], "operator");
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    scene.ctl_ok(&["resume"]);
    story::ends_the_same(&scene, "a pause over a restart");
}

#[test]
fn cancel_gives_the_prompts_back_and_keeps_the_rows() {
    let scene = Scene::fake(&Settings::default());
    held_in_generate(&scene);
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    let fresh = |scene: &Scene| scene.status()["prompts"]["fresh"].as_u64().unwrap();
    let before = fresh(&scene);
    scene.ctl_ok(&["pause"]);
    scene.ctl_ok(&["cancel"]);
    scene.release("here");
    let returned = "SELECT count(*) FROM draws WHERE returned_ms IS NOT NULL";
    assert_eq!(scene.number(returned), 12);
    assert_eq!(fresh(&scene), before + 12);
    let history = "SELECT count(*) FROM iteration_history WHERE status = 'cancelled'";
    assert_eq!(scene.number(history), 1);
    // The prompts that came back are drawn again.
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(2);
    story::check_laws(&scene);
    let again = "SELECT count(*) FROM draws a JOIN draws b ON a.prompt_id = b.prompt_id
                 WHERE a.iteration = 1 AND b.iteration > 1";
    assert_eq!(scene.number(again), 12);
}

#[test]
fn too_few_prompts_wait_and_start_forces_them() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    scene.add_prompts("few", 0, 6, "0");
    let waits = || {
        let status = scene.status()["waits_for"].to_string();
        (status.contains("6 of 12") && status.contains("rlhfctl start")).then_some(())
    };
    wait::until("status to say what it waits for", waits, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    scene.ctl_ok(&["start"]);
    scene.wait_iterations(1);
    assert_eq!(scene.number("SELECT prompts FROM iteration_history"), 6);
}

#[test]
fn take_rest_starts_with_what_there_is() {
    let settings =
        Settings::default().set("run", "when_short", "\"take_rest\"").set("run", "wait_max_s", "1");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    scene.add_prompts("few", 0, 6, "0");
    scene.wait_iterations(1);
    assert_eq!(scene.number("SELECT prompts FROM iteration_history"), 6);
}

#[test]
fn sets_share_a_draw_and_the_pool_starts_over_where_it_is_asked_for() {
    let scene = Scene::fake(&Settings::default().set("run", "reuse_prompts", "true"));
    held_in_generate(&scene);
    let _daemon = scene.start();
    scene.ctl_ok(&["pause"]);
    let add = |set: &str, from, to, more: &[&str]| {
        let file = scene.prompts(set, from, to);
        let words = ["prompts", "add", file.to_str().unwrap(), "--set", set];
        scene.ctl_ok(&[&words, more].concat());
    };
    add("heavy", 0, 9, &["--weight", "3"]);
    add("light", 20, 29, &[]);
    scene.ctl_ok(&["resume"]);
    scene.held("here");
    // 12 by 3 : 1. What is queued while the iteration runs waits for the next one.
    add("urgent", 40, 42, &["--priority", "-1"]);
    scene.ctl_ok(&["prompts", "set", "urgent", "--priority", "5", "--weight", "2"]);
    let list = scene.ctl_ok(&["prompts", "list"]);
    for row in ["heavy", "light", "urgent"] {
        assert!(list.lines().any(|line| line.starts_with(row)), "{list}");
    }
    let urgent = list.lines().find(|line| line.starts_with("urgent")).unwrap();
    let words: Vec<&str> = urgent.split_whitespace().collect();
    assert_eq!(words, ["urgent", "2", "2", "0", "0", "0", "5", "2"]);
    scene.release("here");
    scene.wait_iterations(2);
    story::check_laws(&scene);
    let drawn = |iteration, set: &str, used_before| {
        scene.number(&format!(
            "SELECT count(*) FROM draws d JOIN prompts p ON p.id = d.prompt_id
             JOIN uploads u ON u.id = p.upload_id
             WHERE d.iteration = {iteration} AND u.name = '{set}' AND d.used_before = {used_before}"
        ))
    };
    assert_eq!((drawn(1, "heavy", 0), drawn(1, "light", 0)), (9, 3));
    assert_eq!((drawn(2, "urgent", 0), drawn(2, "light", 0)), (2, 6));
    let again = "SELECT count(*) FROM draws WHERE iteration = 2 AND used_before = 1";
    assert_eq!(scene.number(again), 4);
}

#[test]
fn a_changed_configuration_applies_from_the_next_iteration() {
    let scene = Scene::fake(&Settings::default());
    held_in_generate(&scene);
    let daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    daemon.kill();
    scene.configure(&Settings::default().set("generate", "max_new_tokens", "6"));
    let _daemon = scene.start();
    let told = || {
        let pending = scene.status()["config_pending"].to_string();
        pending.contains("max_new_tokens").then_some(())
    };
    wait::until("status to tell of the change", told, || scene.told());
    scene.wait_iterations(2);
    let longest = |iteration: i64| {
        scene.number(&format!(
            "SELECT max(tokens) FROM responses WHERE purpose = 'generate'
             AND iteration = {iteration}"
        ))
    };
    assert_eq!((longest(1), longest(2)), (8, 6));
    let configs = "SELECT count(DISTINCT config_sha256) FROM iterations";
    assert_eq!(scene.number(configs), 2);
}

#[test]
fn another_seed_under_the_same_name_is_refused() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    assert!(daemon.terminate().success());
    let rows = scene.number("SELECT count(*) FROM runs");
    scene.configure(&Settings::default().set("run", "seed", "8"));
    let daemon = scene.start();
    let told = || {
        let said = scene.status()["waits_for"].to_string();
        (said.contains("seed") && said.contains("new name in [run]")).then_some(())
    };
    wait::until("status to name the seed and the way out", told, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM runs"), rows);
    daemon.kill();
    let check = scene.rlhfd(&["check"]).output().unwrap();
    let said = text(&check.stdout);
    assert!(!check.status.success() && said.contains("the seed 7"), "{said}");
    // A new name is the way out, and both runs are listed.
    let named = Settings::default().set("run", "seed", "8").set("run", "name", "\"second\"");
    scene.configure(&named);
    let _daemon = scene.start();
    let runs = scene.ctl_ok(&["runs"]);
    assert!(runs.contains("main") && runs.contains("second"), "{runs}");
}

#[test]
fn two_daemons_on_one_state_folder_exclude_each_other() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let output = scene.rlhfd(&["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("another rlhfd"), "{}", text(&output.stderr));
    // The first one goes on serving.
    assert_eq!(scene.status()["run"]["name"], "main");
}

#[test]
fn sigterm_ends_the_daemon_cleanly_and_the_work_goes_on_later() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(r#"{"ms_per_item": 5}"#);
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_number("some units", "SELECT count(*) FROM units WHERE state = 'done'", 3);
    assert!(daemon.terminate().success());
    let counted = "SELECT count(*) FROM attempts WHERE counted = 1";
    assert_eq!(scene.number(counted), 0);
    assert!(!scene.socket().exists(), "the socket's file stays behind");
    let _daemon = scene.start();
    story::ends_the_same(&scene, "a clean stop and a new start");
}

#[test]
fn a_reward_model_is_trained_by_a_job_and_then_used() {
    let settings = Settings::default()
        .with("[label.scorers]", "name = \"reward\"\njob = \"reward/main\"")
        .with("reward", "batch_pairs = 4\nepochs = 1");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    story::queue(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    let waits = || scene.status()["waits_for"].to_string().contains("reward/main").then_some(());
    wait::until("status to wait for the job", waits, || scene.told());
    let pair = |n: usize| {
        format!("{{\"prompt\": \"tell {n}\", \"chosen\": \"ee {n}\", \"rejected\": \"z {n}\"}}\n")
    };
    let data = scene.write("pairs.jsonl", &(0..10).map(pair).collect::<String>());
    let data = data.to_string_lossy().into_owned();
    scene.ctl_ok(&["train", "reward", "--data", &data]);
    scene.wait_iterations(2);
    story::check_laws(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE kind = 'reward'"), 1);
    assert_eq!(scene.number("SELECT count(*) FROM training_jobs WHERE status = 'done'"), 1);
}

#[test]
fn the_reserved_prompts_may_grow_between_iterations() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    // Few enough that the second iteration waits.
    scene.add_prompts("first", 0, 20, "0.3");
    scene.wait_iterations(1);
    let evaluated = "SELECT prompts FROM evaluations ORDER BY iteration DESC LIMIT 1";
    let before = scene.number(evaluated);
    scene.add_prompts("second", 100, 130, "0.3");
    scene.wait_iterations(2);
    story::check_laws(&scene);
    let after = scene.number(evaluated);
    assert!(before >= 1 && after > before, "{before}, then {after}");
    // The initial policy answered each prompt once.
    let twice = "SELECT count(*) FROM (SELECT 1 FROM responses r JOIN checkpoints c
        ON c.id = r.policy_id WHERE r.purpose = 'evaluate' AND c.kind = 'initial'
        GROUP BY r.prompt_id, r.sample HAVING count(*) > 1)";
    assert_eq!(scene.number(twice), 0);
}

#[test]
fn a_roll_back_is_where_the_next_iteration_begins_and_the_lineage_shows_it() {
    let scene = Scene::fake(&Settings::default().set("run", "iterations_max", "3"));
    let _daemon = scene.start();
    scene.add_prompts("plain", 0, 40, "0.25");
    scene.wait_iterations(2);
    let told = scene.ctl_ok(&["rollback", "1", "--reason", "the second one rambles"]);
    assert!(told.contains("iteration-0001"), "{told}");
    let refused = scene.ctl(&["rollback", "9"]);
    let why = text(&refused.stderr);
    assert!(
        !refused.status.success() && why.contains("sound checkpoint of iteration `9`"),
        "{why}"
    );
    let why = "SELECT count(*) FROM events WHERE kind = 'rollback_asked' AND uid IS NOT NULL
               AND message = 'the second one rambles'";
    assert_eq!(scene.number(why), 1);
    scene.add_prompts("more", 100, 130, "0.25");
    scene.wait_iterations(3);
    let line = "SELECT count(*) FROM checkpoint_lineage WHERE checkpoint = 'main/iteration-0003'
                AND depth = 1 AND ancestor = 'main/iteration-0001'";
    assert_eq!(scene.number(line), 1);
    assert_eq!(scene.number("SELECT count(*) FROM iteration_history WHERE status = 'done'"), 3);
    story::check_laws(&scene);
}

#[test]
fn a_backup_is_whole_while_an_iteration_is_under_way() {
    let scene = Scene::fake(&Settings::default());
    held_in_generate(&scene);
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    let told = scene.ctl_ok(&["backup"]);
    let copy = told.trim().rsplit(' ').next().map(std::path::PathBuf::from).expect("a path");
    assert!(copy.starts_with(scene.state().join("backups")), "{told}");
    let sound = rlhfd_tests::dump::text(&copy, "SELECT * FROM pragma_integrity_check").unwrap();
    assert_eq!(sound, "ok");
    let open = "SELECT CAST(count(*) > 0 AS TEXT) FROM units WHERE state = 'running'";
    assert_eq!(rlhfd_tests::dump::text(&copy, open).unwrap(), "1");
    scene.release("here");
    story::ends_the_same(&scene, "a backup");
}
