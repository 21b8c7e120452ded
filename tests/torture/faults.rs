//! What is broken, and when: drawn from a seed.
//!
//! Comes in: a [`Random`]. Goes out: a [`Fault`]. May not enter: processes.

use rlhfd_tests::random::drawn;

/// One stream of numbers a seed.
pub struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        let number = drawn(self.seed, self.drawn, n);
        self.drawn += 1;
        number
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9`, and a new start.
    KillDaemon,
    /// `kill -9` of a worker.
    KillWorker,
    /// SIGTERM, the orderly end, and a new start.
    Terminate,
    /// SIGSTOP, and SIGCONT a while later.
    FreezeDaemon,
    /// The same of a worker.
    FreezeWorker,
    /// A GPU is lost, and comes back a while later.
    LoseGpu,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::KillDaemon,
        Self::KillWorker,
        Self::Terminate,
        Self::FreezeDaemon,
        Self::FreezeWorker,
        Self::LoseGpu,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::KillDaemon => "kill_daemon",
            Self::KillWorker => "kill_worker",
            Self::Terminate => "terminate",
            Self::FreezeDaemon => "freeze_daemon",
            Self::FreezeWorker => "freeze_worker",
            Self::LoseGpu => "lose_gpu",
        }
    }
}

/// The stages whose work is disturbed, in flow order.
pub const STAGES: [&str; 5] = ["generate", "label", "train", "checkpoint", "evaluate"];
/// Iterations of a round.
pub const ITERATIONS: u64 = 3;

/// Where in the work a fault falls: from this iteration's and stage's attempt on, so many milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub iteration: u64,
    /// Index into [`STAGES`].
    pub stage: usize,
    /// The stage's so-manieth attempt, from 1; the stage's end where it has fewer.
    pub attempt: u64,
    pub ms: u64,
}

/// One thing that is broken.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub moment: Moment,
    pub kind: Kind,
    /// Whether the daemon is killed first, and the fault falls into its start.
    pub at_start: bool,
    /// How long what lasts a while does, in milliseconds.
    pub lasts_ms: u64,
}

impl Fault {
    pub fn drawn(random: &mut Random) -> Self {
        // One in six falls into a start, as into each stage.
        let at_start = random.below(6) == 0;
        let moment = Moment {
            iteration: 1 + random.below(ITERATIONS),
            stage: random.below(STAGES.len() as u64) as usize,
            attempt: 1 + random.below(3),
            ms: random.below(40),
        };
        let kind = Kind::ALL[random.below(Kind::ALL.len() as u64) as usize];
        Self { moment, kind, at_start, lasts_ms: 50 + random.below(400) }
    }
}
