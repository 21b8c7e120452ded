//! The clocks of a worker process: when its silence, or its standing still, has lasted too long.
//!
//! In: what was heard, and the time as a value. Out: a [`Verdict`]. Time in which the daemon itself
//! stood still is taken off every clock: it counts for nobody. Pure; the actor holds the timer. May
//! not enter: signals, rows.

use std::time::{Duration, Instant};

/// How long each thing may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between two looks, and between two heartbeats.
    pub heartbeat: Duration,
    /// Without any frame.
    pub silence: Duration,
    /// With heartbeats and without progress.
    pub progress: Duration,
    /// From the start to the hello, and from `load` to `loaded`.
    pub load: Duration,
}

/// What the clocks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is too late.
    Well,
    /// It has not answered its first frame in time, or not at all for too long: nobody's fault that
    /// we know of.
    Silent,
    /// It lives and computes nothing.
    Stalled,
}

/// What the worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Starting,
    Idle,
    Loading,
    Computing,
}

/// The clocks.
#[derive(Debug, Clone)]
pub struct Watch {
    limits: Limits,
    doing: Doing,
    looked: Instant,
    heard: Instant,
    progress: u64,
    moved: Instant,
}

impl Watch {
    /// From the spawn on.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, doing: Doing::Starting, looked: now, heard: now, progress: 0, moved: now }
    }

    /// Whether its first frame is still awaited.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.doing == Doing::Starting
    }

    /// Any frame came.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        if self.doing == Doing::Starting {
            self.become_(Doing::Idle, now);
        }
    }

    /// A heartbeat came with this counter.
    pub fn progressed(&mut self, counter: u64, now: Instant) {
        if counter != self.progress {
            self.progress = counter;
            self.moved = now;
        }
    }

    /// Models are to be loaded before anything else.
    pub fn loading(&mut self, now: Instant) {
        if self.doing != Doing::Starting {
            self.become_(Doing::Loading, now);
        }
    }

    /// They are loaded: `computes` says whether a unit waits for that.
    pub fn loaded(&mut self, computes: bool, now: Instant) {
        self.become_(if computes { Doing::Computing } else { Doing::Idle }, now);
    }

    /// A unit begins.
    pub fn begun(&mut self, now: Instant) {
        if self.doing != Doing::Starting {
            self.become_(Doing::Computing, now);
        }
    }

    /// Nothing is in hand any more.
    pub fn idle(&mut self, now: Instant) {
        self.become_(Doing::Idle, now);
    }

    /// The daemon waited for something of its own (a full disk) for so long and heard nothing
    /// meanwhile.
    pub fn forgive(&mut self, gap: Duration) {
        self.looked += gap;
        self.heard += gap;
        self.moved += gap;
    }

    /// A look at the clocks, each heartbeat.
    pub fn look(&mut self, now: Instant) -> Verdict {
        let since = now.saturating_duration_since(self.looked);
        let late = since.saturating_sub(self.limits.heartbeat);
        if late > self.limits.heartbeat.max(Duration::from_secs(1)) {
            // We were not there: whatever came meanwhile still lies in the socket.
            self.heard += late;
            self.moved += late;
        }
        self.looked = now;
        let silent = now.saturating_duration_since(self.heard);
        let still = now.saturating_duration_since(self.moved);
        match self.doing {
            Doing::Starting if silent > self.limits.load => Verdict::Silent,
            Doing::Starting => Verdict::Well,
            _ if silent > self.limits.silence => Verdict::Silent,
            Doing::Loading if still > self.limits.load => Verdict::Stalled,
            Doing::Computing if still > self.limits.progress => Verdict::Stalled,
            Doing::Idle | Doing::Loading | Doing::Computing => Verdict::Well,
        }
    }

    fn become_(&mut self, doing: Doing, now: Instant) {
        self.doing = doing;
        self.moved = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn watch(now: Instant) -> Watch {
        let limits = Limits { heartbeat: S, silence: 10 * S, progress: 30 * S, load: 60 * S };
        let mut watch = Watch::new(limits, now);
        watch.heard(now);
        watch
    }

    /// Looks each second until the first verdict, with heartbeats of a counter in between.
    fn first(
        watch: &mut Watch,
        from: Instant,
        beats: bool,
        counter: impl Fn(u32) -> u64,
    ) -> (u32, Verdict) {
        for second in 1..=1000 {
            let now = from + S * second;
            if beats {
                watch.heard(now);
                watch.progressed(counter(second), now);
            }
            let verdict = watch.look(now);
            if verdict != Verdict::Well {
                return (second, verdict);
            }
        }
        (1000, Verdict::Well)
    }

    #[test]
    fn silence_is_nobodys_fault_and_standing_still_is_the_workers() {
        let now = Instant::now();
        let mut one = watch(now);
        one.begun(now);
        assert_eq!(first(&mut one.clone(), now, false, |_| 0), (11, Verdict::Silent));
        assert_eq!(first(&mut one.clone(), now, true, |_| 7), (32, Verdict::Stalled));
        assert_eq!(first(&mut one, now, true, u64::from), (1000, Verdict::Well));
    }

    #[test]
    fn loading_and_idling_have_other_deadlines() {
        let now = Instant::now();
        let mut loading = watch(now);
        loading.loading(now);
        assert_eq!(first(&mut loading, now, true, |_| 0), (61, Verdict::Stalled));
        assert_eq!(first(&mut watch(now), now, true, |_| 0), (1000, Verdict::Well));
    }

    #[test]
    fn a_worker_that_never_answers_is_given_the_time_to_load() {
        let now = Instant::now();
        let limits = Limits { heartbeat: S, silence: 10 * S, progress: 30 * S, load: 60 * S };
        let mut starting = Watch::new(limits, now);
        assert_eq!(first(&mut starting, now, false, |_| 0), (61, Verdict::Silent));
    }

    #[test]
    fn the_daemons_own_standstill_counts_for_nobody() {
        let now = Instant::now();
        let mut one = watch(now);
        one.begun(now);
        assert_eq!(one.look(now + S), Verdict::Well);
        // An hour later, a SIGCONT after a SIGSTOP.
        let later = now + S * 3600;
        assert_eq!(one.look(later), Verdict::Well);
        assert_eq!(first(&mut one, later, false, |_| 0).1, Verdict::Silent);
    }
}
