//! House rules, held by reading `src/` as text.
//!
//! Comes in: the repository's files. Goes out: a list of all that breaks a rule, each with its
//! place and what to do. May not enter: exceptions without a reason beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rlhfd_tests::binaries::root;
use sha2::{Digest, Sha256};

/// Lines that a file may have before it must be cut. The guidance is 400.
const FILE_LINES_MAX: usize = 450;

/// Which of our own rooms each room may use.
const ROOMS: [(&str, &[&str]); 10] = [
    ("domain", &[]),
    ("config", &["domain", "protocol"]),
    ("protocol", &["domain"]),
    ("store", &["domain", "protocol"]),
    ("pages", &[]),
    ("control", &["domain", "config", "protocol", "store", "pages"]),
    ("client", &["config", "protocol", "domain", "pages"]),
    ("front", &["protocol"]),
    ("worker", &["domain", "config", "protocol", "pages"]),
    ("study", &["protocol"]),
];

/// Crates that only some rooms may name.
const FENCED: [(&str, &[&str]); 12] = [
    ("tch", &["worker"]),
    ("torch-sys", &["worker"]),
    ("tokenizers", &["worker"]),
    ("safetensors", &["worker"]),
    ("minijinja", &["worker"]),
    ("rusqlite", &["store"]),
    ("actix", &["control"]),
    ("actix-web", &["control"]),
    ("nvml-wrapper", &["control"]),
    ("tokio", &["control", "client"]),
    ("serde", &["config", "protocol", "store", "control", "client", "front", "worker", "study"]),
    ("anyhow", &["control", "client", "front", "worker", "study"]),
];

/// A Rust file of ours.
struct Source {
    /// Relative to the repository.
    path: String,
    /// The folder below `src/`, or `tests`.
    room: String,
    text: String,
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    walk(&root.join("src"), &mut paths);
    walk(&root.join("tests"), &mut paths);
    let rust = paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| {
        let relative = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let mut parts = relative.split('/');
        let first = parts.next().unwrap_or_default();
        let room = if first == "src" { parts.next().unwrap_or_default() } else { first };
        let (room, text) = (room.to_owned(), fs::read_to_string(&path).unwrap());
        Source { path: relative, room, text }
    })
    .collect()
}

fn manifest(room: &str) -> toml::Table {
    let path = root().join("src").join(room).join("Cargo.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

fn dependencies(room: &str) -> Vec<String> {
    let manifest = manifest(room);
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

/// Fails with every finding, one a line.
fn none(findings: Vec<String>, what_to_do: &str) {
    assert!(findings.is_empty(), "{what_to_do}:\n  {}", findings.join("\n  "));
}

#[test]
fn every_file_introduces_itself() {
    let bare = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    none(bare.map(|s| s.path).collect(), "open the file with `//!`: what it is for");
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long = sources().into_iter().filter_map(|source| {
        let lines = source.text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", source.path))
    });
    none(long.collect(), "cut the file by matter; 400 lines is the guidance");
}

#[test]
fn nothing_unfinished_and_no_silent_permission() {
    // Spelled in two parts, so that this file does not find itself.
    let forbidden = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
        concat!("#[", "allow("),
        concat!("#![", "allow("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("dbg", "!("),
    ];
    let mut findings = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                findings.push(format!("{}:{}: {word}", source.path, number + 1));
            }
        }
    }
    none(findings, "finish it, or write `#[expect(…, reason = …)]`");
}

/// Whether `line` holds `word` between characters that belong to no word.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !inside(line[..at].chars().next_back()) && !inside(line[at + word.len()..].chars().next())
    })
}

