//! What a power cut leaves, drawn from a seed.
//!
//! Comes in: a seed. Goes out: numbers, and what is kept of a file. May not enter: files.

use rlhfd_tests::random::Stream;

/// Bytes of a page, and of what a disk writes whole.
const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// One stream of numbers.
pub struct Chance {
    numbers: Stream,
    keeps_all: bool,
}

/// What is kept of what a file was given since its last sync.
pub enum Kept {
    Nothing,
    Everything,
    /// Some of its blocks of so many bytes.
    Blocks(usize),
}

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self { numbers: Stream::new(seed), keeps_all: false }
    }

    /// Nothing is ever lost.
    pub fn all() -> Self {
        Self { numbers: Stream::new(0), keeps_all: true }
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.numbers.below(n as u64)).expect("it is below n")
    }

    /// How many of a hundred changes of names are kept. None and all are as likely as anything between:
    /// what lies far apart in time is lost together as often as apart.
    pub fn share(&mut self) -> usize {
        [0, 20, 50, 80, 100][self.below(5)]
    }

    pub fn falls(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    pub fn of_a_file(&mut self) -> Kept {
        if self.keeps_all {
            return Kept::Everything;
        }
        match self.below(4) {
            0 => Kept::Nothing,
            1 => Kept::Everything,
            2 => Kept::Blocks(PAGE),
            _ => Kept::Blocks(SECTOR),
        }
    }
}
