//! A disk that is really full: a file system of some megabytes of its own, filled by the test.
//!
//! Needs the right to mount in a name space of the daemon's own; says so where it has none.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use rlhfd_tests::disk_faults::{DiskFaults, EIO, ENOSPC};
use rlhfd_tests::scene::{Daemon, Scene, Settings};
use rlhfd_tests::{dump, http, wait};

use crate::story;

/// Starts the daemon with a state folder of this size.
fn start_on<'a>(scene: &'a Scene, size: &str) -> Option<Daemon<'a>> {
    let trial =
        Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        eprintln!("skipped: a file system of its own cannot be mounted here");
        return None;
    }
    fs::create_dir_all(scene.state()).unwrap();
    let script = format!("mount -t tmpfs -o size={size} tmpfs \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]).arg(scene.state());
    Some(scene.start_by(command))
}

/// The state folder as the daemon sees it.
fn seen(daemon: &Daemon, scene: &Scene) -> PathBuf {
    let path = scene.state().strip_prefix("/").unwrap().to_owned();
    PathBuf::from(format!("/proc/{}/root", daemon.pid())).join(path)
}

/// The database, taken out of the daemon's name space: SQLite would resolve the link to its root.
fn copied(daemon: &Daemon, scene: &Scene) -> PathBuf {
    let copies = scene.path("copies");
    fs::create_dir_all(&copies).unwrap();
    for entry in fs::read_dir(seen(daemon, scene).join("db")).unwrap().flatten() {
        fs::copy(entry.path(), copies.join(entry.file_name())).unwrap();
    }
    copies.join("rlhfd.db")
}

/// Takes all the room that is left.
fn fill(ballast: &PathBuf) {
    let mut file = fs::File::create(ballast).unwrap();
    let mut bytes = vec![0u8; 1 << 16];
    while !bytes.is_empty() {
        match file.write_all(&bytes) {
            Ok(()) => {}
            // Smaller and smaller pieces, until no byte goes in.
            Err(_) => bytes.truncate(bytes.len() / 2),
        }
    }
}

fn stands_a_full_disk(point: &str) {
    let settings = Settings::default().set("store", "disk_probe_ms", "200");
    let scene = Scene::fake(&settings);
    scene.plan(&format!(
        r#"{{"faults": [{{"name": "here", {point}, "act": {{"kind": "hold"}}}}]}}"#
    ));
    let Some(daemon) = start_on(&scene, "24m") else { return };
    story::queue(&scene);
    scene.held("here");
    let ballast = seen(&daemon, &scene).join("ballast");
    fill(&ballast);
    scene.release("here");
    let told = || scene.status().to_string().contains("cannot be written").then_some(());
    wait::until("status to speak of the disk", told, || scene.told());
    fs::remove_file(&ballast).unwrap();
    let done = || (scene.status()["run"]["iterations_done"] == 2).then_some(());
    wait::until("the run to go on by itself and end", done, || scene.told());
    let database = copied(&daemon, &scene);
    assert_eq!(dump::number(&database, "SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    dump::assert_same(story::undisturbed(), &dump::dump(&database), point);
}

#[test]
fn the_disk_is_full_while_responses_arrive() {
    stands_a_full_disk(r#""work": "generate", "purpose": "generate", "after": 1"#);
}

#[test]
fn the_disk_is_full_while_a_policy_is_trained() {
    stands_a_full_disk(r#""work": "train_dpo", "after": 3"#);
}

#[test]
fn the_disk_is_full_when_the_checkpoint_is_written() {
    stands_a_full_disk(r#""work": "publish""#);
}

/// A scene with a disk that fails on order; `None` without a C compiler.
fn failing() -> Option<(Scene, DiskFaults)> {
    let mut scene = Scene::fake(&Settings::default().set("store", "disk_probe_ms", "200"));
    let disk = DiskFaults::of(&mut scene)?;
    Some((scene, disk))
}

#[test]
fn a_daemon_that_starts_on_a_full_disk_waits_until_there_is_room() {
    let Some((scene, mut disk)) = failing() else { return };
    disk.fail("write+create", ENOSPC, 0, "");
    let mut daemon = scene.start_unasked();
    let told = || scene.log().contains("until the disk is well").then_some(());
    wait::until("the log to say why it waits", told, || scene.told());
    assert!(daemon.child.try_wait().unwrap().is_none(), "it ended");
    disk.mend();
    let serves = || http::open(&scene.socket()).is_ok().then_some(());
    wait::until("the daemon to come up by itself", serves, || scene.told());
    story::queue(&scene);
    story::ends_the_same(&scene, "a start on a full disk");
}

#[test]
fn a_commit_whose_outcome_is_unknown_ends_the_daemon_and_the_next_one_knows() {
    let Some((scene, mut disk)) = failing() else { return };
    scene.plan(
        r#"{"faults": [{"name": "here", "work": "generate", "after": 1, "act": {"kind": "hold"}}]}"#,
    );
    let mut daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    disk.fail("sync", EIO, 1, "rlhfd.db-wal");
    scene.release("here");
    let status = daemon.ended();
    assert_eq!(status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{status}");
    assert_eq!(disk.hits(), 1);
    assert!(scene.log().contains("the outcome of a write is unknown"));
    let _daemon = scene.start();
    story::ends_the_same(&scene, "a failed sync in a commit");
}
