//! Training jobs: supervised fine-tuning from upload to checkpoint, killed on its way, and asked for
//! again after it was given up.

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, signal};
use rustix::process::Signal;

/// Ten conversations in steps of two: five steps, the second and the fourth saved.
fn scene() -> Scene {
    let text = "batch_sequences = 2\nepochs = 1\nsave_every_steps = 2";
    Scene::fake(&Settings::default().with("sft", text))
}

fn conversations(scene: &Scene) -> String {
    let line = |n: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"say {n}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"{n}!\"}}]}}\n"
        )
    };
    let path = scene.write("talk.jsonl", &(0..10).map(line).collect::<String>());
    path.to_string_lossy().into_owned()
}

const SUM: &str = "SELECT sha256 FROM checkpoints WHERE name = 'sft-main'";

/// The sum of what an undisturbed job makes.
fn undisturbed() -> Option<String> {
    let scene = scene();
    let _daemon = scene.start();
    scene.ctl_ok(&["train", "sft", "--data", &conversations(&scene)]);
    scene.ctl_ok(&["wait", "--job", "sft/main", "--timeout", "60"]);
    dump::text(&scene.database(), SUM)
}

#[test]
fn conversations_become_a_policy_that_jobs_and_checkpoints_show() {
    let scene = scene();
    let _daemon = scene.start();
    let said = scene.ctl_ok(&["train", "sft", "--data", &conversations(&scene), "--name", "talk"]);
    assert!(said.contains("sft/talk queued with 10 conversations"), "{said}");
    scene.ctl_ok(&["wait", "--job", "sft/talk", "--timeout", "60"]);
    let told = scene.ctl_ok(&["jobs"]);
    assert!(told.contains("sft/talk") && told.contains("sft-talk"), "{told}");
    assert!(scene.ctl_ok(&["checkpoints"]).contains("sft-talk"));
    let steps = "SELECT count(*) FROM training_steps s JOIN units u ON u.id = s.unit_id
        WHERE u.work = 'train_sft' AND s.token_accuracy IS NOT NULL AND s.accuracy IS NULL
        AND s.margin IS NULL";
    assert_eq!(scene.number(steps), 5);
    let policy = "SELECT count(*) FROM checkpoints c JOIN training_jobs j ON j.checkpoint_id = c.id
        JOIN checkpoints p ON p.id = c.parent_id
        WHERE c.name = 'sft-talk' AND c.kind = 'policy' AND p.name = 'initial'";
    assert_eq!(scene.number(policy), 1);
    let head = "SELECT count(*) FROM runs r JOIN checkpoints c ON c.id = r.head_id
        WHERE c.name = 'initial'";
    assert_eq!(scene.number(head), 1, "a job's policy is no head by itself");
    assert!(scene.state().join("runs/main/checkpoints/sft-talk/steps.jsonl").is_file());
    assert!(!scene.state().join("uploads/1.jsonl").exists(), "its data lies in its folder");
}

#[test]
fn examples_whose_prompt_is_kept_for_evaluation_are_not_trained_on() {
    let scene = scene();
    let _daemon = scene.start();
    scene.add_prompts("kept", 2, 6, "0.999999");
    let said = scene.ctl_ok(&["train", "sft", "--data", &conversations(&scene)]);
    assert!(said.contains("queued with 6 conversations"), "{said}");
    scene.ctl_ok(&["wait", "--job", "sft/main", "--timeout", "60"]);
    assert_eq!(scene.number("SELECT count(*) FROM training_steps"), 3);
    let told = "SELECT count(*) FROM events WHERE kind = 'conversations_dropped'
        AND message LIKE '%4 evaluation_prompt'";
    assert_eq!(scene.number(told), 1, "{}", scene.told());
}

