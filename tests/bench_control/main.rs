//! `make bench-control`: how fast the control plane is, with the fake worker, into
//! `target/bench-control.json`.
//!
//! Comes in: which parts to measure (`ingest`, `large`, `overhead`; by default all), and with `--small` a
//! large database of a fiftieth of the size. Goes out: a table, and 1 where a limit is not held. What it
//! writes lies in the system's temporary folder (TMPDIR; some 12 GB) and goes at its end. May not enter:
//! libtorch.

mod ask;
mod ingest;
mod large;
mod overhead;
mod report;

use std::process::ExitCode;

use rlhfd_tests::binaries::root;

use crate::report::Report;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let small = words.iter().any(|word| word == "--small");
    let parts: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let mut report = Report::default();
    if wanted("overhead") {
        overhead::run(&mut report);
    }
    if wanted("ingest") {
        ingest::run(&mut report);
    }
    if wanted("large") {
        large::run(&mut report, if small { 50 } else { 1 });
    }
    let holds = report.end(&root().join("target/bench-control.json"));
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
