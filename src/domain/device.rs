//! Devices and memory as arithmetic.
//!
//! In: what NVML said. Out: plain values for the scheduler. May not enter: NVML, processes, placement.

use std::fmt;

/// Memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mib(pub u64);

impl Mib {
    /// Whole MiB that hold so many bytes, rounded up.
    #[must_use]
    pub const fn holding(bytes: u64) -> Self {
        Self(bytes.div_ceil(1024 * 1024))
    }

    /// The sum, or the largest number where it does not fit.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left, never below 0.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The host's processors; always there.
    Cpu,
    /// A GPU, or a slice of one.
    Cuda,
}

impl DeviceKind {
    /// The word of rows and of the worker's hello.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// A device as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSeen {
    /// The GPU's UUID, or `cpu`.
    pub uuid: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// What a person calls it.
    pub name: String,
    /// All of its memory, where it is known.
    pub memory: Option<Mib>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_never_wraps() {
        assert_eq!(Mib::holding(1), Mib(1));
        assert_eq!(Mib(3).minus(Mib(5)), Mib(0));
        assert_eq!(Mib(u64::MAX).plus(Mib(1)), Mib(u64::MAX));
    }
}
