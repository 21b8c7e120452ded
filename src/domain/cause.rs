//! Why attempts die, and which deaths count against a unit.
//!
//! In: what the supervisor saw. Out: `Cause`. May not enter: what follows from a death (`unit`).

/// What ended an attempt, in a word that SQL can group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The worker left with an error of its own.
    Exit,
    /// The worker's own fatal signal: abort, segmentation fault, illegal instruction.
    Signal,
    /// The host's or the device's memory ran out.
    OutOfMemory,
    /// A panic or a libtorch error, caught by the worker.
    Crashed,
    /// Heartbeats came while the progress counter stood still beyond the deadline.
    Stalled,
    /// The worker answered what the protocol does not know.
    Protocol,
    /// A signal from outside.
    Killed,
    /// Neither heartbeat nor progress: nobody knows why.
    Silent,
    /// The daemon itself was started anew.
    Restart,
    /// The daemon itself stood still.
    DaemonStalled,
    /// The device went away.
    DeviceLost,
}

impl Cause {
    /// All causes: first those that the worker gave itself.
    pub const ALL: [Self; 11] = [
        Self::Exit,
        Self::Signal,
        Self::OutOfMemory,
        Self::Crashed,
        Self::Stalled,
        Self::Protocol,
        Self::Killed,
        Self::Silent,
        Self::Restart,
        Self::DaemonStalled,
        Self::DeviceLost,
    ];

    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::OutOfMemory => "out_of_memory",
            Self::Crashed => "crashed",
            Self::Stalled => "stalled",
            Self::Protocol => "protocol",
            Self::Killed => "killed",
            Self::Silent => "silent",
            Self::Restart => "restart",
            Self::DaemonStalled => "daemon_stalled",
            Self::DeviceLost => "device_lost",
        }
    }

    /// Whether the death counts against the unit: only those that the worker caused do.
    #[must_use]
    pub const fn is_counted(self) -> bool {
        matches!(
            self,
            Self::Exit
                | Self::Signal
                | Self::OutOfMemory
                | Self::Crashed
                | Self::Stalled
                | Self::Protocol
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_causes_are_distinct() {
        let words: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|c| c.label()).collect();
        assert_eq!(words.len(), Cause::ALL.len());
        assert_eq!(Cause::ALL.iter().filter(|c| c.is_counted()).count(), 6);
    }
}
