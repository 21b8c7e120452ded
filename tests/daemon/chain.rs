//! The unattended chain: a configuration that names its data runs from supervised fine-tuning by the
//! reward model and the preference model to the loop, without a command; killed on its way, it ends the same.

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, text};
use rlhfd_tests::wait;

use crate::story;

/// The loop of the usual settings behind three trainings of five steps each.
fn settings() -> Settings {
    let steps = "epochs = 1\nsave_every_steps = 2";
    Settings::default()
        .set("run", "start", "\"sft/main\"")
        .set("run", "iterations_max", "1")
        .with(
            "[label.scorers]",
            "name = \"reward\"\njob = \"reward/main\"\n\n[[label.scorers]]\nname = \"judge\"\n\
             kind = \"preference\"\njob = \"preference/main\"",
        )
        .with("sft", &format!("data = [\"talk.jsonl\"]\nbatch_sequences = 2\n{steps}"))
        .with(
            "reward",
            &format!("data = [\"better.jsonl\", \"more.jsonl\"]\nbatch_pairs = 2\n{steps}"),
        )
        .with(
            "preference",
            &format!("data = [\"better.jsonl\", \"more.jsonl\"]\nbatch_sequences = 2\n{steps}"),
        )
}

fn scene() -> Scene {
    let scene = Scene::fake(&settings());
    let turn =
        |role: &str, n: usize| format!("{{\"role\": \"{role}\", \"content\": \"tell {n}\"}}");
    let talk = |n| format!("{{\"messages\": [{}, {}]}}\n", turn("user", n), turn("assistant", n));
    scene.write("talk.jsonl", &(0..10).map(talk).collect::<String>());
    let better = |n| {
        format!("{{\"prompt\": \"tell {n}\", \"chosen\": \"{n}!\", \"rejected\": \"no {n}\"}}\n")
    };
    scene.write("better.jsonl", &(0..6).map(better).collect::<String>());
    scene.write("more.jsonl", &(6..10).map(better).collect::<String>());
    scene
}

/// Everything that must agree between two chains.
fn outcome(scene: &Scene) -> String {
    let sums = "SELECT group_concat(name || ' ' || sha256, ', ' ORDER BY name) FROM checkpoints";
    let jobs = "SELECT group_concat(kind || ' ' || name || ' ' || number || ' ' || status || ' ' ||
        base_sha256, ', ' ORDER BY kind) FROM training_jobs";
    let database = scene.database();
    format!("{:?} {:?}", dump::text(&database, sums), dump::text(&database, jobs))
}

fn undisturbed() -> String {
    let scene = scene();
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    outcome(&scene)
}

fn waits_for(scene: &Scene, part: &str) {
    let told = || scene.status()["waits_for"].to_string().contains(part).then_some(());
    wait::until(&format!("status to say {part}"), told, || scene.told());
}

#[test]
fn a_configuration_alone_leads_from_data_to_an_iteration() {
    let scene = scene();
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    story::check_laws(&scene);
    let chain = "SELECT p.name || ' ' || i.name || ' ' || r.name || ' ' || b.name FROM runs r0
        JOIN checkpoints i ON i.id = r0.initial_id JOIN checkpoints p ON p.id = i.parent_id
        JOIN checkpoints r ON r.id = r0.reference_id JOIN checkpoints m ON m.name = 'reward-main'
        JOIN checkpoints b ON b.id = m.parent_id";
    let told = dump::text(&scene.database(), chain);
    assert_eq!(told.as_deref(), Some("base sft-main sft-main sft-main"));
    let line = "SELECT group_concat(ancestor, ', ' ORDER BY depth) FROM checkpoint_lineage
        WHERE checkpoint = 'main/iteration-0001'";
    let told = dump::text(&scene.database(), line);
    assert_eq!(told.as_deref(), Some("main/iteration-0001, main/sft-main, main/base"));
    let trained = "SELECT count(*) FROM training_steps s JOIN units u ON u.id = s.unit_id
        WHERE u.work = 'train_reward'";
    assert_eq!(scene.number(trained), 5, "both files were trained on");
    assert_eq!(scene.number(&trained.replace("train_reward", "train_preference")), 5);
    assert_eq!(scene.number("SELECT count(*) FROM uploads WHERE state <> 'published'"), 0);
}

/// The daemon dies before the fourth step of each training, and in the loop.
#[test]
fn a_chain_whose_daemon_dies_in_each_part_ends_the_same() {
    let wanted = undisturbed();
    for work in ["train_sft", "train_reward", "train_preference", "train_dpo"] {
        let scene = scene();
        scene.plan(&format!(
            "{{\"faults\": [{{\"name\": \"here\", \"work\": \"{work}\", \"after\": 3, \
             \"act\": {{\"kind\": \"hold\"}}}}]}}"
        ));
        let daemon = scene.start();
        story::queue(&scene);
        scene.held("here");
        daemon.kill();
        let _daemon = scene.start();
        scene.wait_iterations(1);
        assert_eq!(outcome(&scene), wanted, "{work}");
        assert_eq!(scene.number("SELECT count(*) FROM training_jobs"), 3, "{work}");
    }
}

#[test]
fn a_run_that_waits_for_its_start_says_so_and_keeps_it() {
    let scene = Scene::fake(&settings().set("sft", "data", "[]").set("reward", "data", "[]").set(
        "preference",
        "data",
        "[]",
    ));
    let daemon = scene.start();
    waits_for(&scene, "rlhfctl train sft --data FILE --name main");
    daemon.terminate();
    scene.configure(&settings().set("run", "start", "\"policy\""));
    let _daemon = scene.start();
    waits_for(&scene, "was begun with the start sft/main");
    let output = scene.rlhfd(&["check"]).output().unwrap();
    assert!(text(&output.stdout).contains("the start sft/main"), "{}", text(&output.stdout));
}

#[test]
fn missing_bad_and_changed_data_are_told_and_train_nothing() {
    let scene = scene();
    std::fs::remove_file(scene.path("talk.jsonl")).unwrap();
    scene.write("more.jsonl", "{\"prompt\": \"q\", \"chosen\": \"a\"}\n");
    let daemon = scene.start();
    waits_for(&scene, "talk.jsonl");
    waits_for(&scene, "more.jsonl: 1 of 1 lines are bad");
    waits_for(&scene, "line 1 ");
    let output = scene.rlhfd(&["check"]).output().unwrap();
    let told = text(&output.stdout);
    assert!(told.contains("talk.jsonl cannot be read"), "{told}");
    assert!(told.contains("more.jsonl: 1 of 1 lines are bad"), "{told}");
    assert!(told.contains("better.jsonl: 6 preferences for reward/main"), "{told}");
    assert_eq!(scene.number("SELECT count(*) FROM training_jobs"), 0);
    daemon.terminate();

    let scene = self::scene();
    let _daemon = scene.start();
    let done = "SELECT count(*) FROM training_jobs WHERE status = 'done'";
    scene.wait_number("all jobs to end", done, 3);
    let more = "{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
    scene.write("more.jsonl", more);
    let told =
        || scene.status()["config_pending"].to_string().contains("reward/main").then_some(());
    wait::until("status to tell of other data", told, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM training_jobs"), 3);
}
