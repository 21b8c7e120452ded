//! One round: a run of three iterations with its faults, and what must hold at its end.
//!
//! Comes in: faults in the order of their moments, the facts of an undisturbed round. Goes out: counts
//! and failures. What ends is started again, as a service manager would.

use std::collections::VecDeque;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::gpus::FakeGpus;
use rlhfd_tests::scene::{Daemon, Scene, Settings, alive};
use rlhfd_tests::wait;
use rustix::process::Signal;

use crate::faults::{Fault, ITERATIONS, Kind, Moment, STAGES};
use crate::tally::Tally;

/// A scene with two fake GPUs that compute on the CPU; without a C compiler on the CPU alone.
pub struct Place {
    scene: Scene,
    gpus: Option<FakeGpus>,
}

impl Place {
    pub fn scene(&self) -> &Scene {
        &self.scene
    }
}

fn settings() -> Settings {
    Settings::default()
        .with(
            "run",
            "policy = \"models/policy\"\nseed = 7\niterations_max = 3\nprompts_per_iteration = 12",
        )
        .with("devices", "use = \"auto\"\nlook_ms = 100")
        .with(
            "scheduler",
            "unit_tokens_cpu = 600\nunit_tokens_gpu = 600\nheartbeat_ms = 200\n\
             silence_timeout_s = 60\nprogress_timeout_s = 60\nstop_timeout_s = 10",
        )
        .with("generate", "max_new_tokens = 32\nbatch_prompts = 2")
        .with(
            "train",
            "batch_pairs = 1\nmicro_batch_pairs = 1\nepochs = 3\nlearning_rate = 1e-3\n\
             save_every_steps = 2",
        )
        .with(
            "evaluate",
            "temperatures = [1.0]\nn = 2\nmax_new_tokens = 32\nbootstrap_samples = 100",
        )
}

/// A new place; `None`, said aloud, where the engine is not built.
pub fn scene() -> Option<Place> {
    let mut scene = Scene::real(&settings())?;
    let gpus = FakeGpus::of(&mut scene, 2);
    Some(Place { scene, gpus })
}

/// A round in a place of its own; what does not hold is a failure of the tally.
pub fn run(number: u64, faults: Vec<Fault>, undisturbed: &Dump, tally: &mut Tally) {
    let Some(Place { scene, mut gpus }) = scene() else { return };
    for fault in &faults {
        println!("round {number}: {fault:?}");
    }
    // A round that hangs, or a daemon that does not come up, fails this round only.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        lived(&scene, gpus.as_mut(), faults, tally);
        dump::assert_same(undisturbed, &dump::dump(&scene.database()), "the faults");
    }));
    if let Err(payload) = ended {
        let text = payload.downcast_ref::<String>().map_or("a panic", String::as_str);
        tally.failed(format!("round {number}: {}", text.lines().next().unwrap_or(text)));
    }
    for broken in unsound(&scene) {
        tally.failed(format!("round {number}: {broken}"));
    }
}

/// Lives through a run and its faults, until it has ended in order.
pub fn lived(scene: &Scene, gpus: Option<&mut FakeGpus>, faults: Vec<Fault>, tally: &mut Tally) {
    let mut faults = VecDeque::from(faults);
    let mut life = Life { scene, daemon: Some(scene.start()), gpus };
    scene.add_prompts("plain", 0, 56, "0.25");
    let over = format!("SELECT count(*) = {ITERATIONS} FROM iterations WHERE ended_ms IS NOT NULL");
    let mut step = || {
        life.revive();
        // What is left when the run has ended falls into an idle daemon.
        let ended = scene.number(&over) == 1;
        while let Some(fault) = faults.pop_front_if(|fault| ended || begun(scene, fault.moment)) {
            std::thread::sleep(Duration::from_millis(fault.moment.ms));
            life.suffer(fault, tally);
        }
        ended.then_some(())
    };
    let what = "three iterations to end";
    wait::until_within(4 * wait::DEADLINE, what, &mut step, || scene.told());
    life.revive();
    let workers = life.daemon.as_ref().map(Daemon::workers).unwrap_or_default();
    let status = life.daemon.take().map(Daemon::terminate);
    assert!(status.is_some_and(|status| status.success()), "it did not end in order: {status:?}");
    for pid in workers {
        assert!(!alive(pid), "worker {pid} outlived its daemon");
    }
}

/// Whether the work has come so far.
fn begun(scene: &Scene, Moment { iteration, stage, attempt, .. }: Moment) -> bool {
    let (own, later) = (STAGES[stage], &STAGES[stage + 1..]);
    let later: Vec<String> = later.iter().map(|stage| format!("'{stage}'")).collect();
    let attempts = format!(
        "SELECT (SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id
                 WHERE u.iteration = {iteration} AND u.stage = '{own}' AND u.work <> 'probe') >= {attempt}
             OR EXISTS (SELECT 1 FROM attempts a JOIN units u ON u.id = a.unit_id
                 WHERE u.iteration = {iteration} AND u.stage IN ({}) AND u.work <> 'probe')
             OR EXISTS (SELECT 1 FROM iterations WHERE iteration = {iteration} AND ended_ms IS NOT NULL)",
        later.join(", ")
    );
    scene.number(&attempts) == 1
}