#[test]
fn only_words_of_the_glossary() {
    let unwanted = [concat!("pha", "se"), concat!("pha", "ses"), concat!("log", "p")];
    let values = [concat!("rew", "ard: f64"), concat!("rew", "ard: f32")];
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.room != "tests") {
        for (number, line) in source.text.lines().enumerate() {
            let lower = line.to_lowercase();
            let word = unwanted.iter().find(|word| has_word(&lower, word));
            let value = values.iter().find(|value| has_word(line, value));
            if let Some(word) = word.or(value) {
                findings.push(format!("{}:{}: {word}", source.path, number + 1));
            }
        }
    }
    none(findings, "use the glossary's word: stage, logprob, score, implicit_reward");
}

#[test]
fn no_path_of_one_machine() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut findings = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if let Some(place) = places.iter().find(|place| line.contains(**place)) {
                findings.push(format!("{}:{}: {place}", source.path, number + 1));
            }
        }
    }
    none(findings, "name a place relative to the project or the user's settings");
}

#[test]
fn each_room_uses_only_the_rooms_below_it() {
    let mut findings = Vec::new();
    for (room, may) in ROOMS {
        for dependency in dependencies(room) {
            let ours = dependency.strip_prefix("rlhfd-");
            if ours.is_some_and(|other| !may.contains(&other)) {
                findings.push(format!("src/{room}/Cargo.toml: {dependency}"));
            }
            let fence = FENCED.iter().find(|(name, _)| *name == dependency);
            if let Some((_, rooms)) = fence
                && !rooms.contains(&room)
            {
                findings.push(format!("src/{room}/Cargo.toml: {dependency} is not for {room}"));
            }
        }
    }
    none(findings, "move what two rooms need down; see ARCHITECTURE.md");
}

#[test]
fn every_room_is_in_the_table_and_in_the_architecture() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut findings = Vec::new();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !text.contains(&format!("`src/{name}`")) {
            findings.push(format!("src/{name} is not in ARCHITECTURE.md"));
        }
        if !ROOMS.iter().any(|(room, _)| *room == name) {
            findings.push(format!("src/{name} is not in the table of this test"));
        }
    }
    none(findings, "name the room and what it may use");
}

#[test]
fn all_sql_stands_in_the_store() {
    let starts = ["\"SELECT ", "\"INSERT ", "\"UPDATE ", "\"DELETE FROM ", "\"PRAGMA "];
    let mut findings = Vec::new();
    for source in sources() {
        if ["store", "tests", "client", "study"].contains(&source.room.as_str()) {
            continue;
        }
        // A room's own tests may ask in SQL.
        let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            if starts.iter().any(|start| line.contains(start)) {
                findings.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    none(findings, "move the statement into src/store");
}

fn stems(folder: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return BTreeSet::new() };
    let names = entries.filter_map(|e| e.unwrap().path().file_stem().map(|s| s.to_owned()));
    names.map(|s| s.to_string_lossy().into_owned()).filter(|name| name != "mod").collect()
}

#[test]
fn a_verb_of_the_socket_has_its_twin_in_the_client() {
    let (control, client) = (stems("src/control/verbs"), stems("src/client/verbs"));
    assert!(!control.is_empty(), "src/control/verbs holds no verb");
    let lonely: Vec<_> = control.symmetric_difference(&client).cloned().collect();
    none(lonely, "a verb is one file in src/control/verbs and one in src/client/verbs");
}

#[test]
fn the_stages_stand_in_flow_order() {
    let order = ["prompts", "generate", "label", "pair", "train", "checkpoint", "evaluate"];
    let text = fs::read_to_string(root().join("src/domain/stage.rs")).unwrap();
    let places: Vec<_> = order
        .iter()
        .map(|label| text.find(&format!("\"{label}\"")).unwrap_or_else(|| panic!("no {label}")))
        .collect();
    assert!(places.is_sorted(), "the stages' labels are not in flow order");
}

/// Calls that reach the world, and the only files that may make them. A new place is a decision.
const KEYS: [(&str, &[&str]); 5] = [
    (
        "Command::new(",
        &[
            "src/control/workers/child.rs",
            "src/front/main.rs",
            "src/worker/process.rs",
            "src/worker/bench/peer.rs",
            "src/study/daemon.rs",
        ],
    ),
    ("SystemTime::now(", &["src/control/handles.rs", "src/worker/render.rs"]),
    ("thread::sleep(", &["src/study/daemon.rs"]),
    ("env::set_var(", &[]),
    ("process::abort(", &["src/control/handles.rs", "src/control/platform.rs"]),
];

#[test]
fn only_known_places_reach_the_world() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.room != "tests") {
        let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            for (call, places) in KEYS {
                let told = line.contains(call) && !line.trim_start().starts_with("//");
                if told && !places.contains(&source.path.as_str()) {
                    findings.push(format!("{}:{}: {call}…)", source.path, number + 1));
                }
            }
        }
    }
    none(findings, "use the room's own way to it, or add the place to KEYS in this test");
}

