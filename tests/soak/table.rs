//! The soak's figures as a table, and what is flat.
//!
//! Comes in: a row an iteration. Goes out: lines, and what grows. The rule: a straight line is laid through
//! the rows of the second half (until then caches fill); what it rises over all of them must stay below an
//! allowance for what allocators and sampling scatter.

use rlhfd_tests::measure::{Usage, slope};

/// Lines of the table, at most.
const LINES: u64 = 20;
/// So few rows say nothing about growth.
const ROWS_MIN: usize = 20;
/// What a figure may rise over the second half, and what share of it. A burst may open a reader of the
/// database, which has some files.
const MEMORY_KIB: f64 = 1024.0;
const MEMORY_SHARE: f64 = 0.03;
const FILES: f64 = 4.0;

/// What there is at the end of an iteration.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub iteration: u64,
    pub daemon: Usage,
    /// Bytes of the daemon's heap that are in use; 0 where nobody looks.
    pub in_use: f64,
    /// All workers together.
    pub workers: Usage,
    pub database_kib: u64,
    pub units: u64,
}

/// Prints the table and the verdict; gives what grows.
pub fn tell(rows: &[Row]) -> Vec<String> {
    println!(
        "{:>9} {:>7} | {:>10} {:>10} {:>10} {:>5} {:>7} | {:>10} {:>10} {:>5} {:>7} | {:>9}",
        "iteration",
        "units",
        "daemon KiB",
        "own KiB",
        "heap KiB",
        "files",
        "threads",
        "worker KiB",
        "own KiB",
        "files",
        "threads",
        "db KiB"
    );
    let last = rows.last().map_or(0, |row| row.iteration);
    let every = (last / LINES).max(1);
    for row in rows.iter().filter(|row| row.iteration % every == 0 || row.iteration == last) {
        let (daemon, workers) = (&row.daemon, &row.workers);
        println!(
            "{:>9} {:>7} | {:>10} {:>10} {:>10.0} {:>5} {:>7} | {:>10} {:>10} {:>5} {:>7} | {:>9}",
            row.iteration,
            row.units,
            daemon.resident_kib,
            daemon.own_kib,
            row.in_use / 1024.0,
            daemon.open_files,
            daemon.threads,
            workers.resident_kib,
            workers.own_kib,
            workers.open_files,
            workers.threads,
            row.database_kib
        );
    }
    if rows.len() < ROWS_MIN {
        println!("too few iterations to say whether anything grows");
        return Vec::new();
    }
    verdict(&rows[rows.len() / 2..])
}

/// A figure of a row, and what it may rise.
type Figure = (fn(&Row) -> f64, f64);

fn verdict(rows: &[Row]) -> Vec<String> {
    let memory = |value: fn(&Row) -> f64| {
        let start = rows.first().map_or(0.0, value);
        (value, MEMORY_KIB.max(start * MEMORY_SHARE))
    };
    let files = |value: fn(&Row) -> f64| (value, FILES);
    let figures: [(&str, Figure); 6] = [
        ("the daemon's memory, KiB", memory(|row| row.daemon.resident_kib as f64)),
        ("the daemon's heap in use, KiB", memory(|row| row.in_use / 1024.0)),
        ("the daemon's open files", files(|row| row.daemon.open_files as f64)),
        ("the daemon's threads", files(|row| row.daemon.threads as f64)),
        ("the workers' memory, KiB", memory(|row| row.workers.resident_kib as f64)),
        ("the workers' open files", files(|row| row.workers.open_files as f64)),
    ];
    let mut growing = Vec::new();
    for (name, (value, allowed)) in figures {
        let rise = rise(rows, value);
        let flat = rise <= allowed;
        let word = if flat { "flat" } else { "GROWS" };
        println!("{name}: {rise:+.1} over {} iterations, {allowed:.1} allowed: {word}", rows.len());
        if !flat {
            growing.push(format!("{name} {rise:+.1}"));
        }
    }
    growing
}

/// What the line through all rows rises from the first to the last.
fn rise(rows: &[Row], value: fn(&Row) -> f64) -> f64 {
    let points: Vec<(f64, f64)> =
        rows.iter().map(|row| (row.iteration as f64, value(row))).collect();
    let length = points.last().map_or(0.0, |(x, _)| *x) - points.first().map_or(0.0, |(x, _)| *x);
    slope(&points) * length
}

#[test]
fn what_grows_a_little_each_iteration_is_found_and_what_scatters_is_not() {
    let rows = |growth: u64| -> Vec<Row> {
        let row = |iteration| {
            let scatter = iteration * 7919 % 500;
            let daemon = Usage {
                resident_kib: 30_000 + scatter + growth * iteration,
                own_kib: 20_000,
                open_files: 40 + iteration % 3,
                threads: 10,
                ..Usage::default()
            };
            let zero = Usage::default();
            Row { iteration, daemon, in_use: 0.0, workers: zero, database_kib: 0, units: 0 }
        };
        (1..=200).map(row).collect()
    };
    assert_eq!(tell(&rows(0)), Vec::<String>::new());
    assert_eq!(tell(&rows(15)).len(), 1);
}
