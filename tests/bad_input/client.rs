//! `rlhfctl` where nobody serves, and commands that mean nothing now.

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, text};

#[test]
fn without_a_daemon_every_verb_says_how_to_start_one() {
    let scene = Scene::empty(&Settings::default());
    for words in [&["status"][..], &["iterations"], &["start"], &["sql", "SELECT 1"]] {
        let output = scene.ctl(words);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{words:?}");
        let socket = scene.socket().to_string_lossy().into_owned();
        assert!(said.contains(&socket), "{words:?}: {said}");
        assert!(said.contains("rlhfd run"), "{words:?}: {said}");
    }
}

#[test]
fn a_socket_that_nobody_listens_at_is_told_from_one_that_is_not_there() {
    let scene = Scene::empty(&Settings::default());
    drop(std::os::unix::net::UnixListener::bind(scene.socket()).unwrap());
    let output = scene.ctl(&["status"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("rlhfd run"), "{}", text(&output.stderr));
}

#[test]
fn commands_that_mean_nothing_now_change_nothing() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let before = dump::dump(&scene.database());
    let missing = scene.path("missing.jsonl").to_string_lossy().into_owned();
    let cases: [(&[&str], &[&str]); 9] = [
        (&["cancel"], &["iteration"]),
        (&["cancel", "--iteration", "7"], &["7"]),
        (&["cancel", "--job", "reward/none"], &["reward/none"]),
        (&["cancel", "--job", "none"], &["reward/NAME"]),
        (&["start"], &["prompt"]),
        (&["prompts", "add", &missing, "--set", "a"], &["missing.jsonl"]),
        (&["sql", "SELEC 1"], &["syntax"]),
        (&["sql", "SELECT * FROM no_such_table"], &["no_such_table"]),
        (&["checkpoints", "--lineage", "none"], &["none"]),
    ];
    for (words, says) in cases {
        let output = scene.ctl(words);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{words:?}: {}", text(&output.stdout));
        for word in says {
            assert!(said.contains(word), "{words:?}: no word of {word:?} in: {said}");
        }
        dump::assert_same(&before, &dump::dump(&scene.database()), &format!("{words:?}"));
    }
}
