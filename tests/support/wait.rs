//! Waiting for a fact under a deadline: a test never sleeps and hopes.

use std::time::{Duration, Instant};

/// How long any single fact may take on a loaded machine with two cores.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks again and again until the answer is there. At the deadline the test fails with what was
/// waited for and what `or_say` tells.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>, or_say: impl Fn() -> String) -> T {
    until_within(DEADLINE, what, &mut ask, or_say)
}

/// As [`until`], with a deadline of its own.
pub fn until_within<T>(
    deadline: Duration,
    what: &str,
    ask: &mut impl FnMut() -> Option<T>,
    or_say: impl Fn() -> String,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            started.elapsed() < deadline,
            "after {} s still waiting: {what}\n{}",
            deadline.as_secs(),
            or_say()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
