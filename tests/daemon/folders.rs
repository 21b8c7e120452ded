//! What the daemon finds in its state folder at a start: folders without a row, rows without a
//! folder, backups.

use std::fs;
use std::path::Path;

use rlhfd_tests::dump;
use rlhfd_tests::models::copy;
use rlhfd_tests::scene::{Scene, Settings, text};

use crate::story;

/// A scene whose run has ended and whose daemon has stopped.
fn ended() -> Scene {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(2);
    assert!(daemon.terminate().success());
    scene
}

fn events(scene: &Scene, level: &str) -> i64 {
    scene.number(&format!("SELECT count(*) FROM events WHERE level = '{level}'"))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_folder_that_fits_no_unit_is_moved_aside_and_told() {
    let scene = ended();
    let checkpoints = scene.state().join("runs/main/checkpoints");
    copy(&checkpoints.join("iteration-0002"), &checkpoints.join("iteration-0009"));
    let part = checkpoints.join(".iteration-0003.part");
    fs::create_dir(&part).unwrap();
    fs::write(part.join("model.safetensors"), "half").unwrap();
    let before = events(&scene, "warn");
    let _daemon = scene.start();
    assert!(!checkpoints.join("iteration-0009").exists());
    assert_eq!(names(&scene.state().join("orphans")).len(), 1);
    assert!(!part.exists(), "a half-written folder stays");
    assert!(events(&scene, "warn") > before, "nobody was told");
    dump::assert_same(story::undisturbed(), &dump::dump(&scene.database()), "an orphan");
}

#[test]
fn a_row_without_a_sound_folder_falls_back_to_its_parent() {
    let scene = ended();
    let weights = scene.state().join("runs/main/checkpoints/iteration-0002/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[100] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let _daemon = scene.start();
    let unsound = "SELECT count(*) FROM checkpoints WHERE sound = 0 AND name = 'iteration-0002'";
    scene.wait_number("its sum to be looked at", unsound, 1);
    assert_eq!(scene.status()["run"]["head"], "iteration-0001");
    let told = "SELECT count(*) FROM events WHERE message LIKE '%iteration-0002%'
                AND level IN ('warn', 'error')";
    assert!(scene.number(told) >= 1);
}

#[test]
fn a_restored_backup_costs_no_newer_checkpoint() {
    let scene = Scene::fake(&Settings::default().set("run", "iterations_max", "1"));
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    assert!(daemon.terminate().success());
    let backup = fs::read(scene.state().join("db/rlhfd.db")).unwrap();
    scene.configure(&Settings::default());
    let daemon = scene.start();
    scene.wait_iterations(2);
    let sum = "SELECT sha256 FROM checkpoints WHERE name = 'iteration-0002'";
    let newer = dump::text(&scene.database(), sum).unwrap();
    assert!(daemon.terminate().success());
    // The database of before the second iteration comes back.
    fs::write(scene.state().join("db/rlhfd.db"), backup).unwrap();
    let _daemon = scene.start();
    scene.wait_iterations(2);
    assert_eq!(dump::text(&scene.database(), sum).unwrap(), newer);
    let kept = scene.state().join("orphans");
    assert_eq!(names(&kept).iter().filter(|name| name.contains("iteration-0002")).count(), 1);
}

#[test]
fn an_upload_that_was_open_at_a_kill_is_swept() {
    use std::io::Write;
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    let mut stream = rlhfd_tests::http::open(&scene.socket()).unwrap();
    let head = "POST /v1/prompt-sets/cut/prompts HTTP/1.1\r\nHost: x\r\n\
                Content-Length: 900000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let line = |n: usize| format!("{{\"prompt\": \"cut {n}\"}}\n");
    stream.write_all((0..2_000).map(line).collect::<String>().as_bytes()).unwrap();
    let open = "SELECT count(*) FROM uploads WHERE state = 'open'";
    scene.wait_number("the upload to be open", open, 1);
    daemon.kill();
    let _daemon = scene.start();
    assert_eq!(scene.number(open), 0);
    let left = "SELECT count(*) = 0 FROM prompts";
    scene.wait_number("its rows to be swept", left, 1);
    story::queue(&scene);
    story::ends_the_same(&scene, "a swept upload");
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let scene = ended();
    let _daemon = scene.start();
    let well = scene.ctl(&["doctor"]);
    let said = text(&well.stdout);
    assert!(well.status.success(), "{said}{}", text(&well.stderr));
    assert!(said.contains("are as their sums say") && said.contains("orphans"), "{said}");
    // A byte of a checkpoint that is not the head, where only a long look finds it.
    let checkpoints = scene.state().join("runs/main/checkpoints");
    let weights = checkpoints.join("iteration-0001/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[100] ^= 1;
    fs::write(&weights, bytes).unwrap();
    copy(&checkpoints.join("iteration-0002"), &checkpoints.join("stranger"));
    let ill = scene.ctl(&["doctor"]);
    let said = text(&ill.stdout);
    assert_eq!(ill.status.code(), Some(1), "{said}");
    let bad = said.lines().find(|line| line.starts_with("BAD")).unwrap_or_default();
    assert!(bad.contains("iteration-0001 of main") && bad.contains("restore the folder"), "{said}");
    assert!(said.contains("checkpoints/stranger belongs to no checkpoint"), "{said}");
    let unchanged = "SELECT count(*) FROM checkpoints WHERE sound = 1";
    assert_eq!(scene.number(unchanged), 3, "the doctor only looks");
}
