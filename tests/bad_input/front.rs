//! The worker's front on a machine where libtorch is missing or wrong: one sentence, never a
//! loader's error.

use std::path::Path;
use std::process::{Command, Output};

use rlhfd_tests::binaries::{profile_folder, program};
use rlhfd_tests::scene::text;

/// The front alone in an empty folder, with this environment and no other.
fn front(place: &Path, words: &[&str], environment: &[(&str, &str)]) -> Output {
    let alone = place.join("rlhfd-worker");
    if !alone.exists() {
        std::fs::hard_link(program("rlhfd-worker"), &alone).unwrap();
    }
    let mut command = Command::new(alone);
    command.args(words).env_clear().envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn without_libtorch_the_worker_says_how_to_get_it() {
    let place = tempfile::tempdir_in(profile_folder()).unwrap();
    let verbs: [&[&str]; 4] = [&["generate"], &["serve"], &["doctor"], &["train", "dpo"]];
    for words in verbs {
        let output = front(place.path(), words, &[]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!output.status.success(), "{words:?}: {said}");
        assert!(said.contains("make setup"), "{words:?}: {said}");
        assert!(!said.contains("error while loading shared libraries"), "{words:?}: {said}");
        assert!(said.lines().count() <= 4, "{words:?}: {said}");
    }
}

#[test]
fn a_folder_without_libtorch_is_named() {
    let place = tempfile::tempdir_in(profile_folder()).unwrap();
    for folder in ["/nowhere", "relative/folder", ""] {
        let output = front(place.path(), &["generate"], &[("RLHFD_LIBTORCH", folder)]);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{folder}: {said}");
        assert!(said.contains(folder) && said.contains("make setup"), "{folder}: {said}");
    }
}
