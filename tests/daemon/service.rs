//! What the service manager is told, by its own protocol: a datagram socket named in the environment.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use rlhfd_tests::scene::{Scene, Settings, signal};
use rlhfd_tests::{dump, wait};
use rustix::process::Signal;

use crate::story;

/// Long enough for a debug build on a busy machine, short enough for a test.
const WATCHDOG: Duration = Duration::from_millis(900);

struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(scene: &mut Scene) -> Self {
        let path = scene.path("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(WATCHDOG * 3)).expect("a timeout");
        let variables = [
            ("NOTIFY_SOCKET", path.to_string_lossy().into_owned()),
            ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()),
        ];
        scene.environment.extend(variables.map(|(key, value)| (key.to_owned(), value)));
        Self { socket, path }
    }

    /// Fills the queue, as of a manager that has not read for long.
    fn stuff(&self) {
        let sender = UnixDatagram::unbound().expect("a socket");
        sender.set_nonblocking(true).expect("a socket that does not wait");
        while sender.send_to(b"STATUS=stuffing\n", &self.path).is_ok() {}
    }

    /// The lines of the next message; none where nothing comes for three intervals.
    fn lines(&self) -> Option<BTreeSet<String>> {
        let mut bytes = [0; 4096];
        let read = self.socket.recv(&mut bytes).ok()?;
        let text = String::from_utf8(bytes[..read].to_vec()).expect("a message is text");
        Some(text.lines().map(str::to_owned).collect())
    }

    fn until(&self, wanted: &str, scene: &Scene) -> BTreeSet<String> {
        let next =
            || self.lines().filter(|lines| lines.iter().any(|line| line.starts_with(wanted)));
        wait::until(wanted, next, || scene.told())
    }
}

#[test]
fn the_service_manager_hears_ready_then_the_watchdog_with_a_status_then_stopping() {
    let mut scene = Scene::fake(&Settings::default());
    let manager = Manager::of(&mut scene);
    let mut daemon = scene.start();
    let first = manager.lines().expect("a message");
    assert_eq!(first, BTreeSet::from(["READY=1".to_owned()]), "nothing comes before it serves");
    // It serves before it has looked at the run: the first status may not know what it waits for.
    let lines = manager.until("STATUS=0 of 12 prompts are queued", &scene);
    assert!(lines.contains("WATCHDOG=1"), "{lines:?}");
    signal(daemon.pid(), Signal::HUP);
    manager.until("RELOADING=1", &scene);
    manager.until("READY=1", &scene);
    signal(daemon.pid(), Signal::TERM);
    let lines = manager.until("STOPPING=1", &scene);
    let asked_for = |lines: &BTreeSet<String>| {
        let line = lines.iter().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
        line.and_then(|usec| usec.parse::<u64>().ok()).expect("a time") / 1_000_000
    };
    // For workers, and then for the database, whatever is left of the time by then.
    let workers = asked_for(&lines);
    let database = asked_for(&manager.until("STATUS=the database", &scene));
    assert_eq!(workers - database, 5, "[scheduler] stop_timeout_s");
    assert!(daemon.ended().success());
}

