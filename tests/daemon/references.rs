//! References that move: what each iteration is held to, that everything it trains on is known under it,
//! and what a kill on the way changes.

use std::fs;

use rlhfd_protocol::frame;
use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::fake::compute;
use rlhfd_tests::scene::{Daemon, Scene, Settings, signal};
use rustix::process::Signal;
use serde_json::Value;

use crate::story;

/// Four iterations of six prompts, with offline pairs, each held to `reference`.
fn settings(reference: &str) -> Settings {
    Settings::default()
        .set("run", "iterations_max", "4")
        .set("run", "prompts_per_iteration", "6")
        .set("train", "offline", "[\"kept\"]")
        .set("train", "reference", reference)
        .set("train", "reference_decay", "0.75")
}

fn queue(scene: &Scene) {
    let pair = |n: u32| {
        format!("{{\"prompt\": \"off {n}\", \"chosen\": \"e {n}\", \"rejected\": \"z {n}\"}}\n")
    };
    let file = scene.write("kept.jsonl", &(0..3).map(pair).collect::<String>());
    scene.ctl_ok(&["preferences", "add", &file.to_string_lossy(), "--set", "kept"]);
    story::queue(scene);
}

fn text(scene: &Scene, sql: &str) -> String {
    dump::text(&scene.database(), sql).unwrap_or_default()
}

/// The whole story with nothing in its way.
fn undisturbed(reference: &str) -> (Scene, Dump) {
    let scene = Scene::fake(&settings(reference));
    let daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(4);
    let dump = dump::dump(&scene.database());
    assert!(daemon.terminate().success());
    check(&scene);
    (scene, dump)
}

/// What must hold whatever the iterations were held to.
fn check(scene: &Scene) {
    story::check_laws(scene);
    let left_out = "SELECT count(*) FROM units u WHERE u.work = 'train_dpo'
        AND (SELECT count(*) FROM training_set_members m WHERE m.unit_id = u.id)
            <> 3 + (SELECT count(*) FROM preferences p WHERE p.iteration <= u.iteration)";
    assert_eq!(scene.number(left_out), 0, "an update lacks pairs");
    let known = "SELECT (SELECT count(*) FROM reference_logprobs k
            JOIN responses x ON x.id = k.response_id WHERE x.purpose = 'generate')
        - (SELECT count(*) FROM (SELECT DISTINCT p.side, i.reference_id FROM iterations i
            JOIN (SELECT iteration, chosen_id AS side FROM preferences
                  UNION SELECT iteration, rejected_id FROM preferences) p
              ON p.iteration <= i.iteration))";
    assert_eq!(scene.number(known), 0, "a log-prob that no update wanted, or one too few");
    let offline = "SELECT (SELECT count(*) FROM offline_logprobs)
        - 3 * (SELECT count(DISTINCT reference_id) FROM iterations)";
    assert_eq!(scene.number(offline), 0);
    let lineage = "SELECT count(*) FROM iterations i JOIN checkpoints c ON c.id = i.policy_out
        WHERE c.reference_id <> i.reference_id";
    assert_eq!(scene.number(lineage), 0, "a checkpoint names another reference");
    let measured =
        "SELECT count(*) FROM evaluations e JOIN iterations i ON i.iteration = e.iteration
        WHERE e.kl_k3 IS NULL OR NOT EXISTS (SELECT 1 FROM reference_logprobs k
            JOIN responses x ON x.id = k.response_id
            WHERE x.purpose = 'evaluate' AND x.policy_id = e.policy_id
              AND k.reference_id = i.reference_id)";
    assert_eq!(scene.number(measured), 0, "KL is measured against the iteration's reference");
    check_models(scene);
    for iteration in 1..=4 {
        check_folder(scene, iteration);
    }
}

