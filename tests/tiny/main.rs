//! Whole iterations with the real worker on a tiny random model, undisturbed and killed.
//!
//! Comes in: the golden models. Goes out: the promise that a run that was killed anywhere ends
//! with the same rows and the same checkpoint hashes, to the last bit. May not enter: a network, a
//! GPU.

mod arms;
mod chain;
mod diverged;
mod gpus;
mod judge;
mod references;
mod rescore;
mod split;

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use rlhfd_tests::binaries::{program, root};
use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::scene::{Scene, Settings, signal};
use rlhfd_tests::wait;
use rustix::process::Signal;

/// Enough work that a kill can fall into its middle, little enough for seconds.
fn settings() -> Settings {
    Settings::default()
        .with(
            "run",
            "policy = \"models/policy\"\nseed = 7\niterations_max = 2\nprompts_per_iteration = 12",
        )
        .with(
            "scheduler",
            "unit_tokens_cpu = 600\nheartbeat_ms = 200\nsilence_timeout_s = 60\n\
             progress_timeout_s = 60\nstop_timeout_s = 10",
        )
        .with("generate", "max_new_tokens = 48\nbatch_prompts = 2")
        .with(
            "[label.scorers]",
            "name = \"reward\"\nmodel = \"models/reward\"\n\n[[label.scorers]]\nname = \"watch\"\n\
             model = \"models/reward\"\nscore_position = \"last\"\ncanary = true",
        )
        .with(
            "train",
            "batch_pairs = 1\nmicro_batch_pairs = 1\nepochs = 4\nlearning_rate = 1e-3\n\
             save_every_steps = 2",
        )
        .with(
            "evaluate",
            "temperatures = [1.0]\nn = 2\nmax_new_tokens = 48\nbootstrap_samples = 100",
        )
}

fn queue(scene: &Scene) {
    scene.add_prompts("plain", 0, 44, "0.25");
}

fn undisturbed() -> &'static Dump {
    static DUMP: OnceLock<Dump> = OnceLock::new();
    DUMP.get_or_init(|| {
        let scene = Scene::real(&settings()).expect("the engine is built");
        let daemon = scene.start();
        queue(&scene);
        scene.wait_iterations(2);
        println!("{}", scene.ctl_ok(&["iterations"]));
        let dump = dump::dump(&scene.database());
        daemon.terminate();
        dump
    })
}

#[test]
fn an_iteration_learns_something_on_a_tiny_model() {
    let Some(scene) = Scene::real(&settings()) else { return };
    let _daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(2);
    let moved =
        "SELECT count(DISTINCT sha256) FROM checkpoints WHERE kind IN ('initial', 'policy')";
    assert_eq!(scene.number(moved), 3);
    let falls = "SELECT loss_last < 0.6931 FROM iteration_history WHERE iteration = 2";
    assert_eq!(scene.number(falls), 1, "the loss never fell below ln 2");
    let first = "SELECT abs(loss - 0.693147) < 0.001 FROM training_steps t
                 JOIN units u ON u.id = t.unit_id WHERE u.iteration = 1 AND t.step = 1";
    assert_eq!(scene.number(first), 1, "policy and reference are one at the first step");
    let unwatched = "SELECT count(*) FROM responses x WHERE NOT EXISTS (SELECT 1 FROM labels l
        JOIN scorers s ON s.id = l.scorer_id WHERE l.response_id = x.id AND s.name = 'watch')";
    assert_eq!(scene.number(unwatched), 0, "the canary has not seen a response");
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), "the same run twice");
    let place = scene.path("").to_string_lossy().trim_end_matches('/').to_owned();
    for folder in ["checkpoints/iteration-0002", "iterations/0002"] {
        for entry in fs::read_dir(scene.state().join("runs/main").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(place.len()).any(|window| window == place.as_bytes());
            assert!(!found, "{} names a place", path.display());
        }
    }
}

