//! Malformed requests by many clients at once while iterations run: the daemon lives, does not grow, goes
//! on answering `status`, and the run's results are those of a run that nobody disturbed.
//!
//! Comes in: `FUZZ_REQUESTS`, `FUZZ_CLIENTS` and `FUZZ_SEED` (`make fuzz N=… CLIENTS=… SEED=…`), or a short
//! storm without them. Goes out: what was answered, by kind, then `N requests, M failures`. A seed gives
//! the same requests again. May not enter: libtorch.

mod bodies;
mod clients;
mod gauge;
mod random;
mod requests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::measure;
use rlhfd_tests::scene::{Daemon, Scene, Settings};
use rlhfd_tests::wait;

use crate::clients::Tally;
use crate::gauge::Pulse;

/// Without an order from outside.
const REQUESTS: u64 = 3_000;
const CLIENTS: u64 = 40;
const SEED: u64 = 1;
/// Requests beside each iteration.
const REQUESTS_AN_ITERATION: u64 = 1_500;
/// The first so many fill caches: the allocator's, SQLite's, the threads'.
const WARM_UP_SHARE: u64 = 5;
/// What the allocator may keep on top of that.
const GROWTH_KIB_MAX: u64 = 12 * 1024;
/// Open files of a daemon that nobody talks to.
const DESCRIPTORS_MAX: u64 = 120;
/// For 99 of 100 answers of `status`, in a release build.
const STATUS_MAX: Duration = Duration::from_millis(10);

fn ordered(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")),
        Err(_) => otherwise,
    }
}

fn scene(iterations: u64) -> Scene {
    let settings = Settings::default()
        .set("run", "iterations_max", &iterations.to_string())
        .with("control", "sql_time_ms = 300\nreaders_socket = \"readers\"");
    let scene = Scene::fake(&settings);
    scene.plan("{\"ms_per_item\": 5}");
    scene
}

fn begin(scene: &Scene, iterations: u64) -> Daemon<'_> {
    let daemon = scene.start();
    let prompts = usize::try_from(iterations * 16 + 20).unwrap();
    scene.add_prompts("plain", 0, prompts, "0.2");
    daemon
}

fn end(scene: &Scene, iterations: u64) -> Dump {
    let ended = "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL";
    let ask = || (scene.number(ended) >= iterations as i64).then_some(());
    wait::until_within(10 * wait::DEADLINE, "the iterations to end", &mut { ask }, || scene.told());
    dump::dump(&scene.database())
}

#[test]
fn malformed_requests_do_no_harm() {
    let (requests, clients, seed) = (
        ordered("FUZZ_REQUESTS", REQUESTS),
        usize::try_from(ordered("FUZZ_CLIENTS", CLIENTS)).unwrap(),
        ordered("FUZZ_SEED", SEED),
    );
    let iterations = 1 + requests / REQUESTS_AN_ITERATION;
    println!("fuzz: seed {seed}, {clients} clients at once, {iterations} iterations beside them");
    let undisturbed = {
        let scene = scene(iterations);
        let _daemon = begin(&scene, iterations);
        end(&scene, iterations)
    };
    let scene = scene(iterations);
    let daemon = begin(&scene, iterations);
    let pid = daemon.pid();
    let (tally, over) = (Mutex::new(Tally::default()), AtomicBool::new(false));
    let storm = |part| clients::storm(&scene.socket(), seed, part, clients, &tally);
    let warm = requests / WARM_UP_SHARE;
    let started = Instant::now();
    let (pulse, before) = thread::scope(|scope| {
        let pulse = scope.spawn(|| Pulse::felt(&scene.socket(), &over));
        storm((0, warm));
        let before = daemon.resident_kib();
        storm((warm, requests));
        over.store(true, Ordering::Relaxed);
        (pulse.join().expect("status answers"), before)
    });
    let took = started.elapsed();
    let mut tally = tally.into_inner().unwrap();
    quiet(&scene, pid);
    let after = daemon.resident_kib();
    println!(
        "fuzz: {:.0} requests/s; memory {before} KiB after {warm} requests, {after} KiB at the end",
        requests as f64 / took.as_secs_f64()
    );
    if after > before + GROWTH_KIB_MAX {
        tally.failed(format!("memory grew from {before} to {after} KiB"));
    }
    pulse.tell();
    if !cfg!(debug_assertions) && pulse.quantile(0.99) > STATUS_MAX {
        tally.failed(format!("1 of 100 answers of status took {:?} or more", pulse.quantile(0.99)));
    }
    dump::assert_same(&undisturbed, &end(&scene, iterations), "the storm");
    for line in scene.log().lines().filter(|line| is_a_fault(line)) {
        tally.failed(format!("the daemon's log: {line}"));
    }
    assert!(daemon.terminate().success(), "the daemon did not end in order");
    tally.tell();
    println!("{requests} requests, {} failures", tally.failures());
    assert_eq!(tally.failures(), 0, "seed {seed}");
}

/// actix-http 3.20.0 panics at a header's name of more than 64 KiB, where it should answer 400: that one
/// connection ends without a word, which the panic hook tells. The requests go on asking for it.
fn is_a_fault(line: &str) -> bool {
    let known = line.contains("InvalidHeaderName") && line.contains("core=false");
    (line.contains("ERROR") || line.contains("panic")) && !known
}

/// Open files of the daemon.
fn open_files(pid: i32) -> u64 {
    measure::usage(pid).expect("the daemon").open_files
}

/// Waits until what the storm left is put away: its connections, and the rows of its uploads.
fn quiet(scene: &Scene, pid: i32) {
    let swept = "SELECT NOT EXISTS (SELECT 1 FROM uploads WHERE state = 'open'
                     OR state = 'failed' AND (set_id IS NOT NULL OR preference_set_id IS NOT NULL))";
    // Each upload is swept by some small transactions, which a busy disk makes slow.
    let deadline = 5 * wait::DEADLINE;
    let mut ask = || (scene.number(swept) == 1).then_some(());
    wait::until_within(deadline, "the uploads to be swept", &mut ask, || scene.told());
    // Two listening sockets, the database by each reader, the worker, the runtime's own.
    let mut few = || (open_files(pid) < DESCRIPTORS_MAX).then_some(());
    wait::until_within(deadline, "the connections to be closed", &mut few, || {
        format!("{} are open\n{}", open_files(pid), scene.told())
    });
}
