//! Arms of several policies: who writes, in which order, and what a kill among them changes.

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, signal};
use rlhfd_tests::wait;
use rustix::process::Signal;

use crate::story;

/// The head writes samples 0, 1 and 3, the policy before it sample 2.
const ARMS: &str = "name = \"warm\"\nn = 2\n\n\
    [[generate.arms]]\nname = \"old\"\npolicy = \"previous\"\nn = 1\n\n\
    [[generate.arms]]\nname = \"cool\"\ntemperature = 0.7\nn = 1";

fn settings(arms: &str) -> Settings {
    Settings::default().with("[generate.arms]", arms)
}

fn text(scene: &Scene, sql: &str) -> String {
    dump::text(&scene.database(), sql).unwrap_or_default()
}

#[test]
fn two_policies_answer_every_prompt_and_each_response_knows_its_own() {
    let (scene, _) = story::whole(Scene::fake(&settings(ARMS)));
    story::check_laws(&scene);
    let wrote = "SELECT group_concat(line, '; ') FROM (SELECT x.iteration || ' ' || x.arm || ' '
            || c.name || ' ' || count(*) || ' ' || min(x.sample) || '-' || max(x.sample) AS line
        FROM responses x JOIN checkpoints c ON c.id = x.policy_id WHERE x.purpose = 'generate'
        GROUP BY x.iteration, x.arm ORDER BY x.iteration, min(x.sample))";
    assert_eq!(
        text(&scene, wrote),
        "1 warm initial 24 0-1; 1 old initial 12 2-2; 1 cool initial 12 3-3; \
         2 warm iteration-0001 24 0-1; 2 old initial 12 2-2; 2 cool iteration-0001 12 3-3"
    );
    // Where they are one policy, its units have the plain keys.
    let keys = "SELECT group_concat(stem, ' ') FROM (SELECT DISTINCT
            substr(key, 1, instr(key, '/generate/') + 9) || iif(key LIKE '%initial%', 'initial',
            iif(key LIKE '%iteration%', 'iteration-0001', '')) AS stem
        FROM units WHERE stage = 'generate' ORDER BY 1)";
    assert_eq!(text(&scene, keys), "1/generate/ 2/generate/initial 2/generate/iteration-0001");
    // A pair may hold responses of two policies; the update takes both.
    let mixed = "SELECT count(*) FROM preferences p JOIN responses c ON c.id = p.chosen_id
        JOIN responses r ON r.id = p.rejected_id WHERE c.policy_id <> r.policy_id";
    assert!(scene.number(mixed) > 0);
}

#[test]
fn all_of_one_policy_is_generated_before_the_other_is_loaded() {
    let (scene, _) = story::whole(Scene::fake(&settings(ARMS)));
    let loads =
        "SELECT count(*) FROM (SELECT policy_id, lag(policy_id) OVER (ORDER BY a.id) AS before
        FROM attempts a JOIN units u ON u.id = a.unit_id
        WHERE u.stage = 'generate' AND u.iteration = 2) WHERE policy_id <> before";
    assert_eq!(scene.number(loads), 1);
}

