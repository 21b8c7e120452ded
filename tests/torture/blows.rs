//! How each kind of fault is made.
//!
//! Comes in: a daemon in the middle of its work, and a fault. Goes out: whether it fell: what is not
//! written cannot fail to be. May not enter: when.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rlhfd_tests::disk_faults::{EIO, EROFS};
use rlhfd_tests::scene::{Daemon, alive};
use rustix::process::Signal;

use crate::faults::{CHECKPOINT, Fault, Kind};
use crate::life::{Life, is_orderly};

/// How long a write or sync that is to fail is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a file that is read again is waited for: a training may have to begin anew first.
const PATIENCE_FOR_FILES: Duration = Duration::from_secs(20);
/// How far the clock of the day jumps at most, to either side: a day.
const JUMP_MS: u64 = 24 * 3600 * 1000;

/// Breaks something. False: there was nothing to be broken.
///
/// Errors: what follows from it is wrong already.
pub fn hit(life: &mut Life, fault: &Fault) -> Result<bool, String> {
    let lasts = Duration::from_millis(fault.lasts_ms);
    match fault.kind {
        Kind::KillDaemon => Ok(life.end(Daemon::kill).is_some()),
        Kind::Terminate => terminate(life),
        Kind::FreezeDaemon => {
            let daemon = life.daemon.as_ref().map(Daemon::pid);
            Ok(frozen(daemon, lasts))
        }
        Kind::KillWorker => Ok(signal_if_alive(a_worker(life, fault), Signal::KILL)),
        Kind::FreezeWorker => Ok(frozen(a_worker(life, fault), lasts)),
        Kind::LoseGpu => {
            let key = format!("gpu.{}.err", fault.which % 2);
            // 15: NVML_ERROR_GPU_IS_LOST.
            life.tools.gpus.set(&key, "15");
            std::thread::sleep(lasts);
            life.tools.gpus.unset(&key);
            Ok(true)
        }
        Kind::FullDisk => {
            life.tools.room.fill(&mut life.tools.disk);
            let lived = live_on(life, Instant::now() + lasts, |_| false);
            life.tools.room.empty(&mut life.tools.disk);
            lived.map(|()| true)
        }
        Kind::FailingWrite => failing_write(life, fault),
        Kind::FailingSync => fails(life, "sync", EIO, few(fault)),
        Kind::Corrupt => corrupt(life, fault),
        Kind::ClockJump => {
            let jump = (fault.which % (2 * JUMP_MS)).cast_signed() - JUMP_MS.cast_signed();
            life.tools.disk.clock(jump);
            Ok(true)
        }
        Kind::PowerCut => {
            life.end(Daemon::kill);
            let folder = life.scene.state().join("runs");
            let undone = life.tools.disk.cut_power(&folder);
            undone.map(|_| true).map_err(|error| format!("a rename cannot be undone: {error}"))
        }
    }
}

fn few(fault: &Fault) -> u32 {
    1 + u32::try_from(fault.which % 3).unwrap_or(0)
}

fn terminate(life: &mut Life) -> Result<bool, String> {
    match life.end(Daemon::terminate) {
        None => Ok(false),
        Some(status) if is_orderly(status) => Ok(true),
        Some(status) => Err(format!("SIGTERM gave {status}")),
    }
}

fn a_worker(life: &Life, fault: &Fault) -> Option<i32> {
    let workers = life.daemon.as_ref().map(Daemon::workers).unwrap_or_default();
    let which = usize::try_from(fault.which).unwrap_or(0);
    workers.get(which % workers.len().max(1)).copied()
}

/// A worker may end by itself between the look and the signal.
fn signal_if_alive(pid: Option<i32>, what: Signal) -> bool {
    let Some(pid) = pid.filter(|pid| alive(*pid)) else { return false };
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, what).is_ok()
}

fn signal_all(pids: &[i32], what: Signal) {
    for pid in pids {
        signal_if_alive(Some(*pid), what);
    }
}

fn frozen(pid: Option<i32>, lasts: Duration) -> bool {
    let stopped = signal_if_alive(pid, Signal::STOP);
    std::thread::sleep(lasts);
    signal_if_alive(pid, Signal::CONT);
    stopped
}

/// A disk that fails now and then, or one that the kernel has made read-only.
fn failing_write(life: &mut Life, fault: &Fault) -> Result<bool, String> {
    if fault.which.is_multiple_of(2) {
        return fails(life, "write", EIO, few(fault));
    }
    life.tools.disk.fail("write+create+rename", EROFS, 0, "");
    let lived = live_on(life, Instant::now() + Duration::from_millis(fault.lasts_ms), |_| false);
    life.tools.disk.mend();
    lived.map(|()| life.tools.disk.hits() > 0)
}

