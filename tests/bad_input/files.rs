//! Uploads by `rlhfctl`: lines and options that are wrong, each refused as a whole.

use rlhfd_tests::dump;
use rlhfd_tests::scene::{Scene, Settings, text};

/// One wrong upload.
struct Case {
    name: &'static str,
    content: Vec<u8>,
    options: &'static [&'static str],
    says: &'static [&'static str],
}

fn case(
    name: &'static str,
    content: impl Into<Vec<u8>>,
    options: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case { name, content: content.into(), options, says }
}

const SET: &[&str] = &["--set", "a"];

fn prompts() -> Vec<Case> {
    let good = "{\"prompt\": \"a\"}\n";
    let long = format!("{{\"prompt\": \"{}\"}}\n", "x".repeat(10 << 20));
    vec![
        case("malformed JSON", format!("{good}{{\"prompt\": \n"), SET, &["line 2", "JSON"]),
        case("a wrong type", format!("{good}{good}{{\"prompt\": 5}}\n"), SET, &["line 3"]),
        case("an unknown key", "{\"promt\": \"a\"}\n", SET, &["line 1", "prompt"]),
        case("an array", "[1, 2]\n", SET, &["line 1"]),
        case("no message", "{\"messages\": []}\n", SET, &["line 1", "messages"]),
        case(
            "a message without content",
            "{\"messages\": [{\"role\": \"user\"}]}\n",
            SET,
            &["line 1", "content"],
        ),
        case(
            "an assistant's turn at the end",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, \
              {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
            SET,
            &["line 1", "user"],
        ),
        case("an empty file", "", SET, &["no "]),
        case("only blank lines", "\n\n  \n", SET, &["no "]),
        case("a line of 10 MB", long, SET, &["line 1", "MiB"]),
        case("no UTF-8", b"{\"prompt\": \"\xff\xfe\"}\n".to_vec(), SET, &["line 1", "UTF-8"]),
        case("a deep nesting", format!("{}\n", "[".repeat(100_000)), SET, &["line 1"]),
        case("a reserve of one", good, &["--set", "a", "--reserve", "1.0"], &["reserve"]),
        case("a negative reserve", good, &["--set", "a", "--reserve=-0.5"], &["reserve"]),
        case("a set that is a path", good, &["--set", "../a"], &["../a"]),
        case("a set without a name", good, &["--set", ""], &["name"]),
    ]
}

#[test]
fn wrong_prompts_are_refused_as_a_whole() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    scene.add_prompts("good", 0, 3, "0");
    let before = dump::dump(&scene.database());
    for case in prompts() {
        let path = scene.path("bad.jsonl");
        std::fs::write(&path, &case.content).unwrap();
        let path = path.to_string_lossy().into_owned();
        let output = scene.ctl(&[&["prompts", "add", &path], case.options].concat());
        check(&case, &output);
        dump::assert_same(&before, &dump::dump(&scene.database()), case.name);
    }
    let left = "SELECT count(*) FROM uploads WHERE state = 'open'";
    assert_eq!(scene.number(left), 0);
}

fn check(case: &Case, output: &std::process::Output) {
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{}: taken\n{}", case.name, text(&output.stdout));
    assert!(output.status.code().is_some_and(|code| code != 101), "{}: {said}", case.name);
    for word in case.says {
        assert!(said.contains(word), "{}: no word of {word:?} in: {said}", case.name);
    }
    assert!(said.len() < 8_000, "{}: {} bytes of words", case.name, said.len());
}

/// Lines that are no preferences.
fn preferences() -> Vec<Case> {
    let good = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
    let turn = |a: &str, b: &str| {
        format!(
            "[{{\"role\": \"user\", \"content\": \"{a}\"}}, \
              {{\"role\": \"assistant\", \"content\": \"{b}\"}}]"
        )
    };
    let differing =
        format!("{{\"chosen\": {}, \"rejected\": {}}}\n", turn("one", "x"), turn("two", "y"));
    let same = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}\n";
    vec![
        case("prompts that differ", format!("{good}{differing}"), &[], &["line 2", "prompt"]),
        case(
            "no rejected",
            "{\"prompt\": \"a\", \"chosen\": \"b\"}\n",
            &[],
            &["line 1", "rejected"],
        ),
        case("chosen is rejected", same, &[], &["line 1"]),
        case("an empty file", "", &[], &["no "]),
        case("a number for chosen", good.replace("\"b\"", "7"), &[], &["line 1"]),
        case("malformed JSON", format!("{good}{good}{{\n"), &[], &["line 3", "JSON"]),
        case("an empty answer", good.replace("\"c\"", "\" \""), &[], &["line 1", "empty"]),
        case("an empty chosen answer", good.replace("\"b\"", "\"\""), &[], &["line 1", "empty"]),
    ]
}

#[test]
fn wrong_preferences_are_refused_as_a_whole() {
    let good = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
    let mut cases = preferences();
    cases.push(case("a name that is a path", good, &["--name", "a/b"], &["a/b"]));
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let before = dump::dump(&scene.database());
    for case in cases {
        let path = scene.path("bad.jsonl");
        std::fs::write(&path, &case.content).unwrap();
        let path = path.to_string_lossy().into_owned();
        let output = scene.ctl(&[&["train", "reward", "--data", &path], case.options].concat());
        check(&case, &output);
        dump::assert_same(&before, &dump::dump(&scene.database()), case.name);
        assert_eq!(scene.number("SELECT count(*) FROM training_jobs"), 0, "{}", case.name);
    }
}

