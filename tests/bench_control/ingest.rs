//! A million prompts: how fast they come in, against SQLite's own shell; what they cost each, from a
//! thousand on; what the daemon holds of memory while they are queued.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rlhfd_tests::dump;
use rlhfd_tests::http::Line;
use rlhfd_tests::scene::{Scene, Settings};
use rusqlite::Connection;

use crate::ask;
use crate::report::{Limit, Report};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

pub fn run(report: &mut Report) {
    for prompts in SIZES {
        // A run that never begins an iteration.
        let settings = Settings::default().set("run", "prompts_per_iteration", "1000000").set(
            "run",
            "iterations_max",
            "1",
        );
        let scene = Scene::fake(&settings);
        let daemon = scene.start();
        scene.ctl_ok(&["pause"]);
        let file = written(&scene, prompts);
        let before = ask::cpu(daemon.pid());
        let (took, status) = added(&scene, &file);
        let each = took.as_secs_f64() / prompts as f64;
        report.add(format!("{prompts} prompts, each"), each * 1e6, "µs", Limit::None);
        if prompts != 1_000_000 {
            continue;
        }
        let cpu = ask::cpu(daemon.pid()) - before;
        report.add("ingest", 1.0 / each, "prompts/s", Limit::None);
        report.add("ingest, CPU of the daemon for each", cpu.as_secs_f64(), "µs", Limit::None);
        report.add_times("status while a million comes in", status, Limit::None);
        let most = ask::memory_mib(daemon.pid(), |usage| usage.peak_kib);
        report.add("memory, at most, while a million comes in", most, "MiB", Limit::None);
        let held = ask::memory_mib(daemon.pid(), |usage| usage.resident_kib);
        report.add("memory with a million queued", held, "MiB", Limit::AtMost(60.0));
        let times = ask::times(&scene.socket(), 1_000, "/v1/status");
        report.add_times("status with a million queued", times, Limit::AtMost(5.0));
        assert!(daemon.terminate().success(), "{}", scene.told());
        let import = imported(&scene);
        report.add(
            "`sqlite3 .import` of the same rows",
            prompts as f64 / import.as_secs_f64(),
            "prompts/s",
            Limit::None,
        );
        let share = import.as_secs_f64() / took.as_secs_f64();
        report.add("ingest, share of `sqlite3 .import`", share, "", Limit::AtLeast(0.5));
    }
    let each = |n: usize| report.figure(&format!("{n} prompts, each")).expect("it was measured");
    let (most, least) = (each(1_000_000) / each(100_000), each(1_000_000) / each(1_000));
    let flat = Limit::AtMost(1.5);
    report.add("cost of a prompt, a million over a hundred thousand", most, "", flat);
    report.add("cost of a prompt, a million over a thousand", least, "", flat);
}

fn written(scene: &Scene, prompts: usize) -> PathBuf {
    let path = scene.path("many.jsonl");
    let mut out = BufWriter::new(File::create(&path).expect("a file"));
    for n in 0..prompts {
        writeln!(
            out,
            "{{\"prompt\": \"What is there to say about subject {n}, in two sentences?\"}}"
        )
        .expect("room");
    }
    out.flush().expect("room");
    path
}

/// By the client, as a person does it; beside it the answers of `status`.
fn added(scene: &Scene, file: &Path) -> (Duration, Vec<Duration>) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let status = scope.spawn(|| {
            let (mut line, mut times) = (Line::open(&scene.socket()), Vec::new());
            while !over.load(Ordering::Relaxed) {
                times.push(line.answered("GET", "/v1/status", "").0);
                thread::sleep(Duration::from_millis(20));
            }
            times
        });
        let started = Instant::now();
        scene.ctl_ok(&[
            "prompts",
            "add",
            &file.to_string_lossy(),
            "--set",
            "many",
            "--reserve",
            "0",
        ]);
        let took = started.elapsed();
        over.store(true, Ordering::Relaxed);
        (took, status.join().expect("status answers"))
    })
}

/// The rows by SQLite's own shell into tables and indexes of the same schema, in one transaction. Its CSV
/// knows no blobs: the sum is a text of as many bytes, and the column of reserved prompts is left out.
fn imported(scene: &Scene) -> Duration {
    let (csv, copy) = (scene.path("rows.csv"), scene.path("copy.db"));
    let rows = "SELECT id, upload_id, messages, substr(hex(sha256), 1, 32), reserved FROM prompts ORDER BY id";
    let out = File::create(&csv).expect("a file");
    let export = Command::new("sqlite3")
        .args(["-csv", "-readonly"])
        .arg(scene.database())
        .arg(rows)
        .stdout(out)
        .status();
    assert!(export.expect("sqlite3 is installed").success());
    let schema: Vec<String> = {
        let database = dump::open(&scene.database());
        let sql = "SELECT sql FROM sqlite_master WHERE tbl_name = 'prompts' AND sql IS NOT NULL
                   AND name <> 'prompts_by_folded' ORDER BY type DESC, name";
        let mut statement = database.prepare(sql).expect("a schema");
        let rows = statement.query_map([], |row| row.get(0)).expect("a schema");
        rows.collect::<rusqlite::Result<_>>().expect("a schema")
    };
    let made = Connection::open(&copy).expect("a database");
    made.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;")
        .expect("pragmas");
    for text in schema {
        let text = match text.find("    folded") {
            Some(at) => format!("{}\n) STRICT", text[..at].trim_end().trim_end_matches(',')),
            None => text,
        };
        // The comment at the line's end goes with the column.
        let text = text.replace("sha256         BLOB ", "sha256         ANY ");
        made.execute_batch(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    }
    drop(made);
    let started = Instant::now();
    let mut shell =
        Command::new("sqlite3").arg(&copy).stdin(Stdio::piped()).spawn().expect("sqlite3");
    let orders =
        format!("PRAGMA synchronous = FULL;\n.mode csv\n.import {} prompts\n", csv.display());
    shell.stdin.take().expect("a pipe").write_all(orders.as_bytes()).expect("sqlite3 reads");
    assert!(shell.wait().expect("sqlite3").success());
    let took = started.elapsed();
    assert_eq!(dump::number(&copy, "SELECT count(*) FROM prompts"), 1_000_000);
    let _ = fs::remove_file(csv);
    took
}
