//! A real preference model as a scorer of the loop, on a tiny model.
//!
//! Comes in: a copy of the golden policy with a preference.json. Goes out: that the daemon's worker
//! compares as file mode does, and that a kill changes nothing.

use std::fs;

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::models;
use rlhfd_tests::scene::{Scene, signal};
use rustix::process::Signal;

use super::{frozen, json_lines, queue, settings, worker};

/// A copy of the policy, as a preference model: its answers are the logits of "A" and "B".
fn judge(scene: &Scene) {
    models::copy(&scene.path("models/policy"), &scene.path("models/judge"));
    let file =
        "{\"template\": \"context-response-a-response-b\", \"label_ids\": {\"A\": 35, \"B\": 36}}";
    scene.write("models/judge/preference.json", file);
}

/// What the daemon's worker says of two answers is what file mode says, whichever stands first.
#[test]
fn the_loop_compares_as_file_mode_does() {
    let judge_alone = "name = \"judge\"\nkind = \"preference\"\nmodel = \"models/judge\"";
    let settings =
        settings().with("[label.scorers]", judge_alone).set("run", "iterations_max", "1");
    let Some(scene) = Scene::real(&settings) else { return };
    judge(&scene);
    let daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(1);
    daemon.terminate();
    let compared =
        "SELECT json_group_array(json_object('messages', json(p.messages), 'first', t.text,
            'second', v.text, 'preference', l.preference)) FROM labels l
        JOIN responses x ON x.id = l.response_id JOIN prompts p ON p.id = x.prompt_id
        JOIN response_texts t ON t.response_id = x.id
        JOIN response_texts v ON v.response_id = l.versus_id WHERE t.text <> v.text";
    let rows = dump::text(&scene.database(), compared).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    assert!(rows.len() > 40, "{} comparisons", rows.len());
    let lines = |order: [&str; 2]| -> String {
        let line = |row: &serde_json::Value| {
            let responses = order.map(|side| row[side].clone());
            serde_json::json!({"messages": row["messages"], "responses": responses}).to_string()
                + "\n"
        };
        rows.iter().map(line).collect()
    };
    let asked = |name: &str, order| -> Vec<f64> {
        scene.write(name, &lines(order));
        let words = ["prefer", "--model", "models/judge", "--data", name, "--out", "p.jsonl"];
        worker(&scene, &words);
        let told = json_lines(&fs::read_to_string(scene.path("p.jsonl")).unwrap());
        told.iter().map(|line| line["preference"].as_f64().unwrap()).collect()
    };
    let (forward, turned) =
        (asked("f.jsonl", ["first", "second"]), asked("t.jsonl", ["second", "first"]));
    let mut moved = 0;
    for ((row, forward), turned) in rows.iter().zip(forward).zip(turned) {
        let own = row["preference"].as_f64().unwrap();
        assert!((own - forward).abs() < 1e-5, "{own} and {forward}: {row}");
        assert!((own - (1.0 - turned)).abs() < 1e-5, "{own} and {turned}: {row}");
        moved += usize::from((own - 0.5).abs() > 1e-6);
    }
    assert!(moved > rows.len() / 2, "it prefers nothing");
}

#[test]
fn a_worker_killed_while_it_compares_changes_nothing() {
    let scorers = "name = \"reward\"\nmodel = \"models/reward\"\n\n[[label.scorers]]\n\
        name = \"judge\"\nkind = \"preference\"\nmodel = \"models/judge\"";
    let settings = settings().with("[label.scorers]", scorers).set("run", "iterations_max", "1");
    let told = |units: Option<&str>| -> Option<Dump> {
        let scene = Scene::real(&settings)?;
        judge(&scene);
        let daemon = scene.start();
        queue(&scene);
        if let Some(units) = units {
            signal(frozen(&scene, units), Signal::KILL);
        }
        scene.wait_iterations(1);
        let dump = dump::dump(&scene.database());
        daemon.terminate();
        Some(dump)
    };
    let (Some(undisturbed), Some(killed)) = (told(None), told(Some("u.work = 'prefer'"))) else {
        return;
    };
    dump::assert_same(&undisturbed, &killed, "killed among comparisons");
}
