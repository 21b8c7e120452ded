//! Reads a dead worker: exit code, signal, or the kernel's out-of-memory killer.
//!
//! In: an exit status and two readings of the kernel's `oom_kill` counter. Out: a [`Death`].
//! May not enter: what follows from it (`rlhfd_domain::unit` decides that).

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use rlhfd_domain::Cause;

/// SIGKILL's number on Linux.
const SIGKILL: i32 = 9;
/// Signals that a process brings on itself: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const OWN_SIGNALS: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];

/// How a worker process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It left by itself: 0 after `drain`, else its own error.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// SIGKILL, and the out-of-memory killer's counter rose meanwhile.
    OutOfMemory,
    /// Its status could not be had.
    Unknown,
}

impl Death {
    /// Reads an exit status. `killed_before` and `killed_after` are the counter's readings at the
    /// spawn and at the death.
    #[must_use]
    pub fn read(status: Option<ExitStatus>, killed_before: u64, killed_after: u64) -> Self {
        let Some(status) = status else { return Self::Unknown };
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exit(code),
            (None, Some(SIGKILL)) if killed_after > killed_before => Self::OutOfMemory,
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl Death {
    /// The word that the unit's rules know for it.
    #[must_use]
    pub fn cause(self) -> Cause {
        match self {
            Self::Exit(_) => Cause::Exit,
            Self::Signal(signal) if OWN_SIGNALS.contains(&signal) => Cause::Signal,
            Self::Signal(_) => Cause::Killed,
            Self::OutOfMemory => Cause::OutOfMemory,
            Self::Unknown => Cause::Silent,
        }
    }
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("killed for want of memory"),
            Self::Unknown => f.write_str("an end without a status"),
        }
    }
}

/// The place of the `oom_kill` counter that covers a process.
#[derive(Debug, Clone)]
pub struct OomCounter(Vec<PathBuf>);

impl OomCounter {
    /// Of the process `pid`: its control group's, else the whole machine's.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mut places: Vec<PathBuf> =
            counters_in(&groups).into_iter().filter(|place| place.exists()).collect();
        places.push(PathBuf::from("/proc/vmstat"));
        Self(places)
    }

    /// How often the kernel killed for want of memory there; 0 where nothing says so.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0
            .iter()
            .find_map(|place| fs::read_to_string(place).ok().and_then(|text| oom_kill(&text)))
            .unwrap_or(0)
    }
}

/// The counter files that /proc/PID/cgroup names, for both generations of control groups.
fn counters_in(groups: &str) -> Vec<PathBuf> {
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                Some(PathBuf::from("/sys/fs/cgroup").join(path).join("memory.events"))
            } else if controllers.split(',').any(|name| name == "memory") {
                Some(PathBuf::from("/sys/fs/cgroup/memory").join(path).join("memory.oom_control"))
            } else {
                None
            }
        })
        .collect()
}

/// The value of the line `oom_kill N`.
fn oom_kill(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_for_want_of_memory_only_if_the_counter_rose() {
        let killed = ExitStatus::from_raw(SIGKILL);
        assert_eq!(Death::read(Some(killed), 3, 4), Death::OutOfMemory);
        assert_eq!(Death::read(Some(killed), 4, 4), Death::Signal(9));
        let aborted = ExitStatus::from_raw(6);
        assert_eq!(Death::read(Some(aborted), 3, 4), Death::Signal(6));
        assert_eq!(Death::read(Some(ExitStatus::from_raw(1 << 8)), 0, 0), Death::Exit(1));
        assert_eq!(Death::read(None, 0, 0), Death::Unknown);
    }

    #[test]
    fn what_a_worker_does_to_itself_counts_and_a_kill_from_outside_does_not() {
        for death in [Death::Exit(1), Death::Signal(6), Death::Signal(11), Death::OutOfMemory] {
            assert!(death.cause().is_counted(), "{death}");
        }
        for death in [Death::Signal(9), Death::Signal(15), Death::Unknown] {
            assert!(!death.cause().is_counted(), "{death}");
        }
    }

    #[test]
    fn the_counter_is_found_in_both_generations_of_control_groups() {
        let second = counters_in("0::/system.slice/rlhfd.service\n");
        assert_eq!(
            second,
            [PathBuf::from("/sys/fs/cgroup/system.slice/rlhfd.service/memory.events")]
        );
        let first = counters_in("5:cpu:/x\n4:memory:/a/b\n");
        assert_eq!(first, [PathBuf::from("/sys/fs/cgroup/memory/a/b/memory.oom_control")]);
    }

    #[test]
    fn the_line_is_read_and_not_its_neighbours() {
        assert_eq!(oom_kill("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(oom_kill("pgfault 3\n"), None);
    }

    #[test]
    fn this_very_machine_answers() {
        let counter = OomCounter::of(std::process::id());
        assert!(counter.read() < u64::MAX);
    }
}
