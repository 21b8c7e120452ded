//! The process itself, before any work: how its threads wait and how its memory is kept.
//!
//! In: the environment. Out: a process whose OpenMP threads sleep after a while when they have nothing to
//! do, and which keeps freed memory for the next step. May not enter: models, devices.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// How often an idle thread of libgomp looks for work before it sleeps: about a millisecond.
///
/// A step is hundreds of short products, and a thread that sleeps between them is woken too late: on two
/// idle cores a training took 29.6 s with 1,000, 24.4 s with 20,000 and 23.7 s with 300,000 (libgomp's own
/// count). That one is milliseconds of spinning at each barrier: where another process wants the same
/// core, the spinning thread keeps the one that it waits for from running.
pub const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "20000");

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

/// Keeps freed memory in the process, blocks of any size.
///
/// By default a large one is a mapping of its own, given back at once and taken page by page in the next
/// step: a tenth of a training's time. [`give_back_freed_memory`] gives back what no step takes again.
pub fn keep_freed_memory() {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    const M_TRIM_THRESHOLD: i32 = -1;
    const M_MMAP_MAX: i32 = -4;
    // SAFETY: glibc's own function, called before any other thread is started; a parameter that it
    // does not take is refused by its return value, which changes nothing here.
    unsafe {
        mallopt(M_MMAP_MAX, 0);
        mallopt(M_TRIM_THRESHOLD, -1);
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
