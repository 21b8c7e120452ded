//! A gate that keeps the old head, the best policy, and the end of a run's patience.

use rlhfd_tests::dump;
use rlhfd_tests::models;
use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::wait;

use crate::story;

/// Of the story's first policy the win rate is 0.55; of the second, trained from the initial one
/// again, it is 0.6.
const GATE: &str = "win_rate_min = 0.58";

fn told(scene: &Scene, sql: &str) -> String {
    dump::text(&scene.database(), sql).unwrap()
}

#[test]
fn a_rejected_checkpoint_is_no_head_and_the_loop_goes_on_from_the_old_one() {
    let (scene, _) = story::whole(Scene::fake(&Settings::default().with("gate", GATE)));
    story::check_laws(&scene);
    let history = "SELECT group_concat(policy_in || ' ' || policy_out || ' ' || gate, '; ')
                   FROM iteration_history";
    assert_eq!(
        told(&scene, history),
        "initial iteration-0001 failed: win_rate 0.550 < 0.580 (initial); \
         initial iteration-0002 passed"
    );
    let verdicts =
        "SELECT group_concat(iteration || ' ' || figure || ' ' || against || ' ' || bound
        || ' ' || limit_value || ' ' || value || ' ' || held, '; ') FROM gate_verdicts";
    assert_eq!(
        told(&scene, verdicts),
        "1 win_rate initial min 0.58 0.55 0; 2 win_rate initial min 0.58 0.6 1"
    );
    let checkpoints = "SELECT group_concat(name || ' ' || rejected, '; ') FROM checkpoints";
    assert_eq!(told(&scene, checkpoints), "initial 0; iteration-0001 1; iteration-0002 0");
    let line = "SELECT group_concat(ancestor, ' ') FROM checkpoint_lineage
                WHERE checkpoint = 'main/iteration-0002'";
    assert_eq!(told(&scene, line), "main/iteration-0002 main/initial");
    let head = "SELECT h.name || ' ' || b.name FROM runs r JOIN checkpoints h ON h.id = r.head_id
                JOIN checkpoints b ON b.id = r.best_id";
    assert_eq!(told(&scene, head), "iteration-0002 iteration-0002");
    let events = "SELECT count(*) FROM events WHERE kind = 'gate_failed' AND level = 'warn'
                  AND iteration = 1 AND message LIKE '%iteration-0001 failed: win_rate 0.550%'";
    assert_eq!(scene.number(events), 1);
    // What a rejected policy was trained on is trained on again.
    let members = "SELECT count(*) FROM training_set_members";
    let expected = "SELECT sum(CASE iteration WHEN 1 THEN 2 ELSE 1 END) FROM preferences";
    assert_eq!(scene.number(members), scene.number(expected));
}

