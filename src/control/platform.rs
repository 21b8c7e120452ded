//! What the daemon asks of the process it is: panics on core threads, file size limits, logs.
//!
//! In: nothing but the environment. Out: hooks that stand for the life of the process. May not
//! enter: actors.

use std::cell::Cell;
use std::io::IsTerminal;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// SIGXFSZ's number on Linux: a file grew past RLIMIT_FSIZE.
const SIGXFSZ: i32 = 25;

/// Threads that wait for disks at once; more work waits for one of them. Reads are at most
/// `handles::READERS_MAX` of it.
const BLOCKING_THREADS_MAX: usize = 24;

thread_local! {
    static CORE: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one whose panic ends the daemon. The thread of the actors and that of the
/// store are such; a connection of the listener and the blocking pool are not.
pub fn mark_core_thread() {
    CORE.with(|core| core.set(true));
}

/// A panic on a core thread is logged and aborts: all state is in the database, and a fresh process
/// is more to be trusted than one with a dead actor in it. Elsewhere the panic unwinds and is logged.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let core = CORE.try_with(Cell::get).unwrap_or(false);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let said = panic.payload_as_str().unwrap_or("no message");
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread = name, at, core, "panic: {said}");
        if core {
            std::process::abort();
        }
    }));
}

/// The runtime of the main thread, whose pool for what blocks has a ceiling: reads of the database, looks
/// at folders.
///
/// Errors: the system's.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
}

/// Turns SIGXFSZ, which kills by default, into the write error that the store understands. A handler
/// is used and not SIG_IGN, because the workers would inherit the latter. Keep what is returned.
///
/// Errors: the runtime's, where it cannot take signals.
pub fn survive_file_size_limit() -> std::io::Result<Signal> {
    signal(SignalKind::from_raw(SIGXFSZ))
}

/// Keeps the allocator from keeping what it does not need: by its habits, one large answer to `sql` makes
/// it hold all later ones on its heaps, and each thread has a heap of its own. Only glibc has these habits.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers are set, before any other thread is there. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people, or the journal.
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts the log on stderr; `RLHFD_LOG` filters it (default `info`).
pub fn start_log(format: LogFormat) {
    // The HTTP layer calls it an error of ours when a peer sends what is no HTTP: a peer could fill the log.
    let filter = EnvFilter::try_from_env("RLHFD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,actix_server=warn,actix_http=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Both fail only where a log stands already, as in tests.
    let _ = match format {
        LogFormat::Json => log.json().try_init(),
        LogFormat::Text => {
            // The journal stamps lines itself; a terminal likes colours.
            let journal = std::env::var_os("JOURNAL_STREAM").is_some();
            let log = log.with_ansi(std::io::stderr().is_terminal());
            if journal { log.without_time().try_init() } else { log.try_init() }
        }
    };
}
