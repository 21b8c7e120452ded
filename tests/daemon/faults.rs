//! What a worker may do wrong, and what the rows say of it afterwards.
//!
//! Each fault falls in the first iteration of the story; where it is of passing nature the story
//! ends as if nothing had happened.

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, signal};
use rlhfd_tests::wait;
use rustix::process::Signal;

use crate::story;

/// How an attempt ended, by the fault that is named in `key`.
fn outcome(scene: &Scene, work: &str) -> (String, String, i64) {
    let sql = |column: &str| {
        format!(
            "SELECT {column} FROM attempts a JOIN units u ON u.id = a.unit_id
             WHERE u.work = '{work}' AND a.outcome <> 'finished' ORDER BY a.id LIMIT 1"
        )
    };
    let text = |column: &str| dump::text(&scene.database(), &sql(column)).unwrap_or_default();
    (text("outcome"), text("cause"), text("coalesce(counted, -1)").parse().unwrap_or(-2))
}

/// Tells the story with one fault and gives how the attempt that met it ended.
fn met(work: &str, act: &str) -> (String, String, i64) {
    let scene = Scene::fake(&Settings::default());
    scene.plan(&format!(
        r#"{{"faults": [{{"name": "one", "work": "{work}", "after": 1, "act": {act}}}]}}"#
    ));
    let _daemon = scene.start();
    story::queue(&scene);
    story::ends_the_same(&scene, act);
    outcome(&scene, work)
}

fn died(cause: &str, counted: i64) -> (String, String, i64) {
    ("died".into(), cause.into(), counted)
}