const DIGESTS: &str = "tests/data/migrations.sha256";

/// The digest of each migration, by file name.
fn migration_digests() -> BTreeMap<String, String> {
    let mut paths = Vec::new();
    walk(&root().join("migrations"), &mut paths);
    let digest = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, rlhfd_tests::fake::hex(&Sha256::digest(fs::read(path).unwrap())))
    };
    paths.iter().map(digest).collect()
}

fn recorded_digests() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join(DIGESTS)).unwrap_or_default();
    let entry = |line: &str| line.split_once("  ").map(|(sum, name)| (name.into(), sum.into()));
    text.lines().filter_map(entry).collect()
}

/// Whether CHANGELOG.md names a released version: from then on a migration is never edited.
fn released() -> bool {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).unwrap_or_default();
    let version = |line: &str| {
        line.strip_prefix("## ").is_some_and(|rest| {
            rest.trim_start_matches(['[', 'v']).starts_with(|c: char| c.is_ascii_digit())
        })
    };
    text.lines().any(|line| version(line) && !line.contains("not released"))
}

#[test]
fn a_released_migration_is_never_edited() {
    let now = migration_digests();
    let recorded = recorded_digests();
    if std::env::var_os("RLHFD_BLESS").is_some() {
        let kept = recorded.iter().all(|(name, sum)| now.get(name) == Some(sum));
        assert!(kept || !released(), "a released migration differs: write a new one instead");
        let lines = now.iter().map(|(name, sum)| format!("{sum}  {name}\n"));
        fs::write(root().join(DIGESTS), lines.collect::<String>()).unwrap();
        return;
    }
    let mut findings = Vec::new();
    for name in now.keys().chain(recorded.keys()).collect::<BTreeSet<_>>() {
        if now.get(name) != recorded.get(name) {
            findings.push(format!("migrations/{name}"));
        }
    }
    let what = match released() {
        true => "a released migration is append-only: write a new file",
        false => "the schema changed before the first release: `make bless` keeps the new digest",
    };
    none(findings, what);
}

#[test]
fn versions_stand_once_in_the_workspace() {
    let mut findings = Vec::new();
    let rooms = ROOMS.iter().map(|(room, _)| format!("src/{room}"));
    for folder in rooms.chain(["tests".to_owned()]) {
        let text = fs::read_to_string(root().join(&folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in table {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    findings.push(format!("{folder}/Cargo.toml: {name}"));
                }
            }
        }
    }
    none(findings, "write the version into the root's [workspace.dependencies]");
}

#[test]
fn the_tests_against_known_traps_exist() {
    let table = fs::read_to_string(root().join("tests/traps.md")).unwrap();
    let sources = sources();
    let named = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let named = named.flat_map(|line| line.split('`').skip(1).step_by(2));
    let missing = named.filter(|name| {
        let head = format!("fn {name}(");
        !sources.iter().any(|source| source.text.contains(&head))
    });
    none(missing.map(str::to_owned).collect(), "write the test, or mend tests/traps.md");
}