/// What is stored under a reference is what that very model gives, and no other.
fn check_models(scene: &Scene) {
    let connection = dump::open(&scene.database());
    let mut statement = connection
        .prepare(
            "SELECT c.sha256, i.ids, t.ids, k.logprob FROM reference_logprobs k
             JOIN checkpoints c ON c.id = k.reference_id
             JOIN response_texts t ON t.response_id = k.response_id
             JOIN responses x ON x.id = k.response_id JOIN prompt_ids i ON i.prompt_id = x.prompt_id
             UNION ALL
             SELECT c.sha256, d.prompt_ids, d.chosen_ids, k.chosen FROM offline_logprobs k
             JOIN checkpoints c ON c.id = k.reference_id JOIN offline_ids d ON d.ordinal = k.ordinal",
        )
        .unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut checked = 0;
    while let Some(row) = rows.next().unwrap() {
        let ids = |column| -> Vec<u32> {
            frame::ids_from_bytes(row.get_ref_unwrap(column).as_blob().unwrap()).unwrap()
        };
        let sha256: String = row.get_unwrap(0);
        let given = compute::sum(&compute::logprobs(&sha256, &ids(1), &ids(2)));
        let stored: f64 = row.get_unwrap(3);
        assert!(
            (stored - given).abs() < 1e-9,
            "{stored} is stored under {sha256}, {given} is right"
        );
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
}

/// The folder of an update holds the log-probs that are stored under its iteration's reference.
fn check_folder(scene: &Scene, iteration: u32) {
    let folder = scene.state().join(format!("runs/main/iterations/{iteration:04}"));
    let lines = fs::read_to_string(folder.join("pairs.jsonl")).unwrap();
    let connection = dump::open(&scene.database());
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let number = |key: &str| line[key].as_u64().unwrap();
        for side in ["chosen", "rejected"] {
            let sql = match number("iteration") {
                0 => format!(
                    "SELECT k.{side} FROM offline_logprobs k JOIN iterations i
                       ON i.reference_id = k.reference_id
                     WHERE i.iteration = ?1 AND k.ordinal = ?3 AND ?2 = 0 AND ?4 = 0"
                ),
                _ => format!(
                    "SELECT k.logprob FROM preferences p
                     JOIN reference_logprobs k ON k.response_id = p.{side}_id
                     JOIN iterations i ON i.reference_id = k.reference_id
                     WHERE i.iteration = ?1 AND p.iteration = ?2 AND p.ordinal = ?3 AND p.rank = ?4"
                ),
            };
            let key =
                [u64::from(iteration), number("iteration"), number("ordinal"), number("rank")]
                    .map(|part| i64::try_from(part).unwrap());
            let stored: f64 = connection.query_row(&sql, key, |row| row.get(0)).unwrap();
            let given = line[format!("reference_logprob_{side}")].as_f64().unwrap();
            assert_eq!(given, stored, "iteration {iteration}: {line}");
        }
    }
}

const HELD: &str = "SELECT group_concat(reference, ' ') FROM iteration_history";

/// A prompt of the first iteration that gave a pair, which later iterations come back to.
fn paired_prompt(scene: &Scene) -> String {
    text(
        scene,
        "SELECT json_extract(p.messages, '$[0].content') FROM preferences f
         JOIN prompts p ON p.id = f.prompt_id WHERE f.iteration = 1 ORDER BY f.ordinal LIMIT 1",
    )
}

/// The story with a worker that holds at a pair of the first iteration when it is met under another
/// reference; then it, or the daemon, is killed.
fn killed_among_earlier_pairs(calm: &Scene, undisturbed: &Dump, reference: &str, daemon: bool) {
    let prompt = paired_prompt(calm);
    let scene = Scene::fake(&settings(reference));
    // Both sides are met in the first iteration, then again.
    let hold = |name: &str| {
        format!(
            r#"{{"name": "{name}", "work": "logprobs", "containing": "{prompt}\n",
                "act": {{"kind": "hold"}}}}"#
        )
    };
    let faults: Vec<String> = ["one", "two", "three"].map(hold).into();
    scene.plan(&format!(r#"{{"faults": [{}]}}"#, faults.join(", ")));
    let running = scene.start();
    queue(&scene);
    for name in ["one", "two"] {
        scene.held(name);
        scene.release(name);
    }
    let worker = scene.held("three");
    let at = "SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id
              WHERE a.ended_ms IS NULL AND u.work = 'logprobs' AND u.detail = '1'";
    assert_eq!(scene.number(at), 1, "it holds at a pair of an earlier iteration");
    killed_it_ends_the_same(&scene, running, (worker, daemon), (undisturbed, reference));
}

/// Kills the daemon, or the worker that holds; what follows ends as the undisturbed run did.
fn killed_it_ends_the_same<'a>(
    scene: &'a Scene,
    running: Daemon<'a>,
    (worker, daemon): (i32, bool),
    (undisturbed, what): (&Dump, &str),
) {
    let running = if daemon {
        running.kill();
        scene.start()
    } else {
        signal(worker, Signal::KILL);
        running
    };
    scene.wait_iterations(4);
    check(scene);
    dump::assert_same(undisturbed, &dump::dump(&scene.database()), what);
    drop(running);
}

