//! The process itself, before any work: how its threads wait and how its memory is kept.
//!
//! In: the environment. Out: a process whose OpenMP threads sleep soon when they have nothing to do,
//! and which keeps freed memory for the next step. May not enter: models, devices.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// How often an idle thread of libgomp looks for work before it sleeps: some microseconds.
///
/// The default is milliseconds of spinning at each barrier. Where another process wants the same
/// core, the spinning thread keeps the one that it waits for from running: with two threads on two
/// busy cores, a generation took 33 to 55 s by the default and 9 s with this.
pub const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "1000");

/// Executes this program again with the spin count set, where nobody has chosen one; libgomp reads
/// it before `main`. Who starts a worker with it set spares the second loading of libtorch.
pub fn with_patient_threads() {
    let chosen = [SPIN_COUNT.0, "OMP_WAIT_POLICY"];
    if chosen.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).env(SPIN_COUNT.0, SPIN_COUNT.1).exec();
    // Slower under load, but no reason to stop.
    tracing::warn!("this program cannot be executed again with {SPIN_COUNT:?}: {error}");
}

/// Keeps freed blocks of up to 32 MiB (glibc's own ceiling) in the process.
///
/// By default each is a mapping of its own, given back at once and taken page by page in the next
/// step, which costs 1.6 µs a page: 4 % of a generation's time.
pub fn keep_freed_memory() {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    const M_TRIM_THRESHOLD: i32 = -1;
    const M_MMAP_THRESHOLD: i32 = -3;
    // SAFETY: glibc's own function, called before any other thread is started; a parameter that it
    // does not take is refused by its return value, which changes nothing here.
    unsafe {
        mallopt(M_MMAP_THRESHOLD, 32 << 20);
        mallopt(M_TRIM_THRESHOLD, 1 << 30);
    }
}

/// Gives memory that is free now back to the system: after loading, when parts were joined.
pub fn give_back_freed_memory() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: glibc's own function; it may be called at any time.
    unsafe { malloc_trim(0) };
}