/// What is killed.
#[derive(Clone, Copy)]
enum Victim {
    Daemon,
    Worker,
}

/// Freezes the worker that has an open attempt at such a unit, and gives its process id.
fn frozen(scene: &Scene, units: &str) -> i32 {
    let open = format!(
        "SELECT coalesce((SELECT l.pid FROM attempts a JOIN units u ON u.id = a.unit_id
         JOIN leases l ON l.id = a.lease_id
         WHERE a.ended_ms IS NULL AND l.pid IS NOT NULL AND ({units}) LIMIT 1), 0)"
    );
    // One connection: on a loaded machine each opening takes as long as a small unit.
    let database = dump::open(&scene.database());
    let at = || database.query_row(&open, [], |row| row.get::<_, i64>(0)).unwrap();
    let ask = || {
        let pid = i32::try_from(at()).ok().filter(|pid| *pid > 0)?;
        signal(pid, Signal::STOP);
        // What it had sent is taken in by now, or the attempt is open still and stays so.
        std::thread::sleep(Duration::from_millis(300));
        let _ = scene.status();
        if i64::from(pid) == at() {
            return Some(pid);
        }
        signal(pid, Signal::CONT);
        None
    };
    wait::until(&format!("a worker at {units}"), ask, || scene.told())
}

fn killed(scene: &Scene, units: &str, victim: Victim) {
    let mut daemon = scene.start();
    queue(scene);
    let worker = frozen(scene, units);
    match victim {
        Victim::Worker => signal(worker, Signal::KILL),
        Victim::Daemon => {
            daemon.kill();
            daemon = scene.start();
        }
    }
    scene.wait_iterations(2);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    // A unit that the worker had not begun yet is given back.
    let cut_off = "SELECT count(*) FROM attempts WHERE outcome <> 'finished'";
    assert!(scene.number(cut_off) >= 1, "nothing was cut off");
    drop(daemon);
}

fn check(units: &str, victim: Victim) {
    let Some(scene) = Scene::real(&settings()) else { return };
    killed(&scene, units, victim);
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), units);
}

const GENERATE: &str = "u.work = 'generate' AND u.stage = 'generate'";
const LABEL: &str = "u.work = 'score' AND u.stage = 'label'";
const EVALUATE: &str = "u.work IN ('generate', 'score', 'logprobs') AND u.stage = 'evaluate'";
/// Some saves are made, and the last step is still to come.
const TRAIN: &str = "u.work = 'train_dpo' AND u.iteration = 1 AND u.last_step >= 2";

#[test]
fn the_daemon_dies_in_generate() {
    check(GENERATE, Victim::Daemon);
}

#[test]
fn the_worker_dies_in_generate() {
    check(GENERATE, Victim::Worker);
}

#[test]
fn the_daemon_dies_in_label() {
    check(LABEL, Victim::Daemon);
}

#[test]
fn the_worker_dies_in_label() {
    check(LABEL, Victim::Worker);
}

#[test]
fn the_daemon_dies_in_evaluate() {
    check(EVALUATE, Victim::Daemon);
}

#[test]
fn the_worker_dies_in_evaluate() {
    check(EVALUATE, Victim::Worker);
}

const FIRST_STEP: &str = "SELECT max(a.first_step) FROM attempts a JOIN units u ON u.id = a.unit_id
    WHERE u.work = 'train_dpo' AND u.iteration = 1 AND a.number > 1";

#[test]
fn the_daemon_dies_in_train_and_its_next_attempt_goes_on() {
    let Some(scene) = Scene::real(&settings()) else { return };
    killed(&scene, TRAIN, Victim::Daemon);
    assert!(scene.number(FIRST_STEP) > 1);
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), "daemon, train");
}

#[test]
fn the_worker_dies_in_train_and_its_next_attempt_goes_on() {
    let Some(scene) = Scene::real(&settings()) else { return };
    killed(&scene, TRAIN, Victim::Worker);
    assert!(scene.number(FIRST_STEP) > 1);
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), "worker, train");
}

