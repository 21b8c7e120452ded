//! How long questions take: one connection that stays, as a monitor has it, beside others that load.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rlhfd_tests::http::Line;
use rlhfd_tests::measure::{Usage, usage};
use rlhfd_tests::scene::Scene;
use rlhfd_tests::wait;

/// `count` times the same question.
pub fn times(socket: &Path, count: usize, path: &str) -> Vec<Duration> {
    let mut line = Line::open(socket);
    line.answered("GET", path, "");
    (0..count)
        .map(|_| {
            thread::sleep(Duration::from_millis(1));
            line.answered("GET", path, "").0
        })
        .collect()
}

/// As [`times`] of `status`, while four others ask for lists and by SQL without a pause.
pub fn under_load(socket: &Path, count: usize) -> Vec<Duration> {
    const SQL: &str = "{\"sql\": \"SELECT count(*) FROM units\"}";
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..4 {
            let over = &over;
            scope.spawn(move || {
                let mut line = Line::open(socket);
                while !over.load(Ordering::Relaxed) {
                    match n {
                        0 => line.answered("POST", "/v1/sql", SQL),
                        1 => line.answered("GET", "/v1/iterations", ""),
                        2 => line.answered("GET", "/v1/checkpoints", ""),
                        _ => line.answered("GET", "/v1/status", ""),
                    };
                }
            });
        }
        let times = times(socket, count, "/v1/status");
        over.store(true, Ordering::Relaxed);
        times
    })
}

/// Waits until so many iterations ended, for as long as a slow machine may need.
pub fn ended(scene: &Scene, iterations: i64) {
    let sql = "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL";
    let mut ask = || (scene.number(sql) >= iterations).then_some(());
    wait::until_within(20 * wait::DEADLINE, "iterations to end", &mut ask, || scene.told());
}

/// A figure of a process's memory, in MiB.
pub fn memory_mib(pid: i32, kib: fn(Usage) -> u64) -> f64 {
    kib(usage(pid).expect("a process")) as f64 / 1024.0
}

/// The CPU time that a process has taken.
pub fn cpu(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let rest = stat.rsplit(')').next().unwrap_or_default();
    // utime and stime, in ticks of 10 ms, as every Linux has them.
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