/// The stage that computes now.
fn at(scene: &Scene) -> String {
    let stage = "SELECT coalesce((SELECT u.stage FROM attempts a JOIN units u ON u.id = a.unit_id
        WHERE a.ended_ms IS NULL ORDER BY a.id DESC LIMIT 1), 'between')";
    dump::text(&scene.database(), stage).unwrap_or_else(|| "between".to_owned())
}

/// The daemon through its deaths.
struct Life<'a, 'g> {
    scene: &'a Scene,
    daemon: Option<Daemon<'a>>,
    gpus: Option<&'g mut FakeGpus>,
}

impl<'a> Life<'a, '_> {
    /// Starts the daemon anew if it has ended by itself.
    fn revive(&mut self) {
        let ended = |daemon: &mut Daemon| daemon.child.try_wait().expect("a child").is_some();
        if self.daemon.as_mut().is_none_or(ended) {
            self.daemon = Some(self.scene.start());
        }
    }

    /// Ends the daemon that lives, this way.
    fn end<T>(&mut self, way: impl FnOnce(Daemon<'a>) -> T) {
        if let Some(daemon) = self.daemon.take() {
            way(daemon);
        }
    }

    fn suffer(&mut self, fault: Fault, tally: &mut Tally) {
        if fault.at_start {
            self.end(Daemon::kill);
            self.daemon = Some(self.scene.start_unasked());
            std::thread::sleep(Duration::from_millis(fault.moment.ms * 3));
        }
        let at = if fault.at_start { "start".to_owned() } else { at(self.scene) };
        self.hit(fault);
        tally.fell(fault.kind, &at);
    }

    fn hit(&mut self, fault: Fault) {
        let Some(daemon) = self.daemon.as_ref() else { return };
        let worker = daemon.workers().first().copied();
        let lasts = Duration::from_millis(fault.lasts_ms);
        match (fault.kind, worker) {
            (Kind::KillDaemon, _) => self.end(Daemon::kill),
            (Kind::Terminate, _) => self.end(Daemon::terminate),
            (Kind::FreezeDaemon, _) => frozen(daemon.pid(), lasts),
            (Kind::KillWorker, Some(pid)) => signal_if_alive(pid, Signal::KILL),
            (Kind::FreezeWorker, Some(pid)) => frozen(pid, lasts),
            // No worker lives between two leases: then nothing is there to be hit.
            (Kind::KillWorker | Kind::FreezeWorker, None) => {}
            (Kind::LoseGpu, _) => {
                if let Some(gpus) = self.gpus.as_mut() {
                    // 15: NVML_ERROR_GPU_IS_LOST.
                    gpus.set("gpu.0.err", "15");
                    std::thread::sleep(lasts);
                    gpus.unset("gpu.0.err");
                }
            }
        }
        self.revive();
    }
}

fn frozen(pid: i32, lasts: Duration) {
    signal_if_alive(pid, Signal::STOP);
    std::thread::sleep(lasts);
    signal_if_alive(pid, Signal::CONT);
}

/// A worker may end by itself between the look and the signal.
fn signal_if_alive(pid: i32, what: Signal) {
    if alive(pid) {
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        let _gone = rustix::process::kill_process(pid, what);
    }
}

/// What may never be, whatever befell a run.
fn unsound(scene: &Scene) -> Vec<String> {
    let mut broken = Vec::new();
    let Ok(connection) = dump::try_open(&scene.database()) else {
        return vec!["the database cannot be opened".to_owned()];
    };
    let text = |sql: &str| -> String {
        let row = connection.query_row(sql, [], |row| row.get::<_, String>(0));
        row.unwrap_or_else(|error| error.to_string())
    };
    let integrity = text("PRAGMA integrity_check");
    if integrity != "ok" {
        broken.push(format!("integrity_check: {integrity}"));
    }
    let counts = [
        ("rows point at nothing", "SELECT count(*) FROM pragma_foreign_key_check"),
        (
            "units have two finished attempts",
            "SELECT count(*) FROM (SELECT 1 FROM attempts WHERE outcome = 'finished'
             GROUP BY unit_id HAVING count(*) > 1)",
        ),
        ("deaths were counted", "SELECT count(*) FROM attempts WHERE counted = 1"),
        ("attempts are open", "SELECT count(*) FROM attempts WHERE ended_ms IS NULL"),
    ];
    for (what, sql) in counts {
        let found = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        match found {
            Ok(0) => {}
            Ok(count) => broken.push(format!("{count} {what}")),
            Err(error) => broken.push(format!("{what}: {error}")),
        }
    }
    let mut left = Vec::new();
    unfinished(&scene.state(), &mut left);
    broken.extend(left.into_iter().map(|path| format!("{path} was left behind")));
    broken
}

/// Files and folders that only stand while something is written.
fn unfinished(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.ends_with(".partial") || name.ends_with(".tmp") || name.ends_with(".new") {
            found.push(path.display().to_string());
        } else if path.is_dir() {
            unfinished(&path, found);
        }
    }
}
