//! The daemon's exit codes, as sysexits.h numbers them; the service unit relies on them.

/// The command line is wrong.
pub const USAGE: u8 = 64;
/// A bug of ours: the supervisor's budget is spent, or a core part failed.
pub const SOFTWARE: u8 = 70;
/// Another daemon is there: try later.
pub const BUSY: u8 = 75;
/// The configuration, a place or the database is wrong: starting again does not help.
pub const CONFIG: u8 = 78;
