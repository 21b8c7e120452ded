//! Many iterations of a tiny model in one daemon, with the real worker: what daemon, worker and database take
//! at the end of each, and whether any of it grows.
//!
//! Comes in: `SOAK_ITERATIONS` (`make soak N=…`), or a few without it. Goes out: a table of every tenth part,
//! and the verdict. The references move and retention keeps little, so that all that is meant to go has to;
//! training sees its own iteration alone, so that none is longer than the one before. May not enter: a network,
//! a GPU.

mod table;

use std::fs;
use std::time::{Duration, Instant};

use rlhfd_tests::measure::{HeapWatch, Usage, usage};
use rlhfd_tests::scene::{Daemon, Scene, Settings};
use rlhfd_tests::wait;

use crate::table::{Row, tell};

/// Without an order from outside: enough to see that the soak itself works.
const ITERATIONS: u64 = 6;
/// Prompts of an iteration.
const PROMPTS: u64 = 6;

fn ordered() -> u64 {
    match std::env::var("SOAK_ITERATIONS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("SOAK_ITERATIONS={text} is no number")),
        Err(_) => ITERATIONS,
    }
}

fn settings(iterations: u64) -> Settings {
    Settings::default()
        .with(
            "run",
            &format!(
                "policy = \"models/policy\"\nseed = 7\niterations_max = {iterations}\n\
                 prompts_per_iteration = {PROMPTS}\nreuse_prompts = true"
            ),
        )
        .with("store", "disk_free_min_mib = 0\nkeep_checkpoints = 3\nkeep_responses = 3")
        .with(
            "scheduler",
            "unit_tokens_cpu = 5000\nheartbeat_ms = 200\nsilence_timeout_s = 60\n\
             progress_timeout_s = 60\nstop_timeout_s = 10",
        )
        .with("generate", "max_new_tokens = 16\nbatch_prompts = 2")
        .with(
            "train",
            "batch_pairs = 4\nmicro_batch_pairs = 4\nepochs = 1\nlearning_rate = 1e-4\n\
             save_every_steps = 1000\nhistory = \"newest\"\nreference = \"previous\"\non_divergence = \"keep_head\"",
        )
        .with(
            "evaluate",
            "temperatures = [1.0]\nn = 1\nmax_new_tokens = 16\nbootstrap_samples = 100",
        )
}

/// What there is at this moment; none where the worker is just being replaced.
fn row(scene: &Scene, daemon: &Daemon, heap: Option<&HeapWatch>, iteration: u64) -> Option<Row> {
    let database = fs::metadata(scene.database()).ok()?.len();
    Some(Row {
        iteration,
        daemon: usage(daemon.pid())?,
        in_use: heap.and_then(HeapWatch::bytes).map_or(0.0, |(used, _)| used),
        workers: daemon.workers().into_iter().filter_map(usage).fold(Usage::default(), add),
        database_kib: database / 1024,
        units: u64::try_from(scene.number("SELECT count(*) FROM units")).unwrap_or(0),
    })
}

fn add(one: Usage, other: Usage) -> Usage {
    Usage {
        own_kib: one.own_kib + other.own_kib,
        resident_kib: one.resident_kib + other.resident_kib,
        peak_kib: one.peak_kib + other.peak_kib,
        open_files: one.open_files + other.open_files,
        threads: one.threads + other.threads,
    }
}

#[test]
fn many_iterations_take_no_more_than_a_few() {
    let iterations = ordered();
    let Some(mut scene) = Scene::real(&settings(iterations)) else { return };
    let heap = HeapWatch::of(&mut scene);
    let daemon = scene.start();
    scene.add_prompts("plain", 0, 60, "0.1");
    let began = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    let ended =
        "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL AND cancelled_ms IS NULL";
    while rows.last().is_none_or(|last| last.iteration < iterations) {
        let after = rows.last().map_or(0, |last| last.iteration);
        let mut next = || {
            let now = u64::try_from(scene.number(ended)).ok().filter(|now| *now > after)?;
            row(&scene, &daemon, heap.as_ref(), now)
        };
        let what = format!("an iteration after {after} to end");
        rows.push(wait::until_within(2 * wait::DEADLINE, &what, &mut next, || scene.told()));
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{iterations} iterations in {} s", began.elapsed().as_secs());
    let growing = tell(&rows);
    assert!(daemon.terminate().success());
    assert!(growing.is_empty(), "not flat: {}", growing.join("; "));
}
