//! The only structs that cross a process boundary.
//!
//! `frame` and `worker` are the daemon ↔ worker side, `control` is the client ↔ daemon side,
//! `manifest` is what lies in the folders that both planes read.
//! Plain values: no handles, no tensors, no SQL. May not enter: I/O beyond `Read` and `Write`,
//! async, the other rooms.

pub mod control;
pub mod frame;
pub mod manifest;
pub mod worker;

/// The version of the worker protocol: both sides must speak exactly this one, because daemon and
/// worker are installed together.
pub const WORKER_PROTOCOL: u32 = 3;

/// The file descriptor at which a worker finds its frame socket.
pub const FRAME_FD: i32 = 3;