/// So many calls fail, if they come in time.
fn fails(life: &mut Life, kinds: &str, errno: i32, times: u32) -> Result<bool, String> {
    life.tools.disk.fail(kinds, errno, times, "");
    let hits = life.tools.disk.watched();
    let lived = live_on(life, Instant::now() + PATIENCE, |_| hits.count() >= u64::from(times));
    life.tools.disk.mend();
    lived.map(|()| life.tools.disk.hits() > 0)
}

/// Lets the daemon live on, or start again, until then.
fn live_on(life: &mut Life, until: Instant, enough: impl Fn(&Life) -> bool) -> Result<(), String> {
    while Instant::now() < until && !enough(life) {
        life.revive()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits until there is something to be broken: what is only read once is altered in vain.
///
/// Errors: the daemon ended for good meanwhile.
pub fn until_breakable(life: &mut Life, fault: &Fault) -> Result<(), String> {
    if fault.kind != Kind::Corrupt {
        return Ok(());
    }
    let (run, iteration) = (life.scene.state().join("runs/main"), fault.moment.iteration);
    let admitted = format!(
        "SELECT count(*) FROM checkpoints WHERE kind = 'policy' AND iteration >= {iteration}"
    );
    // A training's instants are its saved states, from the first to the last but one.
    let steps = 2 * (1 + fault.which % 4);
    let out = run.join(format!("checkpoints/iteration-{iteration:04}"));
    let enough = |life: &Life| {
        let saved = fault.moment.stage != CHECKPOINT && saved_steps(&run) >= steps;
        saved || out.is_dir() || life.ask(&admitted).is_some_and(|count| count > 0)
    };
    live_on(life, Instant::now() + PATIENCE_FOR_FILES, enough)
}

/// After how many steps the newest state of a training was saved.
fn saved_steps(run: &Path) -> u64 {
    let states = names(&run.join("state")).into_iter().flat_map(|unit| names(&unit));
    let steps = states.filter_map(|path| {
        path.file_name()?.to_str()?.strip_prefix("step-").and_then(|steps| steps.parse().ok())
    });
    steps.max().unwrap_or(0)
}

/// A byte of a file that is read again changes while everybody stands still; who may have the file in
/// memory dies, so that it is read.
fn corrupt(life: &mut Life, fault: &Fault) -> Result<bool, String> {
    let run = life.scene.state().join("runs/main");
    let daemon = life.daemon.as_ref();
    let workers = daemon.map(Daemon::workers).unwrap_or_default();
    let all: Vec<i32> = daemon.map(Daemon::pid).into_iter().chain(workers.clone()).collect();
    signal_all(&all, Signal::STOP);
    let admitted = life.ask("SELECT count(*) FROM checkpoints WHERE kind = 'policy'");
    let new = admitted.and_then(|admitted| published(&run, admitted.unsigned_abs() as usize));
    if new.is_some() {
        // Who has read it already would admit it as it was.
        life.end(Daemon::kill);
    }
    let files = if new.is_some() { new.into_iter().collect() } else { read_again(&run) };
    let altered = match files.len() as u64 {
        0 => Ok(false),
        count => alter(&files[(fault.which % count) as usize], fault.which).map(|()| true),
    };
    if altered.as_ref().is_ok_and(|altered| *altered) {
        signal_all(&workers, Signal::KILL);
    }
    signal_all(&all, Signal::CONT);
    altered.map_err(|error| format!("a file cannot be altered: {error}"))
}

fn alter(path: &Path, which: u64) -> std::io::Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let at = which % file.metadata()?.len().max(1);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)
}

/// A file of the checkpoint that stands and is not admitted yet. Its manifest is left alone: nobody knows the
/// sum of that before the row.
fn published(run: &Path, admitted: usize) -> Option<PathBuf> {
    let mut standing = names(&run.join("checkpoints")).into_iter().filter(|path| !is_aside(path));
    let files = names(&standing.nth(admitted)?);
    files.into_iter().find(|path| path.ends_with("model.safetensors"))
}

/// The files of the newest state of each training, of training inputs, and of checkpoints in the making.
fn read_again(run: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for unit in names(&run.join("state")) {
        folders.extend(names(&unit).into_iter().rfind(|path| !is_aside(path)));
    }
    if folders.is_empty() {
        // Nothing is trained.
        return Vec::new();
    }
    folders.extend(names(&run.join("iterations")).into_iter().next_back());
    folders.extend(names(&run.join("checkpoints")).into_iter().filter(|path| is_aside(path)));
    let files = folders.iter().flat_map(|folder| names(folder));
    files
        .filter(|path| fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.len() > 0))
        .collect()
}

fn is_aside(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// What lies in a folder, in the order of names.
fn names(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
