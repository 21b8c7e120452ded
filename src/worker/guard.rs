//! The wall around a unit: a panic inside it becomes an error outside it.
//!
//! In: a computation. Out: its result, or what a panic said, with out of memory told apart. Every plain
//! call of tch panics where libtorch reports an error, so this is where such errors arrive. The
//! unwinding drops the unit's tensors. May not enter: retrying, frames.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::errors::{WorkerError, first_line, is_out_of_memory};

/// Runs `work`; a panic becomes `OutOfMemory` or `Torch`, with the first line of its message.
///
/// Errors: those, and whatever `work` itself gives.
pub fn guarded<T, E: From<WorkerError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    // Nothing is observed after an unwinding but through the caller, who drops the unit.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => Err(E::from(error_of(payload.as_ref()))),
    }
}

fn error_of(payload: &(dyn Any + Send)) -> WorkerError {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    let line = torch_message(text);
    if is_out_of_memory(text) { WorkerError::OutOfMemory(line) } else { WorkerError::Torch(line) }
}

/// Out of `called Result::unwrap() on an Err value: Torch("…\n…")` the words of libtorch, one line.
fn torch_message(text: &str) -> String {
    let inner = text.split_once("Torch(\"").map_or(text, |(_, rest)| rest);
    first_line(inner.split("\\n").next().unwrap_or(inner))
}

/// Makes a file that outgrows the process's limit a write error like a full disk's, not a death by
/// SIGXFSZ.
pub fn size_limits_are_errors() {
    unsafe extern "C" {
        fn signal(number: i32, action: usize) -> usize;
    }
    const SIGXFSZ: i32 = 25;
    const IGNORE: usize = 1;
    // SAFETY: `signal` is libc's own, and ignoring this signal installs no handler.
    unsafe { signal(SIGXFSZ, IGNORE) };
}

/// Makes panics tell their first line on stderr, not libtorch's dispatch table.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "{}", error_of(payload));
    }));
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn a_libtorch_error_comes_out_as_its_first_line() {
        let ones = |size| Tensor::ones([size, size], (Kind::Float, tch::Device::Cpu));
        let result: Result<Tensor, WorkerError> = guarded(|| Ok(ones(2).mm(&ones(3))));
        let Err(WorkerError::Torch(message)) = result else { panic!("no torch error") };
        assert!(message.contains("cannot be multiplied") && !message.contains('\n'), "{message}");
        assert!(message.len() < 200, "{message}");
    }

    #[test]
    fn an_allocation_that_cannot_be_is_out_of_memory() {
        let result: Result<Tensor, WorkerError> =
            guarded(|| Ok(Tensor::empty([1 << 50], (Kind::Float, tch::Device::Cpu))));
        assert!(matches!(result, Err(WorkerError::OutOfMemory(_))), "{result:?}");
    }

    #[test]
    fn an_error_that_is_no_panic_passes_through() {
        let result: Result<(), WorkerError> = guarded(|| Err(WorkerError::Cancelled));
        assert!(matches!(result, Err(WorkerError::Cancelled)));
    }
}
