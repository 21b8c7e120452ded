//! What the daemon itself waits for and never comes is told, and it goes on where that comes after all.

use std::fs;

use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::{http, wait};
use rustix::fs::{CWD, FileType, Mode};

use crate::story;

#[test]
fn a_folder_that_does_not_answer_is_told_and_the_run_goes_on_when_it_does() {
    let scene = Scene::fake(&Settings::default().set("scheduler", "step_timeout_s", "1"));
    // Whoever reads a pipe that nobody writes waits as on a disk that does not answer.
    let pipe = scene.path("models/policy/manifest.json");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _daemon = scene.start_unasked();
    let says =
        || scene.status()["waits_for"].to_string().contains("the look at the run has lasted");
    let told = || (http::open(&scene.socket()).is_ok() && says()).then_some(());
    wait::until("status to tell of the look that does not end", told, || scene.told());
    let writes = fs::File::options().write(true).open(&pipe).expect("somebody reads it");
    fs::remove_file(&pipe).unwrap();
    drop(writes);
    story::queue(&scene);
    scene.wait_iterations(1);
    wait::until("status to be silent of it", || (!says()).then_some(()), || scene.told());
    let events = "SELECT count(*) FROM events WHERE kind = 'step_overdue'
                  AND message LIKE 'the look at the run%'";
    assert_eq!(scene.number(events), 1);
}
