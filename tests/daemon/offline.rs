//! Offline preferences in the loop: brought by `rlhfctl`, rendered and known once, trained on in every
//! iteration; killed on the way, and refused one by one.

use std::fs;
use std::sync::OnceLock;

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::scene::{Daemon, Scene, Settings, signal};
use rlhfd_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::story;

/// Pairs of the set.
const PAIRS: usize = 9;

fn settings() -> Settings {
    Settings::default()
        .set("train", "offline", "[\"kept\"]")
        .set("train", "offline_weight", "2.0")
        .set("train", "history_weight", "0.5")
        .set("train", "max_length", "100")
}

fn pair(n: usize) -> String {
    format!("{{\"prompt\": \"offline {n}\", \"chosen\": \"e e {n}\", \"rejected\": \"zz {n}\"}}\n")
}

/// Queues prompts, and brings the set: with a line twice, which counts once.
fn queue(scene: &Scene) {
    story::queue(scene);
    let lines: String = (0..PAIRS).chain([3]).map(pair).collect();
    let file = scene.write("kept.jsonl", &lines).to_string_lossy().into_owned();
    let said = scene.ctl_ok(&["preferences", "add", &file, "--set", "kept"]);
    assert_eq!(said.trim(), "9 preferences added to kept; 1 duplicate not added again");
}

fn undisturbed() -> &'static Dump {
    static DUMP: OnceLock<Dump> = OnceLock::new();
    DUMP.get_or_init(|| {
        let scene = Scene::fake(&settings());
        let daemon = scene.start();
        queue(&scene);
        scene.wait_iterations(2);
        let dump = dump::dump(&scene.database());
        daemon.terminate();
        dump
    })
}

fn text(scene: &Scene, sql: &str) -> String {
    dump::text(&scene.database(), sql).unwrap_or_default()
}

