//! Man pages and shell completions: every verb that `--help` names has a page, and is completed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rlhfd_tests::binaries::{program, program_if_built, root};

fn run(name: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program(name));
    command.args(words).env("RLHFD_LIBTORCH", root().join("libtorch"));
    command.output().expect("a program of ours")
}

/// The verbs that a help text lists, below the words before them.
fn verbs(name: &str, words: &[&str]) -> Vec<Vec<String>> {
    let help = run(name, &[words, &["--help"]].concat());
    let help = String::from_utf8(help.stdout).expect("help is text");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // A verb stands two spaces in; what explains it, further.
    let listed = listed.filter(|line| !line.starts_with("   "));
    let listed = listed.filter_map(|line| line.split_whitespace().next());
    let mut found = Vec::new();
    for verb in listed.filter(|verb| *verb != "help") {
        let path = [words, &[verb]].concat();
        found.push(path.iter().map(|word| (*word).to_owned()).collect());
        found.extend(verbs(name, &path));
    }
    found
}

/// Looks that each verb of a program has its page and its completions; gives how many there are.
fn assert_documented(name: &str, folder: &Path) -> usize {
    let written = run(name, &["--write-pages", &folder.to_string_lossy()]);
    assert!(written.status.success(), "{name}: {}", String::from_utf8_lossy(&written.stderr));
    let text = |below: &str| {
        fs::read_to_string(folder.join(below)).unwrap_or_else(|error| panic!("{below}: {error}"))
    };
    assert!(text(&format!("man/{name}.1")).contains(".SH EXIT STATUS\n"), "{name}.1");
    let verbs = verbs(name, &[]);
    for verb in &verbs {
        assert!(text(&format!("man/{name}-{}.1", verb.join("-"))).contains(".SH SYNOPSIS"));
        for shell in [format!("{name}.bash"), format!("_{name}"), format!("{name}.fish")] {
            let last = verb.last().expect("a verb has words");
            assert!(text(&format!("completions/{shell}")).contains(last), "{shell}: {verb:?}");
        }
    }
    verbs.len()
}

#[test]
fn every_verb_has_a_man_page_and_is_completed() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(assert_documented("rlhfd", folder.path()), 2);
    assert!(assert_documented("rlhfctl", folder.path()) > 25);
    if program_if_built("rlhfd-worker-torch").is_none() {
        assert!(std::env::var_os("RLHFD_REQUIRE_TORCH").is_none(), "rlhfd-worker-torch is missing");
        eprintln!("skipped: rlhfd-worker-torch is not built");
        return;
    }
    assert!(assert_documented("rlhfd-worker", folder.path()) > 10);
    // Those two are answered by the front program, and stand in its help above the others.
    for verb in ["doctor", "convert-gguf"] {
        assert!(folder.path().join(format!("man/rlhfd-worker-{verb}.1")).exists(), "{verb}");
    }
}
