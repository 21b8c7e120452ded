//! People who only read: with plain SQLite while the daemon is up, cleanly stopped, or killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rlhfd_tests::scene::{Scene, Settings, text};
use rlhfd_tests::{dump, http};

use crate::story;

const SQL: &str = "SELECT count(*) FROM iteration_history WHERE status = 'done'";

/// Reads by a program of its own, as `sqlite3 -readonly` would, without a write to the folder.
fn read_as(scene: &Scene, uid: Option<u32>) -> String {
    let script = "import sqlite3, sys\n\
        c = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)\n\
        print(c.execute(sys.argv[2]).fetchone()[0])";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(scene.database()).arg(SQL);
    if let Some(uid) = uid {
        // Of the state folder's group, and of no other right.
        let group = std::os::unix::fs::MetadataExt::gid(&fs::metadata(scene.state()).unwrap());
        command.uid(uid).gid(group).current_dir("/");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

/// As the daemon's own user, and as another user of the reading group where we may become one.
fn all_read(scene: &Scene, wanted: &str) {
    assert_eq!(read_as(scene, None), wanted);
    if rustix::process::geteuid().is_root() {
        assert_eq!(read_as(scene, Some(65_534)), wanted);
    } else {
        eprintln!("skipped: only root can read as another user");
    }
}

#[test]
fn the_database_reads_while_up_stopped_and_killed() {
    let scene = Scene::fake(&Settings::default());
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scene.path(""), open).unwrap();
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    all_read(&scene, "2");
    assert!(daemon.terminate().success());
    for side in ["rlhfd.db-wal", "rlhfd.db-shm"] {
        assert!(!scene.state().join("db").join(side).exists(), "{side} after a clean stop");
    }
    all_read(&scene, "2");
    let daemon = scene.start();
    scene.add_prompts("more", 100, 120, "0");
    daemon.kill();
    all_read(&scene, "2");
}

#[test]
fn a_reader_never_stands_in_the_daemons_way() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let reader = rlhfd_tests::dump::open(&scene.database());
    // A read transaction that stays open over the whole story.
    reader.execute_batch("BEGIN").unwrap();
    let runs = |c: &rusqlite::Connection| {
        c.query_row("SELECT count(*) FROM iterations", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(runs(&reader), 0);
    story::queue(&scene);
    story::ends_the_same(&scene, "a long reader");
    assert_eq!(runs(&reader), 0);
}

#[test]
fn sql_through_the_socket_only_reads() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let out = scene.ctl_ok(&["sql", "SELECT name, seed FROM runs"]);
    assert!(out.contains("main") && out.contains('7'), "{out}");
    for sql in [
        "DELETE FROM runs",
        "UPDATE runs SET seed = 1",
        "PRAGMA journal_mode = DELETE",
        "ATTACH DATABASE 'other.db' AS other",
        "DROP TABLE runs",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM runs",
    ] {
        let output = scene.ctl(&["sql", sql]);
        assert!(!output.status.success(), "{sql}: {}", text(&output.stdout));
    }
    assert_eq!(scene.number("SELECT count(*) FROM runs WHERE seed = 7"), 1);
    assert!(!scene.path("other.db").exists());
}

#[test]
fn a_question_without_end_is_stopped() {
    let scene = Scene::fake(&Settings::default().with("control", "sql_time_ms = 200"));
    let _daemon = scene.start();
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) \
                   SELECT count(*) FROM n";
    let output = scene.ctl(&["sql", endless]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("200 ms"), "{}", text(&output.stderr));
}

#[test]
fn the_readers_door_answers_questions_and_takes_no_orders() {
    let mut settings = Settings::default();
    settings = settings.with("control", "readers_socket = \"readers\"");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    let door = scene.path("readers");
    let status = http::get(&door, "/v1/status");
    assert_eq!(status["run"]["name"], "main");
    let sql = "{\"sql\": \"SELECT name FROM runs\"}";
    assert_eq!(http::request(&door, "POST", "/v1/sql", Some(sql)).status, 200);
    for (path, body) in [
        ("/v1/pause", "{}"),
        ("/v1/start", "{}"),
        ("/v1/cancel", "{}"),
        ("/v1/prompt-sets/a/prompts", "{\"prompt\": \"a\"}\n"),
    ] {
        let answer = http::request(&door, "POST", path, Some(body));
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.body);
    }
    assert_eq!(scene.status()["run"]["paused_by"], serde_json::Value::Null);
    assert_eq!(scene.number("SELECT count(*) FROM prompts"), 0);
    let mode = fs::metadata(scene.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}");
}

#[test]
fn a_log_that_a_long_reader_lets_grow_is_told_with_who_reads() {
    let settings =
        Settings::default().set("store", "log_max_mib", "1").set("store", "disk_probe_ms", "100");
    let scene = Scene::fake(&settings);
    let _daemon = scene.start();
    let reader = rusqlite::Connection::open(scene.database()).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).unwrap();
    scene.add_prompts("many", 0, 20_000, "0");
    let grown = "SELECT count(*) FROM events WHERE kind = 'log_grown' AND level = 'warn'";
    scene.wait_number("the log to be told", grown, 1);
    let who = format!("(process {})", std::process::id());
    let told = dump::text(&scene.database(), "SELECT message FROM events WHERE kind = 'log_grown'");
    assert!(told.as_ref().is_some_and(|told| told.contains(&who)), "{told:?}");
    drop(reader);
    let folded = "SELECT count(*) FROM events WHERE kind = 'log_folded'";
    scene.wait_number("the log to be folded back", folded, 1);
}
