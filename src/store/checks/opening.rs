//! Opening: what is made, what is refused and left untouched, what a reader can read.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, StatementStatus, params};

use super::*;
use crate::open::database;
use crate::{Reader, StoreError, migrations};

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// A state folder with a cleanly closed database that has rows.
fn stopped() -> TempDir {
    let mut bench = Bench::new();
    bench.run();
    bench.add("s", 0.0, &texts(0, 50));
    assert!(bench.store.close().unwrap());
    bench.dir
}

fn refused(state: &Path) -> StoreError {
    let before = files(&state.join("db"));
    let error = Store::open(state).unwrap_err();
    assert_eq!(before, files(&state.join("db")), "the folder changed");
    error
}

fn patched(state: &Path, at: usize, bytes: &[u8]) {
    let mut all = std::fs::read(database(state)).unwrap();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(database(state), all).unwrap();
}

#[test]
fn a_new_database_has_what_the_readme_says() {
    let bench = Bench::new();
    let pragma = |name: &str| -> String {
        bench
            .store
            .conn
            .query_row(&format!("PRAGMA {name}"), [], |row| {
                row.get_ref(0).map(|v| match v {
                    rusqlite::types::ValueRef::Integer(i) => i.to_string(),
                    other => String::from_utf8_lossy(other.as_bytes().unwrap()).into_owned(),
                })
            })
            .unwrap()
    };
    assert_eq!(pragma("application_id"), 0x724C_4846.to_string());
    assert_eq!(pragma("user_version"), migrations::newest().to_string());
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("synchronous"), "2");
    assert_eq!(pragma("auto_vacuum"), "2");
    assert_eq!(pragma("foreign_keys"), "1");
    let link = std::fs::read_link(bench.dir.path().join("rlhfd.db")).unwrap();
    assert_eq!(link, Path::new("db/rlhfd.db"));
    let loose = bench.number(
        "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
         AND name NOT LIKE 'sqlite_%' AND strict = 0",
    );
    assert_eq!(loose, 0, "every table is STRICT");
    assert!(bench.store.integrity().unwrap().is_empty());
}

#[test]
fn what_is_not_ours_is_refused_and_left_untouched() {
    let state = stopped();
    let path = state.path();
    let version = migrations::newest() + 1;
    patched(path, 60, &version.to_be_bytes());
    assert!(matches!(refused(path), StoreError::Newer { found, .. } if found == version));
    patched(path, 60, &migrations::newest().to_be_bytes());
    patched(path, 68, &0x1234_5678_u32.to_be_bytes());
    assert!(matches!(refused(path), StoreError::Foreign { application_id: 0x1234_5678, .. }));
    patched(path, 68, &migrations::APPLICATION_ID.to_be_bytes());
    patched(path, 0, b"PK\x03\x04");
    assert!(matches!(refused(path), StoreError::NotADatabase { .. }));
    patched(path, 0, b"SQLi");
    drop(Store::open(path).unwrap());
}

#[test]
fn what_is_damaged_is_refused_and_left_untouched() {
    for damage in ["empty", "header", "cut", "schema", "page"] {
        let state = stopped();
        let path = state.path();
        let whole = std::fs::read(database(path)).unwrap();
        match damage {
            "empty" => std::fs::write(database(path), b"").unwrap(),
            "header" => std::fs::write(database(path), &whole[..60]).unwrap(),
            "cut" => std::fs::write(database(path), &whole[..whole.len() / 2]).unwrap(),
            "schema" => patched(path, 100, &[0xAB; 400]),
            _ => {
                // The first page of every tree but the schema's own.
                for page in 1..whole.len() / 4096 {
                    patched(path, page * 4096, &[0xAB; 64]);
                }
            }
        }
        let error = refused(path);
        assert!(matches!(error, StoreError::Damaged { .. }), "{damage}: {error:?}");
        assert!(error.to_string().contains("restore a backup"), "{error}");
    }
}

