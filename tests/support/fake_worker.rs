//! A worker that speaks the protocol without libtorch: a real process for the tests of the daemon.
//!
//! Comes in: frames at descriptor 3, and a plan of faults named by `FAKE_WORKER_PLAN`. Goes out:
//! answers that depend on the same keys as the real worker's, so that a run with crashes can be
//! held against one without. May not enter: tensors, clocks in any answer.

fn main() -> std::process::ExitCode {
    match rlhfd_tests::fake::serve() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fake-worker: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