#[test]
fn its_own_error_exit_is_counted_and_the_unit_done_again() {
    assert_eq!(met("generate", r#"{"kind": "exit", "code": 3}"#), died("exit", 1));
}

#[test]
fn its_own_fatal_signals_are_counted() {
    assert_eq!(met("generate", r#"{"kind": "signal", "number": 6}"#), died("signal", 1));
    assert_eq!(met("score", r#"{"kind": "signal", "number": 11}"#), died("signal", 1));
}

#[test]
fn a_kill_from_outside_is_not_counted() {
    assert_eq!(met("logprobs", r#"{"kind": "signal", "number": 9}"#), died("killed", 0));
    assert_eq!(met("score", r#"{"kind": "signal", "number": 15}"#), died("killed", 0));
}

#[test]
fn a_standing_computation_is_counted_and_silence_is_not() {
    assert_eq!(met("generate", r#"{"kind": "stall"}"#), died("stalled", 1));
    assert_eq!(met("generate", r#"{"kind": "silent"}"#), died("silent", 0));
}

#[test]
fn a_panic_is_counted() {
    let act = r#"{"kind": "fail", "failure": "crashed", "exit": true}"#;
    assert_eq!(met("score", act), died("crashed", 1));
}

#[test]
fn want_of_memory_halves_the_batch_and_is_not_counted() {
    let settings = Settings::default().with("run", ONE).set("train", "micro_batch_pairs", "2");
    let scene = Scene::fake(&settings);
    let fault = |work, times| {
        format!(
            r#"{{"name": "{work}", "work": "{work}", "times": {times},
                "act": {{"kind": "fail", "failure": "out_of_memory", "exit": false}}}}"#
        )
    };
    let faults = [fault("generate", 1), fault("train_dpo", 1)].join(", ");
    scene.plan(&format!(r#"{{"faults": [{faults}]}}"#));
    let daemon = scene.start();
    scene.add_prompts("plain", 0, 12, "0");
    let halved =
        "SELECT count(*) FROM units WHERE work = 'generate' AND batch_items = 1 AND replanned = 1";
    scene.wait_number("a smaller batch", halved, 1);
    // The plan is in the unit's row: a restart keeps it.
    daemon.kill();
    assert_eq!(scene.number(halved), 1);
    let _daemon = scene.start();
    scene.wait_iterations(1);
    story::check_laws(&scene);
    assert_eq!(scene.number(halved), 1);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    assert_eq!(outcome(&scene, "generate").1, "out_of_memory");
    let told = "SELECT count(*) FROM device_events WHERE kind = 'out_of_memory' AND device = 'cpu'
                AND decision = 'try again with 1 at once'";
    // Two pairs at once is the training's own setting; one is half of it.
    assert_eq!(scene.number(told), 2);
    let training = "SELECT batch_items FROM units WHERE work = 'train_dpo'";
    assert_eq!(scene.number(training), 1);
}

#[test]
fn a_failing_disk_is_no_matter_of_the_unit() {
    let act = r#"{"kind": "fail", "failure": "disk", "exit": false}"#;
    let scene = Scene::fake(&Settings::default().set("store", "disk_probe_ms", "200"));
    scene.plan(&format!(
        r#"{{"faults": [{{"name": "one", "work": "train_dpo", "after": 1, "act": {act}}}]}}"#
    ));
    let _daemon = scene.start();
    story::queue(&scene);
    // It goes on by itself.
    story::ends_the_same(&scene, act);
    let counted = "SELECT count(*) FROM attempts WHERE counted = 1";
    assert_eq!(scene.number(counted), 0);
}

#[test]
fn what_the_protocol_does_not_know_ends_the_worker_and_is_counted() {
    for act in ["garbage", "oversized", "unknown_verb"] {
        let ended = met("generate", &format!(r#"{{"kind": "{act}"}}"#));
        assert_eq!(ended, died("protocol", 1), "{act}");
    }
}

#[test]
fn answers_that_do_not_fit_the_unit_never_reach_the_tables() {
    for act in ["answer_twice", "leave_out", "wrong_attempt", "wrong_index"] {
        // The story ends with the same rows, whether the surplus answer was passed over or the
        // attempt was ended for it.
        met("generate", &format!(r#"{{"kind": "{act}"}}"#));
    }
    met("score", r#"{"kind": "non_finite_answer"}"#);
}

/// What a test asks of a run that was told to leave something out.
const ONE: &str = "policy = \"models/policy\"\nseed = 7\niterations_max = 1\n\
                   prompts_per_iteration = 12";

#[test]
fn only_the_item_that_does_harm_is_set_aside() {
    let scene = Scene::fake(&Settings::default().with("run", ONE));
    scene.plan(
        r#"{"faults": [{"name": "poison", "work": "generate", "containing": "say 13\n",
            "times": 0, "act": {"kind": "exit", "code": 9}}]}"#,
    );
    let _daemon = scene.start();
    scene.add_prompts("plain", 10, 22, "0");
    scene.wait_iterations(1);
    story::check_laws(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM unpaired WHERE kind = 'set_aside'"), 1);
    assert_eq!(scene.number("SELECT set_aside FROM iteration_history"), 1);
    let answered = "SELECT count(DISTINCT ordinal) FROM responses WHERE purpose = 'generate'";
    assert_eq!(scene.number(answered), 11);
    let reason = "SELECT reason FROM units WHERE state = 'set_aside'";
    assert!(dump::text(&scene.database(), reason).unwrap().contains("exit"));
    assert!(scene.number("SELECT count(*) FROM units WHERE state = 'split'") >= 1);
    // A batch of two was cut in the end; nothing else was planned anew.
    assert_eq!(scene.number("SELECT count(*) FROM responses WHERE replanned = 1"), 3);
}

#[test]
fn a_refused_item_is_set_aside_without_a_death() {
    for work in ["render", "generate", "score"] {
        let scene = Scene::fake(&Settings::default().with("run", ONE));
        scene.plan(&format!(
            r#"{{"faults": [{{"name": "one", "work": "{work}", "after": 1,
                "act": {{"kind": "refuse"}}}}]}}"#
        ));
        let _daemon = scene.start();
        scene.add_prompts("plain", 0, 12, "0");
        scene.wait_iterations(1);
        story::check_laws(&scene);
        assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'"), 0);
        let aside = "SELECT (SELECT count(*) FROM labels WHERE set_aside IS NOT NULL)
                          + (SELECT count(*) FROM unpaired WHERE kind = 'set_aside')";
        assert!(scene.number(aside) >= 1, "{work}");
    }
}

#[test]
fn a_training_that_dies_twice_without_a_new_step_pauses_the_run() {
    let scene = Scene::fake(&Settings::default().with("run", ONE));
    scene.plan(
        r#"{"faults": [{"name": "bad", "work": "train_dpo", "after": 3, "times": 2,
            "act": {"kind": "exit", "code": 5}}]}"#,
    );
    let _daemon = scene.start();
    scene.add_prompts("plain", 0, 12, "0");
    let paused = "SELECT count(*) FROM runs WHERE paused_by = 'daemon'";
    scene.wait_number("the run to pause", paused, 1);
    let reason = scene.status()["run"]["paused_reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("train"), "{reason}");
    assert_eq!(scene.number("SELECT count(*) FROM units WHERE state = 'split'"), 0);
    scene.ctl_ok(&["resume"]);
    scene.wait_iterations(1);
}

#[test]
fn a_probe_that_finds_something_stops_the_run_before_anything_is_written() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(
        r#"{"faults": [{"name": "bos", "work": "probe", "times": 0,
            "act": {"kind": "finding", "message": "the policy doubles its BOS"}}]}"#,
    );
    let _daemon = scene.start();
    story::queue(&scene);
    let told = || scene.status().to_string().contains("doubles its BOS").then_some(());
    wait::until("the finding in status", told, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM responses"), 0);
    assert_eq!(scene.number("SELECT count(*) FROM training_steps"), 0);
}

#[test]
fn time_in_which_the_daemon_stood_still_counts_for_nobody() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "generate", "after": 1,
            "act": {"kind": "hold"}}]}"#,
    );
    let daemon = scene.start();
    story::queue(&scene);
    let worker = scene.held("here");
    signal(daemon.pid(), Signal::STOP);
    // The worker stands still too, so that no progress waits in the socket.
    signal(worker, Signal::STOP);
    std::thread::sleep(std::time::Duration::from_secs(5));
    signal(worker, Signal::CONT);
    signal(daemon.pid(), Signal::CONT);
    scene.release("here");
    story::ends_the_same(&scene, "a daemon that stood still");
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
}

#[test]
fn a_worker_of_another_version_is_refused_with_a_word() {
    let scene = Scene::fake(&Settings::default());
    scene.plan(
        r#"{"faults": [{"name": "old", "work": "hello", "times": 0,
            "act": {"kind": "other_version"}}]}"#,
    );
    let _daemon = scene.start();
    story::queue(&scene);
    let said = "SELECT count(*) FROM events WHERE message LIKE '%version%'
                AND level IN ('warn', 'error')";
    scene.wait_number("an event about the versions", said, 1);
    assert_eq!(scene.number("SELECT count(*) FROM responses"), 0);
}

