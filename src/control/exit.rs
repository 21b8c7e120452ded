//! The daemon's exit codes, as sysexits.h numbers them; the service unit relies on them.

/// The command line is wrong.
pub const USAGE: u8 = 64;
/// A bug of ours: the supervisor's budget is spent, or a core part failed.
pub const SOFTWARE: u8 = 70;
/// Another daemon is there: try later.
pub const BUSY: u8 = 75;
/// The configuration, a place or the database is wrong: starting again does not help.
pub const CONFIG: u8 = 78;

/// Of a place that could not be used: a disk that is full, fails or is read-only may be well again later.
#[must_use]
pub fn of_place(error: &std::io::Error) -> u8 {
    let read_only = error.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
    if read_only || crate::health::may_pass(error) { BUSY } else { CONFIG }
}
