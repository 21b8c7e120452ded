//! A stream of numbers that a seed determines.

use rlhfd_tests::random::drawn;

/// The numbers of one request: another request's do not depend on how many it takes.
pub struct Random {
    seed: u64,
    next: u64,
}

impl Random {
    pub fn new(seed: u64, request: u64) -> Self {
        Self { seed: drawn(seed, request, u64::MAX), next: 0 }
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from(drawn(self.seed, self.next, n)).unwrap_or(0)
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}