#[test]
fn a_newer_version_that_lies_in_the_log_is_refused_too() {
    let bench = Bench::new();
    let newer = migrations::newest() + 1;
    bench.store.conn.pragma_update(None, "user_version", newer).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("db")).unwrap();
    for name in ["rlhfd.db", "rlhfd.db-wal"] {
        let from = bench.dir.path().join("db").join(name);
        std::fs::copy(from, dir.path().join("db").join(name)).unwrap();
    }
    assert!(matches!(refused(dir.path()), StoreError::Newer { found, .. } if found == newer));
}

#[test]
fn a_file_at_the_links_place_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rlhfd.db"), b"mine").unwrap();
    assert!(matches!(Store::open(dir.path()).unwrap_err(), StoreError::Conflict { .. }));
    assert_eq!(std::fs::read(dir.path().join("rlhfd.db")).unwrap(), b"mine");
}

#[test]
fn readers_read_while_it_is_up_stopped_and_killed() {
    let count = |state: &Path| -> i64 {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let reader = Connection::open_with_flags(state.join("rlhfd.db"), flags).unwrap();
        reader.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).unwrap()
    };
    let mut bench = Bench::new();
    bench.run();
    assert_eq!(count(bench.dir.path()), 1, "up");
    let killed = bench.after_a_kill();
    assert_eq!(count(killed.dir.path()), 1, "killed");
    assert_eq!(killed.store.runs().unwrap(), bench.store.runs().unwrap());
    let Bench { dir, store } = bench;
    assert!(store.close().unwrap());
    let left: Vec<String> = files(&dir.path().join("db")).into_keys().collect();
    assert_eq!(left, ["rlhfd.db"], "a clean stop leaves one file");
    assert_eq!(count(dir.path()), 1, "stopped");
    let left: Vec<String> = files(&dir.path().join("db")).into_keys().collect();
    assert_eq!(left, ["rlhfd.db"], "a reader needs no side files then");
}

#[test]
fn a_reader_that_stays_does_not_keep_us_from_stopping() {
    let mut bench = Bench::new();
    bench.run();
    let reader = Reader::open(bench.dir.path()).unwrap();
    assert_eq!(reader.runs().unwrap().len(), 1);
    let Bench { dir, store } = bench;
    assert!(!store.close().unwrap(), "the mode cannot change under a reader");
    assert_eq!(reader.runs().unwrap().len(), 1);
    drop(reader);
    assert_eq!(Store::open(dir.path()).unwrap().runs().unwrap().len(), 1);
}