#[test]
fn a_gate_that_has_nothing_to_look_at_is_told_before_any_work() {
    let scene = Scene::fake(&Settings::default().with("gate", GATE));
    let _daemon = scene.start();
    scene.add_prompts("plain", 0, 20, "0");
    let waits = || {
        let told = scene.status()["waits_for"].to_string();
        told.contains("kept for evaluation, and none is").then_some(())
    };
    wait::until("status to say what the gate lacks", waits, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    scene.add_prompts("kept", 100, 120, "0.5");
    scene.wait_iterations(1);
    let looked = "SELECT count(*) FROM gate_verdicts WHERE iteration = 1 AND value IS NOT NULL";
    assert_eq!(scene.number(looked), 1);
}

#[test]
fn a_failed_gate_pauses_where_it_is_asked_to_and_status_says_why() {
    let gate = format!("{GATE}\non_fail = \"pause\"");
    let scene = Scene::fake(&Settings::default().with("gate", &gate));
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    let status = scene.status();
    let run = &status["run"];
    assert_eq!((&run["head"], &run["best"]), (&"initial".into(), &"initial".into()));
    assert_eq!(run["gate"], "iteration 1 failed: win_rate 0.550 < 0.580 (initial)");
    assert_eq!(run["paused_by"], "daemon");
    let reason = run["paused_reason"].as_str().unwrap();
    assert!(reason.contains("win_rate 0.550 < 0.580"), "{reason}");
    let said = scene.ctl_ok(&["status"]);
    assert!(said.contains("gate: iteration 1 failed"), "{said}");
    let shown = scene.ctl_ok(&["checkpoints"]);
    assert!(shown.contains("initial (head, best)"), "{shown}");
    assert!(shown.contains("iteration-0001 (rejected)"), "{shown}");
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(2);
    assert_eq!(scene.status()["run"]["head"], "iteration-0002");
}

#[test]
fn every_figure_is_kept_beside_its_limit() {
    let scorers = "name = \"reward\"\nmodel = \"models/reward\"\n\n\
                   [[label.scorers]]\nname = \"watch\"\nmodel = \"models/brief\"\ncanary = true";
    let gate = "win_rate_min = 0.1\nagainst = \"previous\"\nkl_max = 100\nlength_growth_max = 9\n\
                chosen_logprob_fall_max = 50\ncanary_gain_min = -100";
    let settings = Settings::default().with("[label.scorers]", scorers).with("gate", gate);
    let scene = Scene::fake(&settings);
    models::reward(&scene.path("models"), "brief");
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    let held = "SELECT count(*) FROM gate_verdicts WHERE held = 1 AND value IS NOT NULL";
    assert_eq!((scene.number(held), scene.number("SELECT count(*) FROM gate_verdicts")), (10, 10));
    // Each figure of the second iteration once more, from the rows that it was taken from.
    let rows_with = |figure: &str, against: &str, value: &str, row: &str| {
        scene.number(&format!(
            "SELECT count(*) FROM gate_verdicts g
             JOIN evaluations e ON e.iteration = g.iteration JOIN scorers s ON s.id = e.scorer_id
             JOIN checkpoints b ON b.id = e.baseline_id
             WHERE g.iteration = 2 AND g.figure = '{figure}' AND g.against = '{against}'
               AND abs(g.value - {value}) < 1e-12 AND {row}"
        ))
    };
    let first = "b.name = 'initial' AND s.name = 'reward'";
    let before = "b.name = 'iteration-0001' AND s.name = 'reward'";
    assert_eq!(rows_with("win_rate", "previous", "e.win_rate", before), 1);
    assert_eq!(rows_with("kl_k3", "reference", "e.kl_k3", first), 1);
    let growth = "e.response_tokens_mean / (SELECT response_tokens_mean FROM evaluations i
                  WHERE i.iteration = 0 AND i.scorer_id = e.scorer_id)";
    assert_eq!(rows_with("length_growth", "initial", growth, first), 1);
    let watch = "b.name = 'initial' AND s.name = 'watch'";
    assert_eq!(rows_with("canary_gain", "initial", "e.gain", watch), 1);
    // The last two of twelve steps, by β = 0.1.
    let fall = "SELECT count(*) FROM gate_verdicts g WHERE iteration = 2 AND figure =
        'chosen_logprob_fall' AND against = 'reference' AND abs(value + 10.0 * (
            SELECT avg(implicit_reward_chosen) FROM training_steps t JOIN units u
            ON u.id = t.unit_id WHERE u.iteration = 2 AND (SELECT max(step) FROM training_steps
            WHERE unit_id = u.id) - step < 2)) < 1e-9";
    assert_eq!(scene.number(fall), 1);
}

/// A run whose first policy was rejected, paused; its second iteration evaluates no other policy than
/// its own.
fn rejected_once() -> Scene {
    let gate = format!("{GATE}\non_fail = \"pause\"");
    let scene = Scene::fake(&Settings::default().with("gate", &gate));
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    assert!(daemon.terminate().success());
    scene
}

#[test]
fn a_daemon_killed_before_the_verdict_ends_with_the_same_one() {
    let scene = rejected_once();
    let daemon = scene.start();
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(2);
    let undisturbed = dump::dump(&scene.database());
    drop(daemon);

    let scene = rejected_once();
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "generate", "purpose": "evaluate", "after": 1,
            "act": {"kind": "hold"}}]}"#,
    );
    let daemon = scene.start();
    scene.ctl_ok(&["resume"]);
    scene.held("here");
    // The checkpoint stands, and nobody has judged it.
    assert_eq!(scene.number("SELECT count(*) FROM checkpoints WHERE kind = 'policy'"), 2);
    assert_eq!(scene.status()["run"]["head"], "initial");
    daemon.kill();
    let _daemon = scene.start();
    scene.wait_iterations(2);
    story::check_laws(&scene);
    assert_eq!(scene.status()["run"]["head"], "iteration-0002");
    dump::assert_same(&undisturbed, &dump::dump(&scene.database()), "a kill before a verdict");
}

#[test]
fn a_run_out_of_patience_ends_with_its_best_policy() {
    // The second policy is worse than the first.
    let settings =
        Settings::default().set("run", "iterations_max", "5").set("run", "patience", "1");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    let ended = || {
        let status = scene.status();
        let first = status["waits_for"][0].as_str()?.to_owned();
        first.contains("no better policy than iteration-0001").then_some(first)
    };
    let sentence = wait::until("the run to end", ended, || scene.told());
    assert!(sentence.contains("raise [run] patience"), "{sentence}");
    let status = scene.status();
    assert_eq!(status["run"]["head"], "iteration-0002");
    assert_eq!(status["run"]["best"], "iteration-0001");
}
