//! Names that a client gives: however they look, nothing outside the state folder is read, written or
//! made, and no link in the folder is followed out of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rlhfd_tests::random::drawn;
use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::{http, wait};

const SEED: u64 = 5;
const NAMES: u64 = 60;

/// What nasty names are made of.
const PIECES: [&str; 28] = [
    "..", "/", "\\", ".", "%2e%2e", "%2f", "\0", "\n", "~", "$HOME", "*", ";", "|", " ", "victim",
    "etc", "passwd", "a", "A", "-rf", "․․", "／", "\u{202e}", "é", "proc", "self", "cwd", "file:",
];

/// A name, from the number of its draw.
fn nasty(n: u64) -> String {
    let pieces = 1 + drawn(SEED, n * 64, 6);
    let mut name: String = (1..=pieces)
        .map(|i| PIECES[drawn(SEED, n * 64 + i, PIECES.len() as u64) as usize])
        .collect();
    match drawn(SEED, n * 64 + 60, 8) {
        0 => name = format!("../../{name}"),
        1 => name = name.repeat(60),
        _ => {}
    }
    name
}

/// All bytes but ordinary ones escaped.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Everything below a folder, links not followed, with what it holds.
fn tree(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        // What the daemon writes for itself, its log, and the fake worker's notes.
        if ["daemon.log", "state", "plan.fired"].iter().any(|own| path.ends_with(own)) {
            continue;
        }
        let content = match kind.is_file() {
            true => fs::read(&path).unwrap(),
            false => format!("{kind:?}").into_bytes(),
        };
        if kind.is_dir() {
            tree(&path, found);
        }
        found.insert(path, content);
    }
}

fn outside(scene: &Scene) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    tree(&scene.path(""), &mut found);
    found
}

fn assert_untouched(scene: &Scene, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let after = outside(scene);
    let paths = before.keys().chain(after.keys());
    let changed: Vec<_> = paths.filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "changed outside the state folder: {changed:?}");
}

const PROMPT: &str = "{\"prompt\": \"a\"}\n";
const PAIR: &str = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";

/// One request a verb that takes a name, with the name in it.
fn requests(name: &str) -> Vec<(&'static str, String, String)> {
    let (path, json) = (escaped(name), serde_json::to_string(name).unwrap());
    vec![
        ("POST", format!("/v1/prompt-sets/{path}"), "{\"priority\": 1}".to_owned()),
        ("POST", format!("/v1/prompt-sets/{path}/prompts"), PROMPT.to_owned()),
        ("POST", format!("/v1/prompt-sets/a/prompts?client_key={path}"), PROMPT.to_owned()),
        ("POST", format!("/v1/preference-sets/{path}/preferences"), PAIR.to_owned()),
        ("POST", format!("/v1/training-jobs/reward/{path}"), PAIR.to_owned()),
        ("POST", format!("/v1/training-jobs/{path}/x"), PAIR.to_owned()),
        ("GET", format!("/v1/iterations?run={path}"), String::new()),
        ("GET", format!("/v1/checkpoints?run={path}"), String::new()),
        ("GET", format!("/v1/checkpoints?lineage={path}"), String::new()),
        ("POST", "/v1/cancel".to_owned(), format!("{{\"job\": {json}}}")),
        ("POST", "/v1/cancel".to_owned(), format!("{{\"job\": \"reward/\" , \"reason\": {json}}}")),
        ("POST", "/v1/pin".to_owned(), format!("{{\"checkpoint\": {json}}}")),
        ("POST", "/v1/unpin".to_owned(), format!("{{\"checkpoint\": {json}}}")),
        ("POST", "/v1/backup".to_owned(), format!("{{\"path\": {json}}}")),
        ("GET", format!("/{path}"), String::new()),
    ]
}

#[test]
fn no_name_leads_out_of_the_state_folder() {
    let scene = Scene::fake(&Settings::default());
    fs::create_dir(scene.path("victim")).unwrap();
    fs::write(scene.path("victim/file"), "untouched").unwrap();
    let _daemon = scene.start();
    let before = outside(&scene);
    for n in 0..NAMES {
        let name = nasty(n);
        for (method, path, body) in requests(&name) {
            let answer = http::request(&scene.socket(), method, &path, Some(&body));
            assert!(answer.status < 500, "{method} {path}: {} {}", answer.status, answer.body);
        }
    }
    assert_untouched(&scene, &before);
    assert_eq!(scene.status()["run"]["name"], "main");
}

#[test]
fn a_link_in_the_state_folder_is_replaced_and_never_followed() {
    let scene = Scene::fake(&Settings::default());
    let victim = scene.path("victim");
    fs::create_dir_all(victim.join("folder")).unwrap();
    fs::write(victim.join("folder/kept"), "kept").unwrap();
    let daemon = scene.start();
    for n in 1..=8 {
        let file = victim.join(format!("{n}"));
        fs::write(&file, "untouched").unwrap();
        std::os::unix::fs::symlink(file, scene.state().join(format!("uploads/{n}.jsonl"))).unwrap();
    }
    let jobs = scene.state().join("runs/main/jobs");
    fs::create_dir_all(&jobs).unwrap();
    for name in ["reward-own", ".reward-own.part"] {
        std::os::unix::fs::symlink(victim.join("folder"), jobs.join(name)).unwrap();
    }
    let before = outside(&scene);
    let pairs = scene.write("pairs.jsonl", &PAIR.repeat(3));
    let pairs = pairs.to_string_lossy();
    scene.ctl_ok(&["train", "reward", "--data", &pairs, "--name", "own"]);
    let trained = "SELECT count(*) FROM training_jobs WHERE status = 'done'";
    scene.wait_number("the job to be trained", trained, 1);
    let made =
        || jobs.join("reward-own").symlink_metadata().is_ok_and(|m| m.is_dir()).then_some(());
    wait::until("the job's own folder", made, || scene.told());
    fs::remove_file(scene.path("pairs.jsonl")).unwrap();
    assert_untouched(&scene, &before);
    assert!(daemon.terminate().success());
}