#[test]
fn the_policy_before_holds_each_update_and_every_pair_is_known_under_it() {
    let (scene, dump) = undisturbed("\"previous\"");
    assert_eq!(text(&scene, HELD), "initial iteration-0001 iteration-0002 iteration-0003");
    killed_among_earlier_pairs(&scene, &dump, "\"previous\"", true);
}

#[test]
fn every_second_head_holds_two_updates() {
    // Two iterations are the default of reference_every.
    let (scene, dump) = undisturbed("\"every\"");
    assert_eq!(text(&scene, HELD), "initial initial iteration-0002 iteration-0002");
    let earlier = "SELECT group_concat(DISTINCT iteration || ' of ' || detail) FROM units
                   WHERE work = 'logprobs' AND detail IS NOT NULL";
    assert_eq!(text(&scene, earlier), "3 of 1,3 of 2", "what is known is not asked for again");
    killed_among_earlier_pairs(&scene, &dump, "\"every\"", false);
}

#[test]
fn a_moving_average_is_made_once_and_survives_kills_before_and_after_it_stands() {
    let (scene, dump) = undisturbed("\"average\"");
    assert_eq!(text(&scene, HELD), "initial reference-0001 reference-0002 reference-0003");
    let made = "SELECT group_concat(line, '; ') FROM (SELECT c.name || ' of ' || p.name || ' and '
            || f.name AS line
        FROM checkpoints c JOIN checkpoints p ON p.id = c.parent_id
        JOIN checkpoints f ON f.id = c.reference_id WHERE c.kind = 'reference' ORDER BY c.id)";
    assert_eq!(
        text(&scene, made),
        "reference-0001 of iteration-0001 and initial; \
         reference-0002 of iteration-0002 and reference-0001; \
         reference-0003 of iteration-0003 and reference-0002"
    );
    for (point, daemon) in [("average", true), ("averaged", true), ("averaged", false)] {
        let scene = Scene::fake(&settings("\"average\""));
        scene.plan(&format!(
            r#"{{"faults": [{{"name": "here", "work": "{point}", "act": {{"kind": "hold"}}}}]}}"#
        ));
        let running = scene.start();
        queue(&scene);
        let worker = scene.held("here");
        killed_it_ends_the_same(&scene, running, (worker, daemon), (&dump, point));
        let orphans = fs::read_dir(scene.state().join("orphans")).into_iter().flatten().count();
        assert_eq!(orphans, 0, "an average was of use and lies among the orphans");
    }
}

#[test]
fn a_gate_that_rejects_leaves_the_reference_where_it_was() {
    let settings = settings("\"previous\"").with("gate", "win_rate_min = 1.0");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(3);
    let rejected = "SELECT count(*) FROM iterations i JOIN checkpoints c ON c.id = i.reference_id
                    WHERE c.rejected = 1";
    assert_eq!(scene.number(rejected), 0);
    let some = "SELECT count(*) FROM checkpoints WHERE rejected = 1";
    assert!(scene.number(some) > 0, "nothing was rejected");
    let heads = "SELECT count(*) FROM iteration_history WHERE reference <> policy_in";
    assert_eq!(scene.number(heads), 0);
}

#[test]
fn log_probs_under_a_reference_whose_files_are_gone_go_too() {
    let settings = settings("\"previous\"").set("run", "iterations_max", "5");
    let scene = Scene::fake(&settings.set("store", "keep_checkpoints", "1"));
    let _daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(5);
    let swept = "SELECT count(*) FROM checkpoints WHERE removed_ms NOTNULL AND logprobs_swept = 1";
    scene.wait_number("log-probs under removed references to go", swept, 2);
    let under = |state: &str| {
        scene.number(&format!(
            "SELECT count(*) FROM (SELECT reference_id FROM reference_logprobs
                 UNION ALL SELECT reference_id FROM offline_logprobs) k
             JOIN checkpoints c ON c.id = k.reference_id WHERE {state}"
        ))
    };
    assert_eq!(under("c.logprobs_swept = 1"), 0);
    assert!(under("c.sound = 1") > 0);
    let left_out = "SELECT count(*) FROM units u WHERE u.work = 'train_dpo'
        AND (SELECT count(*) FROM training_set_members m WHERE m.unit_id = u.id)
            <> 3 + (SELECT count(*) FROM preferences p WHERE p.iteration <= u.iteration)";
    assert_eq!(scene.number(left_out), 0, "an update lacks pairs");
    story::check_laws(&scene);
}