#[test]
fn without_resuming_a_training_begins_at_the_first_step() {
    let Some(mut scene) = Scene::real(&settings()) else { return };
    // Nothing is resumed: the two tests above would fail like this.
    scene.environment.push(("RLHFD_TEST_NO_RESUME".into(), "1".into()));
    killed(&scene, TRAIN, Victim::Worker);
    assert_eq!(scene.number(FIRST_STEP), 1);
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), "trained anew");
}

#[test]
fn a_reward_model_is_trained_killed_and_used_by_the_loop() {
    let settings = settings()
        .with("[label.scorers]", "name = \"reward\"\njob = \"reward/main\"")
        .with(
            "reward",
            "batch_pairs = 1\nmicro_batch_pairs = 1\nepochs = 4\nlearning_rate = 1e-3\n\
             save_every_steps = 2\nheld_out_share = 0.4",
        )
        .with(
            "evaluate",
            "temperatures = [0.0, 1.0]\nn = 2\nmax_new_tokens = 16\nbootstrap_samples = 100",
        )
        .set("run", "iterations_max", "1");
    let Some(scene) = Scene::real(&settings) else { return };
    let _daemon = scene.start();
    queue(&scene);
    let pair = |n: usize| {
        format!("{{\"prompt\": \"tell {n}\", \"chosen\": \"e e {n}\", \"rejected\": \"z {n}\"}}\n")
    };
    let data = scene.write("pairs.jsonl", &(0..12).map(pair).collect::<String>());
    scene.ctl_ok(&["train", "reward", "--data", &data.to_string_lossy()]);
    let training = "u.work = 'train_reward' AND u.last_step >= 2";
    signal(frozen(&scene, training), Signal::KILL);
    scene.wait_iterations(1);
    let first = "SELECT max(a.first_step) FROM attempts a JOIN units u ON u.id = a.unit_id
                 WHERE u.work = 'train_reward'";
    assert!(scene.number(first) > 1);
    let steps = "SELECT count(*) FROM training_steps t JOIN units u ON u.id = t.unit_id
                 WHERE u.work = 'train_reward'";
    // What is held out is not trained on, and told of.
    let held_out = "SELECT sum(pairs) FROM training_reports WHERE source = ''";
    let held_out = scene.number(held_out);
    assert!((1..12).contains(&held_out), "{held_out}");
    assert_eq!(scene.number(steps), 4 * (12 - held_out));
    let sound = "SELECT count(*) FROM training_reports WHERE accuracy BETWEEN 0 AND 1
                 AND calibration_error BETWEEN 0 AND 1 AND responses = 2 * pairs";
    assert_eq!(scene.number(sound), 1);
    // Greedy writes one answer, and only answers at temperature 1 tell of the KL.
    let evaluated = "SELECT group_concat(temperature || ':' || (responses / prompts) || ':' ||
        (kl_k3 IS NOT NULL), ' ') FROM (SELECT * FROM evaluations WHERE iteration = 1
        AND policy_id <> baseline_id ORDER BY temperature)";
    assert_eq!(dump::text(&scene.database(), evaluated).unwrap(), "0.0:1:0 1.0:2:1");
}

#[test]
fn an_adapter_goes_on_over_the_initial_policy_and_killed_it_ends_the_same() {
    let settings = settings().set("train", "lora_rank", "4").set("train", "lora_dropout", "0.2");
    let Some(scene) = Scene::real(&settings) else { return };
    let daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(2);
    let undisturbed = dump::dump(&scene.database());
    let initial = "SELECT sha256 FROM checkpoints WHERE kind = 'initial'";
    let initial = dump::text(&scene.database(), initial).unwrap();
    let adapter = |iteration: &str, file: &str| {
        let folder = scene.state().join("runs/main/checkpoints").join(iteration).join("adapter");
        fs::read(folder.join(file)).unwrap()
    };
    for iteration in ["iteration-0001", "iteration-0002"] {
        let note = String::from_utf8(adapter(iteration, "base.json")).unwrap();
        assert!(note.contains(&initial), "{iteration}: {note}");
    }
    let weights = ["iteration-0001", "iteration-0002"]
        .map(|iteration| adapter(iteration, "adapter_model.safetensors"));
    assert_ne!(weights[0], weights[1], "the second iteration goes on");
    daemon.terminate();
    let Some(scene) = Scene::real(&settings) else { return };
    killed(&scene, TRAIN, Victim::Worker);
    assert!(scene.number(FIRST_STEP) > 1);
    dump::assert_same(&undisturbed, &dump::dump(&scene.database()), "worker, train with LoRA");
}