/// Lines that are no conversations to learn from.
fn conversations() -> Vec<Case> {
    let turn =
        |role: &str, text: &str| format!("{{\"role\": \"{role}\", \"content\": \"{text}\"}}");
    let line = |turns: &[String]| format!("{{\"messages\": [{}]}}\n", turns.join(", "));
    let (asked, said) = (turn("user", "a"), turn("assistant", "b"));
    let good = line(&[asked.clone(), said.clone()]);
    vec![
        case(
            "no turn of the assistant",
            good.clone() + &line(&[turn("system", "x"), asked.clone()]),
            &[],
            &["line 2", "assistant"],
        ),
        case(
            "a silent turn of the assistant",
            line(&[asked.clone(), said, asked.clone(), turn("assistant", " ")]),
            &[],
            &["line 1", "messages[3]", "empty"],
        ),
        case("a role that nobody knows", line(&[turn("human", "a")]), &[], &["line 1", "human"]),
        case("no messages", "{\"prompt\": \"a\"}\n", &[], &["line 1", "messages"]),
        case(
            "a weight of nothing",
            good.replacen('{', "{\"weight\": 0, ", 1),
            &[],
            &["line 1", "weight"],
        ),
    ]
}

#[test]
fn wrong_conversations_are_refused_as_a_whole() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let before = dump::dump(&scene.database());
    for case in conversations() {
        let path = scene.path("bad.jsonl");
        std::fs::write(&path, &case.content).unwrap();
        let path = path.to_string_lossy().into_owned();
        check(&case, &scene.ctl(&["train", "sft", "--data", &path]));
        dump::assert_same(&before, &dump::dump(&scene.database()), case.name);
        assert_eq!(scene.number("SELECT count(*) FROM training_jobs"), 0, "{}", case.name);
    }
}

/// Of several files the bad line is told with its file.
#[test]
fn a_bad_line_of_several_files_is_told_with_its_file() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let good = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}";
    let one = scene.write("one.jsonl", good).to_string_lossy().into_owned();
    let two = scene.write("two.jsonl", &format!("{good}\n{{\n")).to_string_lossy().into_owned();
    let words = ["train", "reward", "--data", &one, "--data", &format!("{two}:0.5")];
    let said = text(&scene.ctl(&words).stderr);
    assert!(said.contains("line 2: is not JSON") && said.contains("two.jsonl"), "{said}");
    let said = text(&scene.ctl(&["train", "reward", "--data", &format!("{one}:0")]).stderr);
    assert!(said.contains("a weight lies above 0"), "{said}");
}

#[test]
fn wrong_offline_preferences_are_refused_as_a_whole() {
    let good = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let before = dump::dump(&scene.database());
    let add = |content: &[u8], set: &str, options: &[&str]| {
        std::fs::write(scene.path("bad.jsonl"), content).unwrap();
        let path = scene.path("bad.jsonl").to_string_lossy().into_owned();
        scene.ctl(&[&["preferences", "add", &path, "--set", set], options].concat())
    };
    for case in preferences() {
        check(&case, &add(&case.content, "kept", &[]));
        dump::assert_same(&before, &dump::dump(&scene.database()), case.name);
    }
    let path = case("a set that is a path", good, &[], &["../a"]);
    check(&path, &add(&path.content, "../a", &[]));
    // What failed is swept, its set with it.
    let swept = "SELECT count(*) = 0 FROM preference_sets";
    scene.wait_number("the refused uploads to be swept", swept, 1);
    let mixed = format!("{good}{{broken\n{good}");
    assert!(add(mixed.as_bytes(), "kept", &["--skip-bad"]).status.success());
    let row =
        "SELECT kept || ' ' || duplicates || ' ' || bad FROM uploads WHERE state = 'published'";
    assert_eq!(dump::text(&scene.database(), row).unwrap(), "1 1 1");
    // A client key makes a retry harmless, and is not taken for another set.
    assert!(add(good.as_bytes(), "own", &["--client-key", "k"]).status.success());
    let again = add(good.as_bytes(), "own", &["--client-key", "k"]);
    assert!(text(&again.stdout).contains("earlier upload"), "{}", text(&again.stdout));
    assert!(!add(good.as_bytes(), "third", &["--client-key", "k"]).status.success());
    assert_eq!(scene.number("SELECT sum(preferences) FROM preference_sets"), 2);
}

#[test]
fn bad_lines_are_named_by_number_and_can_be_skipped() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let lines = "{\"prompt\": \"a\"}\n\n{broken\n{\"prompt\": \"b\"}\n{\"prompt\": 7}\n";
    let path = scene.write("some.jsonl", lines).to_string_lossy().into_owned();
    let output = scene.ctl(&["prompts", "add", &path, "--set", "a"]);
    let said = text(&output.stderr);
    assert!(said.contains("line 3") && said.contains("line 5"), "{said}");
    assert!(said.contains("--skip-bad"), "{said}");
    scene.ctl_ok(&["prompts", "add", &path, "--set", "a", "--skip-bad"]);
    assert_eq!(scene.number("SELECT count(*) FROM prompts"), 2);
    assert_eq!(scene.number("SELECT bad FROM uploads WHERE state = 'published'"), 2);
}