#[test]
fn a_reader_cannot_write() {
    let bench = Bench::new();
    let reader = Reader::open(bench.dir.path()).unwrap();
    assert!(reader.conn.execute("DELETE FROM events", []).is_err());
    let nowhere = tempfile::tempdir().unwrap();
    assert!(matches!(Reader::open(nowhere.path()), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_backup_is_a_database_of_its_own() {
    let mut bench = Bench::new();
    bench.run();
    let copy = bench.dir.path().join("copy");
    std::fs::create_dir_all(copy.join("db")).unwrap();
    bench.store.backup_to(&copy.join("db/rlhfd.db")).unwrap();
    let again = bench.store.backup_to(&copy.join("db/rlhfd.db")).unwrap_err();
    assert!(matches!(again, StoreError::Conflict { .. }));
    let restored = Store::open(&copy).unwrap();
    assert_eq!(restored.runs().unwrap(), bench.store.runs().unwrap());
}

#[test]
fn a_backup_into_a_folder_has_its_name_once_it_is_whole() {
    let mut bench = Bench::new();
    bench.run();
    let folder = bench.dir.path().join("backups");
    let made = bench.store.backup_into(&folder, 7).unwrap();
    assert_eq!(made, folder.join("rlhfd-7.db"));
    assert!(bench.store.backup_into(&made, 8).is_err(), "a file is no folder");
    // Nothing can be written where the piece should be: it fails, and leaves nothing of its own.
    std::fs::create_dir(folder.join("rlhfd-9.part")).unwrap();
    assert!(bench.store.backup_into(&folder, 9).is_err());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn a_run_keeps_its_identity() {
    let mut bench = Bench::new();
    let run = bench.run();
    assert_eq!(run.head, run.initial);
    assert_eq!(run.reference, run.initial);
    assert_eq!(bench.run(), run, "opening it again changes nothing");
    let moved = RunIdentity {
        policy: ModelIdentity { path: "elsewhere".into(), sha256: "a".repeat(64) },
        ..identity("main", 7, "a")
    };
    bench.store.open_run(&moved, NOW).unwrap();
    assert_eq!(bench.store.checkpoint(run.initial).unwrap().path, "elsewhere");
    let other_reference = RunIdentity {
        reference: Some(ModelIdentity { path: "r".into(), sha256: "b".repeat(64) }),
        ..identity("main", 7, "a")
    };
    for other in [identity("main", 8, "a"), identity("main", 7, "b"), other_reference.clone()] {
        let error = bench.store.open_run(&other, NOW).unwrap_err();
        assert!(error.to_string().contains("give the run a new name"), "{error}");
    }
    let name = Name::parse("second", "run").unwrap();
    let second = bench.store.open_run(&RunIdentity { name, ..other_reference }, NOW).unwrap();
    assert_ne!(second.reference, second.initial);
    assert_eq!(bench.store.active_run().unwrap().unwrap().id, second.id);
    assert_eq!(bench.store.runs().unwrap().len(), 2);
    assert!(bench.store.open_run(&identity("third", u64::MAX, "a"), NOW).is_err());
}

#[test]
fn a_run_with_a_start_job_keeps_its_start_and_whether_its_reference_was_named() {
    let mut bench = Bench::new();
    let job = |name| Some(Name::parse(name, "training job").unwrap());
    let chained = RunIdentity { start_job: job("main"), ..identity("main", 7, "a") };
    let run = bench.store.open_run(&chained, NOW).unwrap();
    assert!(!run.has_begun() && run.named_reference().is_none());
    assert_eq!(bench.store.checkpoint(run.base).unwrap().name, "base");
    assert_eq!(
        bench.store.open_run(&chained, NOW).unwrap(),
        run,
        "opening it again changes nothing"
    );
    let named = RunIdentity { reference: Some(chained.policy.clone()), ..chained.clone() };
    let other_start = RunIdentity { start_job: job("other"), ..chained.clone() };
    for other in [identity("main", 7, "a"), other_start, named.clone()] {
        let error = bench.store.open_run(&other, NOW).unwrap_err();
        assert!(error.to_string().contains("give the run a new name"), "{error}");
    }
    // Its base as the reference stays the reference, whatever the policy becomes.
    let named = RunIdentity { name: Name::parse("second", "run").unwrap(), ..named };
    let second = bench.store.open_run(&named, NOW).unwrap();
    assert_eq!(second.named_reference(), Some(second.reference));
    assert_eq!(bench.store.open_run(&named, NOW).unwrap(), second);
}

#[test]
fn an_operators_pause_is_not_the_daemons_to_take_over() {
    use crate::PausedBy::{Daemon, Operator};
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.store.pause_run(run, Daemon, "the disk is full", NOW).unwrap();
    bench.store.pause_run(run, Operator, "lunch", NOW).unwrap();
    bench.store.pause_run(run, Daemon, "the disk is full", NOW).unwrap();
    let paused = bench.store.run(run).unwrap().paused.unwrap();
    assert_eq!((paused.by, paused.reason.as_str()), (Operator, "lunch"));
    bench.store.resume_run(run, NOW).unwrap();
    assert_eq!(bench.store.run(run).unwrap().paused, None);
}

#[test]
fn a_statement_that_is_kept_is_made_once() {
    let bench = Bench::new();
    for conn in [&bench.store.conn, &Reader::open(bench.dir.path()).unwrap().conn] {
        let ask = |name: &str| {
            let text = "SELECT id FROM prompt_sets WHERE name = ?1 AND priority = ?2 LIMIT ?3";
            let mut statement = conn.prepare_cached(text).unwrap();
            let _ = statement.query_row(params![name, 1, 5], |row| row.get::<_, i64>(0));
            statement.get_status(StatementStatus::RePrepare)
        };
        assert_eq!((ask("a"), ask("b"), ask("b")), (0, 0, 0));
    }
}

#[test]
fn a_full_disk_is_told_as_one_and_leaves_the_state_as_it_was() {
    use crate::{DiskKind, Disposition};
    let mut bench = Bench::new();
    let upload = bench.open("s", 0.0);
    let rows: Vec<NewPrompt> = texts(0, 2_000).iter().map(|t| a_prompt(t)).collect();
    let pages = bench.number("PRAGMA page_count");
    bench.store.conn.pragma_update(None, "max_page_count", pages + 2).unwrap();
    let error = bench.store.append_prompts(upload, &rows).unwrap_err();
    assert!(matches!(error, StoreError::Disk { kind: DiskKind::Full, .. }), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Pause);
    assert_eq!(bench.number("SELECT count(*) FROM prompts"), 0);
    bench.store.conn.pragma_update(None, "max_page_count", i64::from(i32::MAX)).unwrap();
    assert_eq!(bench.store.append_prompts(upload, &rows).unwrap().kept, 2_000);
}

#[test]
fn a_schema_is_brought_forward_after_a_copy_of_what_it_was() {
    let mut bench = Bench::new();
    let run = bench.run();
    assert_eq!(bench.store.copied(), None, "nothing to copy before there is anything");
    let initial = include_str!("../../../migrations/0001_initial.sql");
    let steps = [initial, "CREATE TABLE later (id INTEGER PRIMARY KEY) STRICT;"];
    let backups = bench.dir.path().join("backups");
    let conn = bench.store.conn_mut();
    let copy = crate::migrations::upgrade_by(conn, &backups, &steps).unwrap().unwrap();
    assert_eq!(bench.number("SELECT count(*) FROM later"), 0);
    assert_eq!(bench.number("PRAGMA user_version"), 2);
    let old = rusqlite::Connection::open(&copy).unwrap();
    let version: i64 = old.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let name: String = old.query_row("SELECT name FROM runs", [], |row| row.get(0)).unwrap();
    assert_eq!((version, name), (1, run.name));
    let again = crate::migrations::upgrade_by(bench.store.conn_mut(), &backups, &steps).unwrap();
    assert_eq!(again, None);
    assert_eq!(std::fs::read_dir(&backups).unwrap().count(), 1, "no half of a copy is left");
    // A step that fails changes nothing, and what it was stands aside.
    let broken = [initial, steps[1], "CREATE TABLE later (x) STRICT;"];
    crate::migrations::upgrade_by(bench.store.conn_mut(), &backups, &broken).unwrap_err();
    assert_eq!(bench.number("PRAGMA user_version"), 2);
    assert!(backups.join("schema-0002.db").is_file());
}

#[test]
fn a_log_that_a_reader_holds_grows_and_is_cut_once_it_ends() {
    let mut bench = Bench::new();
    bench.run();
    let reader = rusqlite::Connection::open(bench.store.path()).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).unwrap();
    bench.add("s", 0.0, &texts(0, 3_000));
    let held = bench.store.fold_log().unwrap();
    assert!(!held.folded && held.bytes > 100_000, "{held:?}");
    reader.execute_batch("COMMIT").unwrap();
    let cut = bench.store.fold_log().unwrap();
    assert_eq!(cut, crate::Log { bytes: 0, folded: true });
}
