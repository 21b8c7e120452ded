//! What is broken, and when: drawn from a seed and the number of a round.
//!
//! Comes in: seed and round. Goes out: [`Fault`]s in the order of their moments. May not enter: processes.

use rlhfd_tests::random::Stream;

/// One stream of numbers a seed and round.
pub struct Random(Stream);

impl Random {
    /// Of a round, which does not hang on the rounds before it.
    pub fn of(seed: u64, round: u64) -> Self {
        Self(Stream::of(seed, round))
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    /// All of `things`, in an order of chance.
    fn shuffled<T: Copy>(&mut self, things: &[T]) -> Vec<T> {
        let mut left = things.to_vec();
        let mut out = Vec::new();
        while !left.is_empty() {
            out.push(left.swap_remove(self.below(left.len() as u64) as usize));
        }
        out
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
    /// The disk takes no byte more, for a while.
    FullDisk,
    /// A few writes fail, or for a while nothing at all can be written.
    FailingWrite,
    /// A few syncs fail.
    FailingSync,
    /// A byte of a file is another one, and who had it in memory dies.
    Corrupt,
    /// The clock of the day goes forth or back.
    ClockJump,
    /// Everything dies, and what was renamed and not made durable was never renamed.
    PowerCut,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::KillDaemon,
        Self::KillWorker,
        Self::Terminate,
        Self::FreezeDaemon,
        Self::FreezeWorker,
        Self::LoseGpu,
        Self::FullDisk,
        Self::FailingWrite,
        Self::FailingSync,
        Self::Corrupt,
        Self::ClockJump,
        Self::PowerCut,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::KillDaemon => "kill_daemon",
            Self::KillWorker => "kill_worker",
            Self::Terminate => "terminate",
            Self::FreezeDaemon => "freeze_daemon",
            Self::FreezeWorker => "freeze_worker",
            Self::LoseGpu => "lose_gpu",
            Self::FullDisk => "full_disk",
            Self::FailingWrite => "failing_write",
            Self::FailingSync => "failing_sync",
            Self::Corrupt => "corrupt",
            Self::ClockJump => "clock_jump",
            Self::PowerCut => "power_cut",
        }
    }

    /// Whether it needs a worker, which a daemon that starts does not have.
    fn needs_worker(self) -> bool {
        matches!(self, Self::KillWorker | Self::FreezeWorker)
    }
}

/// The stages whose work is disturbed, in flow order.
pub const STAGES: [&str; 5] = ["generate", "label", "train", "checkpoint", "evaluate"];
/// Places of [`STAGES`].
pub const TRAIN: usize = 2;
pub const CHECKPOINT: usize = 3;
/// Iterations of a round.
pub const ITERATIONS: u64 = 3;
/// Parts of a stage's work: instants are drawn to a thousandth.
pub const PARTS: u64 = 1000;

/// Where in the work a fault falls: after this part of a stage's work, as long as it lasts undisturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub iteration: u64,
    /// Index into [`STAGES`].
    pub stage: usize,
    /// Thousandths of the stage's work.
    pub part: u64,
}

/// One thing that is broken.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub moment: Moment,
    pub kind: Kind,
    /// The daemon is killed first, and the fault falls into its start, after so many thousandths of it.
    pub in_start: Option<u64>,
    /// How long what lasts a while does, in milliseconds.
    pub lasts_ms: u64,
    /// Which of several like things is broken.
    pub which: u64,
}

/// The faults of a round, in the order of their moments: the kinds, and the places, in turns of chance, so
/// that none is short.
pub fn of_round(seed: u64, round: u64, count: u64) -> Vec<Fault> {
    let mut random = Random::of(seed, round);
    let (mut kinds, mut places) = (Vec::new(), Vec::new());
    let mut faults: Vec<Fault> = (0..count)
        .map(|_| {
            if kinds.is_empty() {
                kinds = random.shuffled(&Kind::ALL);
            }
            if places.is_empty() {
                places = random.shuffled(&[Some(0), Some(1), Some(2), Some(3), Some(4), None]);
            }
            let kind = kinds.pop().expect("a kind");
            one(&mut random, kind, places.pop().expect("a place"))
        })
        .collect();
    faults.sort_by_key(|fault| fault.moment);
    faults
}

/// `stage`: none is the daemon's start.
fn one(random: &mut Random, kind: Kind, stage: Option<usize>) -> Fault {
    let start = stage.is_none() && !kind.needs_worker();
    let chance = random.below(STAGES.len() as u64) as usize;
    let stage = stage.unwrap_or(chance);
    // Only a training has files that are read again.
    let stage = if kind == Kind::Corrupt { TRAIN + chance % 2 } else { stage };
    let moment =
        Moment { iteration: 1 + random.below(ITERATIONS), stage, part: random.below(PARTS) };
    let in_start = random.below(PARTS);
    Fault {
        moment,
        kind,
        in_start: start.then_some(in_start),
        lasts_ms: 50 + random.below(400),
        which: random.below(1 << 32),
    }
}
