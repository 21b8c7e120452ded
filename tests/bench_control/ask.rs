//! How long questions take: one connection that stays, as a monitor has it, beside others that load.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rlhfd_tests::scene::Scene;
use rlhfd_tests::{http, wait};

/// A connection on which one question follows the other.
pub struct Line {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Line {
    pub fn open(socket: &Path) -> Self {
        let writer = http::open(socket).expect("the daemon's socket");
        let reader = BufReader::new(writer.try_clone().expect("a descriptor"));
        Self { writer, reader }
    }

    /// Until the last byte of the answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> (Duration, Vec<u8>) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let asked = Instant::now();
        self.writer.write_all(request.as_bytes()).expect("the daemon listens");
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        assert!(line.contains(" 200 "), "{method} {path}: {line}");
        let mut length = 0;
        while line.trim() != "" {
            line.clear();
            self.reader.read_line(&mut line).expect("a head");
            let lower = line.to_ascii_lowercase();
            if let Some(bytes) = lower.strip_prefix("content-length:") {
                length = bytes.trim().parse().expect("a length");
            }
        }
        let mut answer = vec![0; length];
        self.reader.read_exact(&mut answer).expect("a body");
        (asked.elapsed(), answer)
    }
}

/// `count` times the same question.
pub fn times(socket: &Path, count: usize, path: &str) -> Vec<Duration> {
    let mut line = Line::open(socket);
    line.ask("GET", path, "");
    (0..count)
        .map(|_| {
            thread::sleep(Duration::from_millis(1));
            line.ask("GET", path, "").0
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
                        0 => line.ask("POST", "/v1/sql", SQL),
                        1 => line.ask("GET", "/v1/iterations", ""),
                        2 => line.ask("GET", "/v1/checkpoints", ""),
                        _ => line.ask("GET", "/v1/status", ""),
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

/// Of a process: a line of its status, in MiB.
pub fn memory_mib(pid: i32, key: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with(key)).expect("its memory");
    let kib = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    kib.expect("a number of KiB") / 1024.0
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