#[test]
fn an_iteration_without_any_preference_trains_nothing_and_says_so() {
    let arm = |name| format!("name = \"{name}\"\ntemperature = 0.0\nn = 1");
    // Two greedy arms write the same, and equal answers are one.
    let settings = Settings::default()
        .with("run", ONE)
        .with("[generate.arms]", &format!("{}\n\n[[generate.arms]]\n{}", arm("a"), arm("b")));
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    scene.add_prompts("plain", 0, 12, "0");
    scene.wait_iterations(1);
    assert_eq!(scene.status()["run"]["head"], "initial");
    let told = "SELECT count(*) FROM events WHERE level = 'warn' AND message LIKE '%preference%'";
    assert!(scene.number(told) >= 1, "{:?}", scene.ctl_ok(&["events"]));
    let row =
        "SELECT status || ' ' || coalesce(policy_out, 'none') || ' ' || coalesce(without_pair, 'none')
               FROM iteration_history";
    assert_eq!(dump::text(&scene.database(), row).unwrap(), "done none 12");
    assert_eq!(scene.number("SELECT count(*) FROM unpaired WHERE reason = 'one_response'"), 12);
    assert_eq!(scene.number("SELECT count(*) FROM training_steps"), 0);
}

#[test]
fn kills_from_outside_have_a_ceiling_too() {
    let settings = Settings::default().with("run", ONE).set("run", "prompts_per_iteration", "2");
    let scene = Scene::fake(&settings);
    scene.plan(
        r#"{"faults": [{"name": "killer", "work": "generate", "containing": "say 1\n",
            "times": 0, "act": {"kind": "signal", "number": 9}}]}"#,
    );
    let _daemon = scene.start();
    scene.add_prompts("plain", 0, 2, "0");
    scene.wait_iterations(1);
    story::check_laws(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    let reason = "SELECT reason FROM units WHERE state = 'set_aside'";
    assert!(dump::text(&scene.database(), reason).unwrap().contains("outside"));
    assert_eq!(scene.number("SELECT set_aside FROM iteration_history"), 1);
}

#[test]
fn a_worker_that_never_says_a_word_is_tried_more_and_more_seldom() {
    let scene = Scene::fake(&Settings::default());
    scene.worker_script("exit 7");
    let _daemon = scene.start();
    story::queue(&scene);
    let told = || scene.status()["waits_for"].to_string().contains("exit 7").then_some(());
    wait::until("status to say why no worker runs", told, || scene.told());
    let tries = "SELECT count(*) FROM events WHERE message LIKE '%did not serve%'";
    scene.wait_number("a third try", tries, 3);
    // The pauses grow: one second, then two.
    let apart = "SELECT max(at_ms) - min(at_ms) FROM events WHERE message LIKE '%did not serve%'";
    assert!(scene.number(apart) >= 2_000, "{}", scene.ctl_ok(&["events"]));
    assert_eq!(scene.number("SELECT count(*) FROM attempts"), 0);
    scene.worker_script(&scene.fake_worker_line());
    story::ends_the_same(&scene, "a worker that was mended");
}