#[test]
fn a_chain_of_trainings_and_an_iteration_runs_on_a_tiny_model_without_a_command() {
    let steps = "epochs = 1\nlearning_rate = 1e-3\nsave_every_steps = 2";
    let settings = settings()
        .set("run", "start", "\"sft/main\"")
        .set("run", "iterations_max", "1")
        .with("[label.scorers]", "name = \"reward\"\njob = \"reward/main\"")
        .with("sft", &format!("data = [\"talk.jsonl\"]\nblock_tokens = 64\n{steps}"))
        .with("reward", &format!("data = [\"kept.jsonl\"]\nbatch_pairs = 2\n{steps}"));
    let Some(scene) = Scene::real(&settings) else { return };
    offline_pairs(&scene, 6);
    let turn = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
    let talk = |n: usize| {
        let turns = [turn("user", &format!("tell {n}")), turn("assistant", &format!("e e {n}"))];
        serde_json::json!({ "messages": turns }).to_string() + "\n"
    };
    scene.write("talk.jsonl", &(0..8).map(talk).collect::<String>());
    let _daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(1);
    let moved = "SELECT count(DISTINCT sha256) FROM checkpoints";
    assert_eq!(scene.number(moved), 4, "base, sft-main, reward-main, iteration-0001");
    let held = "SELECT count(*) FROM runs r JOIN checkpoints c ON c.id = r.reference_id
        AND c.id = r.initial_id WHERE c.name = 'sft-main'";
    assert_eq!(scene.number(held), 1);
    let first = "SELECT abs(loss - 0.693147) < 0.001 FROM training_steps t
                 JOIN units u ON u.id = t.unit_id WHERE u.work = 'train_dpo' AND t.step = 1";
    assert_eq!(scene.number(first), 1, "the policy begins where its reference is");
}