#[test]
fn a_bad_line_is_told_and_nothing_is_taken() {
    let scene = scene();
    let _daemon = scene.start();
    let line = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n";
    let data = scene.write("bad.jsonl", line).to_string_lossy().into_owned();
    let output = scene.ctl(&["train", "sft", "--data", &data]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no message of the assistant"), "{said}");
    assert_eq!(scene.number("SELECT count(*) FROM training_jobs"), 0);
}

/// Killed before its fourth step, it goes on from the second, and ends with the same bits.
#[test]
fn a_job_that_is_killed_goes_on_and_ends_the_same() {
    let wanted = undisturbed();
    assert!(wanted.is_some());
    for kill_daemon in [false, true] {
        let scene = scene();
        scene.plan(
            r#"{"faults": [{"name": "here", "work": "train_sft", "after": 3, "act": {"kind": "hold"}}]}"#,
        );
        let mut daemon = scene.start();
        scene.ctl_ok(&["train", "sft", "--data", &conversations(&scene)]);
        let worker = scene.held("here");
        if kill_daemon {
            daemon.kill();
            daemon = scene.start();
        } else {
            signal(worker, Signal::KILL);
        }
        scene.ctl_ok(&["wait", "--job", "sft/main", "--timeout", "60"]);
        let first = "SELECT a.first_step FROM attempts a JOIN units u ON u.id = a.unit_id
            WHERE u.work = 'train_sft' AND a.number = 2";
        assert_eq!(scene.number(first), 3, "two steps were saved");
        assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
        assert_eq!(dump::text(&scene.database(), SUM), wanted);
        drop(daemon);
    }
}

#[test]
fn the_name_of_a_cancelled_job_is_free_again() {
    let scene = scene();
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "train_sft", "after": 3, "act": {"kind": "hold"}}]}"#,
    );
    let _daemon = scene.start();
    let data = conversations(&scene);
    let train = ["train", "sft", "--data", data.as_str()];
    scene.ctl_ok(&train);
    scene.held("here");
    let standing = scene.ctl(&train);
    assert!(!standing.status.success(), "the job is open");
    scene.ctl_ok(&["cancel", "--job", "sft/main"]);
    scene.ctl_ok(&train);
    scene.release("here");
    scene.ctl_ok(&["wait", "--job", "sft/main", "--timeout", "60"]);
    let history = "SELECT group_concat(number || ' ' || status, ', ' ORDER BY number)
        FROM training_jobs WHERE kind = 'sft' AND name = 'main'";
    let told = dump::text(&scene.database(), history);
    assert_eq!(told.as_deref(), Some("1 cancelled, 2 done"));
    let made = "SELECT c.name FROM training_jobs j JOIN checkpoints c ON c.id = j.checkpoint_id";
    assert_eq!(dump::text(&scene.database(), made).as_deref(), Some("sft-main~2"));
    let standing = scene.ctl(&train);
    let said = String::from_utf8_lossy(&standing.stderr).into_owned();
    assert!(!standing.status.success() && said.contains("choose another name"), "{said}");
}

fn preferences(scene: &Scene) -> String {
    let line = |n: usize| {
        format!("{{\"prompt\": \"say {n}\", \"chosen\": \"{n}!\", \"rejected\": \"no {n}\"}}\n")
    };
    let path = scene.write("better.jsonl", &(0..10).map(line).collect::<String>());
    path.to_string_lossy().into_owned()
}

/// A preference model is a job as the others are; killed on its way, it ends with the same bits.
#[test]
fn preferences_become_a_preference_model_also_over_a_kill() {
    let scene_of = || {
        let text = "batch_sequences = 2\nepochs = 1\nsave_every_steps = 2";
        Scene::fake(&Settings::default().with("preference", text))
    };
    let sum = |scene: &Scene| {
        let sum = "SELECT sha256 FROM checkpoints WHERE name = 'preference-judge'
            AND kind = 'preference'";
        dump::text(&scene.database(), sum)
    };
    let train = |scene: &Scene| {
        let data = preferences(scene);
        scene.ctl_ok(&["train", "preference", "--data", &data, "--name", "judge"])
    };
    let undisturbed = scene_of();
    let _daemon = undisturbed.start();
    let said = train(&undisturbed);
    assert!(said.contains("preference/judge queued with 10 preferences"), "{said}");
    undisturbed.ctl_ok(&["wait", "--job", "preference/judge", "--timeout", "60"]);
    assert!(undisturbed.ctl_ok(&["jobs"]).contains("preference/judge"));
    let steps = "SELECT count(*) FROM training_steps s JOIN units u ON u.id = s.unit_id
        WHERE u.work = 'train_preference' AND s.token_accuracy IS NOT NULL";
    assert_eq!(undisturbed.number(steps), 5);
    assert!(sum(&undisturbed).is_some());

    let scene = scene_of();
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "train_preference", "after": 3, "act": {"kind": "hold"}}]}"#,
    );
    let daemon = scene.start();
    train(&scene);
    scene.held("here");
    daemon.kill();
    let _daemon = scene.start();
    scene.ctl_ok(&["wait", "--job", "preference/judge", "--timeout", "60"]);
    let first = "SELECT a.first_step FROM attempts a JOIN units u ON u.id = a.unit_id
        WHERE u.work = 'train_preference' AND a.number = 2";
    assert_eq!(scene.number(first), 3, "two steps were saved");
    assert_eq!(sum(&scene), sum(&undisturbed));
}