#[test]
fn kills_under_both_policies_end_with_the_same_rows() {
    let (calm, undisturbed) = story::whole(Scene::fake(&settings(ARMS)));
    // A prompt of the second iteration, which is met again and again.
    let prompt = text(
        &calm,
        "SELECT json_extract(p.messages, '$[0].content') FROM draws d
         JOIN prompts p ON p.id = d.prompt_id WHERE d.iteration = 2 AND d.ordinal = 3",
    );
    let scene = Scene::fake(&settings(ARMS));
    let hold = |name: &str| {
        format!(
            r#"{{"name": "{name}", "work": "generate", "purpose": "generate",
                "containing": "{prompt}\n", "act": {{"kind": "hold"}}}}"#
        )
    };
    let faults: Vec<String> = ["one", "two", "three", "four"].map(hold).into();
    scene.plan(&format!(r#"{{"faults": [{}]}}"#, faults.join(", ")));
    let daemon = scene.start();
    story::queue(&scene);
    scene.held("one");
    daemon.kill();
    let daemon = scene.start();
    signal(scene.held("two"), Signal::KILL);
    scene.held("three");
    scene.release("three");
    // Now the other policy has come to it.
    scene.held("four");
    daemon.kill();
    let _daemon = scene.start();
    scene.wait_iterations(2);
    story::check_laws(&scene);
    let died = "SELECT count(DISTINCT u.policy_id) FROM attempts a JOIN units u ON u.id = a.unit_id
                WHERE a.outcome = 'died' AND u.stage = 'generate' AND u.iteration = 2";
    assert_eq!(scene.number(died), 2);
    dump::assert_same(&undisturbed, &dump::dump(&scene.database()), "kills under both policies");
}

#[test]
fn a_sampler_pinned_to_the_initial_policy_makes_the_loop_offline() {
    let pinned = "name = \"pinned\"\npolicy = \"initial\"\nn = 3";
    let (scene, _) = story::whole(Scene::fake(&settings(pinned)));
    story::check_laws(&scene);
    let others = "SELECT count(*) FROM responses x JOIN checkpoints c ON c.id = x.policy_id
                  WHERE x.purpose = 'generate' AND c.kind <> 'initial'";
    let all = "SELECT count(*) FROM responses WHERE purpose = 'generate'";
    assert_eq!((scene.number(others), scene.number(all)), (0, 72));
    let keys =
        "SELECT count(*) FROM units WHERE stage = 'generate' AND key GLOB '[12]/generate/*-*'
                AND key NOT GLOB '[12]/generate/*/*'";
    let units = "SELECT count(*) FROM units WHERE stage = 'generate'";
    assert_eq!(scene.number(keys), scene.number(units));
    // The policy itself goes on all the same.
    let line = "SELECT policy_in FROM iteration_history WHERE iteration = 2";
    assert_eq!(text(&scene, line), "iteration-0001");
}

#[test]
fn a_checkpoint_that_the_run_does_not_have_holds_it_up_before_any_work() {
    let unknown = "name = \"cold\"\npolicy = \"iteration-0001\"\nn = 3";
    let scene = Scene::fake(&settings(unknown));
    let check = |scene: &Scene| {
        let output = scene.rlhfd(&["check"]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (well, said) = check(&scene);
    assert!(!well && said.contains("iteration-0001, and run main has not begun"), "{said}");
    let daemon = scene.start();
    story::queue(&scene);
    let told = || {
        let waits = scene.status()["waits_for"].to_string();
        waits.contains("no policy iteration-0001").then_some(waits)
    };
    let waits = wait::until("the daemon to say what it misses", told, || scene.told());
    assert!(waits.contains("newest is initial") && waits.contains("[[generate.arms]]"), "{waits}");
    assert_eq!(scene.number("SELECT count(*) FROM iterations"), 0);
    daemon.terminate();
    let (well, said) = check(&scene);
    assert!(!well && said.contains("has no policy iteration-0001"), "{said}");

    scene.configure(&settings("name = \"warm\"\nn = 3").set("run", "iterations_max", "1"));
    let daemon = scene.start();
    scene.wait_iterations(1);
    daemon.terminate();
    scene.configure(&settings(unknown));
    let (well, said) = check(&scene);
    assert!(well && said.contains("cold samples from iteration-0001"), "{said}");
    let daemon = scene.start();
    scene.wait_iterations(2);
    let pinned = "SELECT count(*) FROM responses x JOIN checkpoints c ON c.id = x.policy_id
                  WHERE x.iteration = 2 AND x.purpose = 'generate' AND c.name = 'iteration-0001'";
    assert_eq!(scene.number(pinned), 36);
    daemon.terminate();
}

#[test]
fn a_name_that_no_checkpoint_can_have_is_refused_with_the_configuration() {
    let scene = Scene::fake(&settings("policy = \"iteration-2\"\nn = 3"));
    let output = scene.rlhfd(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("generate.arms.policy: is \"iteration-2\", but must be"), "{said}");
}
