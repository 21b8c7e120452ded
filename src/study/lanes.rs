//! Work for a few daemons at a time: seeds are prepared, then their arms run.
//!
//! In: seeds, and what preparing and running mean. Out: everything done, or the first error. May not
//! enter: what the work is.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

/// Steps that are known, and how many are under way.
struct Board<T> {
    waiting: VecDeque<T>,
    running: usize,
    failed: Option<anyhow::Error>,
}

/// Does `first` and all that follows from it, `lanes` steps at a time. What a step gives comes before
/// what waits already, so that a seed is finished before another one is begun.
///
/// Errors: the first of any step; steps under way end, and no others begin.
pub fn run<T: Send>(
    lanes: usize,
    first: Vec<T>,
    step: impl Fn(T) -> Result<Vec<T>> + Sync,
) -> Result<()> {
    let board = Mutex::new(Board { waiting: first.into(), running: 0, failed: None });
    let changed = Condvar::new();
    let lane = || {
        let mut now = board.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if now.failed.is_some() || now.waiting.is_empty() && now.running == 0 {
                changed.notify_all();
                return;
            }
            let Some(work) = now.waiting.pop_front() else {
                now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            now.running += 1;
            drop(now);
            let done = step(work);
            now = board.lock().unwrap_or_else(PoisonError::into_inner);
            now.running -= 1;
            match done {
                Ok(more) => more.into_iter().rev().for_each(|work| now.waiting.push_front(work)),
                Err(error) => now.failed = now.failed.take().or(Some(error)),
            }
            changed.notify_all();
        }
    };
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(lane);
        }
    });
    let board = board.into_inner().unwrap_or_else(PoisonError::into_inner);
    board.failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::anyhow;

    use super::*;

    #[test]
    fn everything_that_follows_is_done_once() {
        let sum = AtomicUsize::new(0);
        run(3, vec![3_usize, 2, 1], |depth| {
            sum.fetch_add(1, Ordering::Relaxed);
            Ok(vec![depth.saturating_sub(1); depth])
        })
        .unwrap();
        // A step of depth d stands for 1 + d × (steps of d − 1): 1, 2, 5, 16.
        assert_eq!(sum.into_inner(), 16 + 5 + 2);
    }

    #[test]
    fn the_first_error_ends_it() {
        let begun = AtomicUsize::new(0);
        let result = run(1, vec![1, 2, 3], |work| {
            begun.fetch_add(1, Ordering::Relaxed);
            if work == 2 { Err(anyhow!("two")) } else { Ok(Vec::new()) }
        });
        assert_eq!(result.unwrap_err().to_string(), "two");
        assert_eq!(begun.into_inner(), 2);
    }
}