/// A plan by which the worker holds at this point, once.
fn holds(point: &str, rest: &str) -> String {
    format!(r#"{{"faults": [{{"name": "here", {point}, "act": {{"kind": "hold"}}}}]{rest}}}"#)
}

/// Sends SIGTERM while a unit is held at `point`, lets it go on when it was asked to leave, and starts again.
fn stopped_at(scene: &Scene, point: &str, rest: &str) {
    scene.plan(&holds(point, rest));
    let mut daemon = scene.start();
    story::queue(scene);
    scene.held("here");
    signal(daemon.pid(), Signal::TERM);
    let asked = || scene.log().contains("is asked to leave").then_some(());
    wait::until("the worker to be asked to leave", asked, || scene.told());
    scene.release("here");
    assert!(daemon.ended().success());
    scene.plan("{}");
}

/// How the first attempt at the kind of work ended that was not finished.
fn unfinished(scene: &Scene, work: &str) -> String {
    let sql = format!(
        "SELECT a.outcome FROM attempts a JOIN units u ON u.id = a.unit_id
         WHERE u.work = '{work}' AND a.outcome <> 'finished' ORDER BY a.id LIMIT 1"
    );
    dump::text(&scene.database(), &sql).unwrap_or_default()
}

#[test]
fn a_unit_is_not_finished_before_the_daemon_stops() {
    for (point, work) in [
        (r#""work": "generate", "purpose": "generate", "after": 1"#, "generate"),
        (r#""work": "score", "after": 1"#, "score"),
    ] {
        let scene = Scene::fake(&Settings::default());
        stopped_at(&scene, point, r#", "ms_per_item": 200"#);
        assert_eq!(unfinished(&scene, work), "cancelled");
        let _daemon = scene.start();
        story::ends_the_same(&scene, work);
    }
}

/// Stops in the middle of the fourth step of a training, the second of which was saved by itself, where a save is
/// reckoned to take so long. Gives the first step of the next attempt.
fn training_stopped(ms_per_save: u64) -> i64 {
    let scene = Scene::fake(&Settings::default());
    let rest = format!(r#", "ms_per_step": 200, "ms_per_save": {ms_per_save}"#);
    stopped_at(&scene, r#""work": "train_dpo", "after": 2"#, &rest);
    assert_eq!(unfinished(&scene, "train_dpo"), "cancelled");
    let _daemon = scene.start();
    story::ends_the_same(&scene, "a training that was stopped");
    scene.number(
        "SELECT a.first_step FROM attempts a JOIN units u ON u.id = a.unit_id
         WHERE u.work = 'train_dpo' AND u.iteration = 1 AND a.number = 2",
    )
}

#[test]
fn a_training_saves_its_state_before_the_daemon_stops_only_where_there_is_time() {
    // [scheduler] stop_timeout_s is 5.
    assert_eq!(training_stopped(4_000), 4);
    assert_eq!(training_stopped(6_000), 3);
}

#[test]
fn a_daemon_that_stands_still_is_not_heard() {
    let mut scene = Scene::fake(&Settings::default());
    let manager = Manager::of(&mut scene);
    let daemon = scene.start();
    manager.until("WATCHDOG=1", &scene);
    signal(daemon.pid(), Signal::STOP);
    // What was sent before the stop may still lie in the socket.
    while manager.lines().is_some_and(|lines| lines.contains("WATCHDOG=1")) {}
    assert_eq!(manager.lines(), None);
    signal(daemon.pid(), Signal::CONT);
    manager.until("WATCHDOG=1", &scene);
    assert!(daemon.terminate().success());
}

#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up_and_hears_what_matters_later() {
    let mut scene = Scene::fake(&Settings::default());
    let manager = Manager::of(&mut scene);
    manager.stuff();
    let mut daemon = scene.start();
    scene.add_prompts("early", 0, 4, "0");
    manager.until("READY=1", &scene);
    manager.stuff();
    signal(daemon.pid(), Signal::HUP);
    let reloads = "SELECT count(*) FROM events WHERE kind = 'config_reloaded'";
    scene.wait_number("the reload to be told", reloads, 1);
    manager.until("RELOADING=1", &scene);
    manager.until("READY=1", &scene);
    // Nobody reads any more.
    manager.stuff();
    signal(daemon.pid(), Signal::TERM);
    assert!(daemon.ended().success());
}

#[test]
fn a_reload_tells_each_changed_knob_and_a_wrong_configuration_changes_nothing() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    let changed = Settings::default().set("store", "disk_probe_ms", "200").set(
        "generate",
        "max_new_tokens",
        "6",
    );
    scene.configure(&changed);
    signal(daemon.pid(), Signal::HUP);
    let events = |kind: &str| format!("SELECT count(*) FROM events WHERE kind = '{kind}'");
    scene.wait_number("the reload to be told", &events("config_reloaded"), 1);
    let told = "SELECT message FROM events WHERE kind = 'config_reloaded'";
    let told = dump::text(&scene.database(), told).unwrap();
    for part in [
        "store.disk_probe_ms = 200 (was 15000) [at once]",
        "generate.max_new_tokens = 6 (was 8) [from the next iteration on]",
    ] {
        assert!(told.contains(part), "{told}");
    }
    scene.write("rlhfd.toml", "[run]\nsead = 1\n");
    signal(daemon.pid(), Signal::HUP);
    scene.wait_number("the refusal to be told", &events("config_refused"), 1);
    assert_eq!(scene.status()["prompts"]["per_iteration"], 12, "the old one is in force");
}
