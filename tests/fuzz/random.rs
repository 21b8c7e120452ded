//! A stream of numbers that a seed determines.

use rlhfd_tests::random::Stream;

/// The numbers of one request: another request's do not depend on how many it takes.
pub struct Random(Stream);

impl Random {
    pub fn new(seed: u64, request: u64) -> Self {
        Self(Stream::of(seed, request))
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.0.below(n)).unwrap_or(0)
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}