/// Offline pairs as whole conversations, which file mode and daemon read alike.
/// Offline preferences: so many.
fn offline_pairs(scene: &Scene, count: usize) -> String {
    let side = |question: &str, answer: &str| {
        serde_json::json!([
            {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        ])
    };
    let line = |n: usize| {
        let question = format!("say {} again", "word ".repeat(n % 4));
        let chosen = side(&question, &format!("short {n}"));
        let rejected = side(&question, &format!("a long answer {n} that goes on"));
        serde_json::json!({"chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    let lines: String = (0..count).map(line).collect();
    scene.write("kept.jsonl", &lines).to_string_lossy().into_owned()
}

/// Runs the worker's file mode.
fn worker(scene: &Scene, words: &[&str]) {
    let mut command = std::process::Command::new(program("rlhfd-worker"));
    command.env("RLHFD_LIBTORCH", root().join("libtorch"));
    command.args(words).args(["--device", "cpu", "--threads", "1"]);
    let output = command.current_dir(scene.path("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An iteration that has offline pairs alone makes the steps that file mode makes of the same file: the
/// same token ids, the same reference, and at first no margin.
#[test]
fn offline_pairs_are_trained_on_as_file_mode_trains_on_them() {
    let train = "batch_pairs = 8\nmicro_batch_pairs = 1\nepochs = 4\nlearning_rate = 1e-3\n\
                 warmup_ratio = 0.0\noffline = [\"kept\"]";
    let settings = settings().with("train", train).with("pair", "score_gap_min = 1000.0").set(
        "run",
        "iterations_max",
        "1",
    );
    let Some(scene) = Scene::real(&settings) else { return };
    let daemon = scene.start();
    let file = offline_pairs(&scene, 6);
    scene.ctl_ok(&["preferences", "add", &file, "--set", "kept"]);
    queue(&scene);
    scene.wait_iterations(1);
    assert_eq!(scene.number("SELECT offline FROM iteration_history WHERE preferences = 0"), 6);
    daemon.terminate();

    let model = "models/policy";
    worker(&scene, &["logprobs", "--model", model, "--data", &file, "--out", "sums.jsonl"]);
    let sums = json_lines(&fs::read_to_string(scene.path("sums.jsonl")).unwrap());
    let pairs = scene.state().join("runs/main/iterations/0001/pairs.jsonl");
    let pairs = json_lines(&fs::read_to_string(pairs).unwrap());
    assert_eq!(pairs.len(), 6);
    for (pair, sum) in pairs.iter().zip(&sums) {
        for side in ["chosen", "rejected"] {
            let own = pair[format!("reference_logprob_{side}")].as_f64().unwrap();
            let theirs = sum[side].as_f64().unwrap();
            assert!((own - theirs).abs() < 1e-3, "{side}: {own} and {theirs}");
        }
    }
    let own = train.lines().filter(|line| !line.starts_with("offline")).collect::<Vec<_>>();
    scene.write("train.toml", &own.join("\n"));
    let words = ["train", "dpo", "--policy", model, "--reference", model, "--data", &file];
    worker(&scene, &[&words[..], &["--out", "out", "--config", "train.toml"]].concat());
    let steps = |folder| json_lines(&fs::read_to_string(scene.path(folder)).unwrap());
    let theirs = steps("out/steps.jsonl");
    let ours = steps("state/runs/main/checkpoints/iteration-0001/steps.jsonl");
    assert_eq!((ours.len(), theirs.len()), (4, 4));
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap();
    assert!((number(&ours[0], "loss") - std::f64::consts::LN_2).abs() < 1e-5);
    assert!(number(&ours[0], "margin").abs() < 1e-5);
    assert!(number(&ours[3], "loss") < 0.68, "nothing was learnt: {ours:?}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for (key, near) in [("loss", 1e-4), ("margin", 1e-3), ("grad_norm", 1e-2)] {
            let (ours, theirs) = (number(ours, key), number(theirs, key));
            assert!((ours - theirs).abs() < near, "{key}: {ours} and {theirs}");
        }
    }
}

#[test]
fn a_worker_that_dies_among_offline_pairs_changes_nothing() {
    // Their units take some milliseconds each: of a few, none might be met on a loaded machine.
    const PAIRS: usize = 48;
    let settings =
        settings().set("train", "offline", "[\"kept\"]").set("run", "iterations_max", "1");
    let told = |kill: bool| -> Option<Dump> {
        let scene = Scene::real(&settings)?;
        let daemon = scene.start();
        let file = offline_pairs(&scene, PAIRS);
        scene.ctl_ok(&["preferences", "add", &file, "--set", "kept"]);
        queue(&scene);
        if kill {
            signal(frozen(&scene, "u.work IN ('render_pairs', 'logprobs_pairs')"), Signal::KILL);
        }
        scene.wait_iterations(1);
        assert_eq!(scene.number("SELECT offline FROM iteration_history"), PAIRS as i64);
        let mixed = "SELECT count(*) FROM training_set_members WHERE preference_id IS NOT NULL";
        assert!(scene.number(mixed) > 0);
        let dump = dump::dump(&scene.database());
        daemon.terminate();
        Some(dump)
    };
    let (Some(undisturbed), Some(killed)) = (told(false), told(true)) else { return };
    dump::assert_same(&undisturbed, &killed, "killed among offline pairs");
}