#[test]
fn every_iteration_trains_on_the_set_that_it_waited_for() {
    let scene = Scene::fake(&settings());
    let check = scene.rlhfd(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("rlhfctl preferences add FILE --set kept"), "{said}");
    let daemon = scene.start();
    story::queue(&scene);
    let waits = || {
        let told = scene.status()["waits_for"].to_string();
        told.contains("`rlhfctl preferences add FILE --set kept`").then_some(())
    };
    wait::until("the daemon to say which set it waits for", waits, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    let none = scene.ctl_ok(&["preferences", "list"]);
    assert!(none.contains("no preference set yet"), "{none}");
    queue(&scene);
    scene.wait_iterations(2);
    story::check_laws(&scene);
    let list = scene.ctl_ok(&["preferences", "list"]);
    assert!(list.contains("kept") && list.contains("yes"), "{list}");

    let offline = "SELECT group_concat(offline, ' ') FROM iteration_history";
    assert_eq!(text(&scene, offline), "9 9");
    // They come first, by ordinal; then earlier iterations; each with its weight.
    let first = "SELECT count(*) FROM training_set_members WHERE (offline_id IS NOT NULL) <>
        (position < 9) OR (offline_id IS NOT NULL AND weight <> 2.0)";
    assert_eq!(scene.number(first), 0);
    let own = "SELECT count(*) FROM training_set_members m JOIN units u ON u.id = m.unit_id
        JOIN preferences p ON p.id = m.preference_id
        WHERE m.weight <> iif(p.iteration = u.iteration, 1.0, 0.5)";
    assert_eq!(scene.number(own), 0);
    let replayed = "SELECT count(*) FROM training_set_members m JOIN units u ON u.id = m.unit_id
        JOIN preferences p ON p.id = m.preference_id WHERE p.iteration < u.iteration";
    assert!(scene.number(replayed) > 0);
    // Ids and log-probs are made once.
    let again = "SELECT count(*) FROM units WHERE work IN ('render_pairs', 'logprobs_pairs')
        AND iteration <> 1";
    assert_eq!(scene.number(again), 0);
    assert_eq!(scene.number("SELECT count(*) FROM offline_logprobs WHERE chosen < 0"), 9);

    let folder = scene.state().join("runs/main/iterations/0002");
    let lines = fs::read_to_string(folder.join("pairs.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (n, line) in lines[..PAIRS].iter().enumerate() {
        assert_eq!(
            (line["iteration"].as_u64(), line["ordinal"].as_u64()),
            (Some(0), Some(n as u64))
        );
        let chosen: Vec<u64> = format!("e e {n}").bytes().map(u64::from).chain([256]).collect();
        assert_eq!(line["chosen_ids"], serde_json::json!(chosen));
        assert_eq!(line["weight"].as_f64(), Some(2.0));
    }
    assert!(lines[PAIRS..].iter().all(|line| line["iteration"].as_u64() > Some(0)));
    // `rlhfctl check` reads the set now.
    daemon.terminate();
    let check = scene.rlhfd(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("kept: 9 preferences"), "{said}");
}

/// What is killed.
#[derive(Clone, Copy)]
enum Victim {
    Daemon,
    Worker,
}

fn killed(point: &str, victim: Victim) {
    let scene = Scene::fake(&settings());
    scene.plan(&format!(
        r#"{{"faults": [{{"name": "here", {point}, "act": {{"kind": "hold"}}}}]}}"#
    ));
    let mut daemon: Daemon = scene.start();
    queue(&scene);
    let worker = scene.held("here");
    match victim {
        Victim::Worker => signal(worker, Signal::KILL),
        Victim::Daemon => {
            daemon.kill();
            daemon = scene.start();
        }
    }
    scene.wait_iterations(2);
    story::check_laws(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    assert!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'") >= 1);
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), point);
    drop(daemon);
}

const RENDER: &str = r#""work": "render_pairs", "after": 4"#;
/// The log-probs of a pair's side, by its prompt.
const LOGPROBS: &str = r#""work": "logprobs", "containing": "offline 5""#;

#[test]
fn the_daemon_dies_while_offline_pairs_are_rendered() {
    killed(RENDER, Victim::Daemon);
}

#[test]
fn the_worker_dies_while_offline_pairs_are_rendered() {
    killed(RENDER, Victim::Worker);
}

#[test]
fn the_daemon_dies_while_offline_pairs_get_their_log_probs() {
    killed(LOGPROBS, Victim::Daemon);
}

#[test]
fn the_worker_dies_while_offline_pairs_get_their_log_probs() {
    killed(LOGPROBS, Victim::Worker);
}

#[test]
fn an_iteration_without_a_preference_of_its_own_trains_on_offline_ones() {
    let settings =
        settings().with("pair", "score_gap_min = 1000.0").set("run", "iterations_max", "1");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(1);
    let row = "SELECT preferences || ' ' || offline || ' ' || policy_out FROM iteration_history";
    assert_eq!(text(&scene, row), "0 9 iteration-0001");
}

#[test]
fn a_pair_that_cannot_be_used_is_set_aside_with_its_reason_and_the_others_stay() {
    let settings = settings().set("run", "iterations_max", "1");
    let scene = Scene::fake(&settings);
    scene.plan(
        r#"{"faults": [
            {"name": "refuse", "work": "render_pairs", "containing": "offline 2",
             "act": {"kind": "refuse"}},
            {"name": "harm", "work": "logprobs", "containing": "offline 6", "times": 0,
             "act": {"kind": "exit", "code": 9}}]}"#,
    );
    let _daemon = scene.start();
    // A side of more than max_length tokens: it fits the model, but not this iteration.
    let long = pair(11).replace("e e", &"e".repeat(120));
    let lines: String = (0..PAIRS).map(pair).chain([long]).collect();
    let file = scene.write("kept.jsonl", &lines).to_string_lossy().into_owned();
    scene.ctl_ok(&["preferences", "add", &file, "--set", "kept"]);
    story::queue(&scene);
    scene.wait_iterations(1);
    assert_eq!(scene.number("SELECT offline FROM iteration_history"), 7);
    let aside = "SELECT group_concat(o.ordinal || ' ' || coalesce(o.set_aside, k.set_aside), ', ')
        FROM offline_pairs o LEFT JOIN offline_logprobs k USING (run_id, ordinal)
        WHERE coalesce(o.set_aside, k.set_aside) IS NOT NULL";
    assert_eq!(text(&scene, aside), "2 over_long, 6 exit");
    let told = "SELECT message FROM events WHERE kind = 'offline_set_aside'";
    assert_eq!(
        text(&scene, told),
        "of 10 offline preferences, 7 are trained on; set aside: exit 1, over_long 2"
    );
    // The long one waits for an iteration that takes it: nothing was computed for it.
    let waits = "SELECT count(*) FROM offline_pairs o WHERE o.pair_tokens > 100 AND NOT EXISTS
        (SELECT 1 FROM offline_logprobs k WHERE k.ordinal = o.ordinal)";
    assert_eq!(scene.number(waits), 1);
}
