//! The daemon's worker: frames in, frames out, until the socket closes.
//!
//! ```text
//! socket ─▶ reader ─▶ prepare ─▶ compute ─▶ answers ─▶ socket
//!             │        (text       (main       (ids to     ▲
//!             │         to ids)     thread)     text)      │
//!             └─ cancel, drain ──▶ Shared ◀── heartbeat ───┘
//! ```
//! Each arrow is a bounded channel, so that a daemon which reads slowly slows the computation and
//! nothing piles up. The reader alone never waits for the computation: it must see a cancel, and the
//! end of the socket, at once. May not enter: decisions about retrying, the database, file mode.

mod answers;
mod compute;
mod prefer;
mod prepare;
mod shared;
mod units;

use std::io::BufReader;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded, tick};
use rlhfd_protocol::frame::{self, Frame, FrameError};
use rlhfd_protocol::worker::{FromWorker, ToWorker};
use rlhfd_protocol::{FRAME_FD, WORKER_PROTOCOL};
use thiserror::Error;

use self::shared::{Shared, Wire};
use crate::device;
use crate::device_memory;
use crate::errors::DeviceError;
use crate::model::Devices;

/// The libtorch that this binary is built for; tch 0.24 knows no other.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// Frames that wait for the tokeniser: the items of the present unit and the next.
const FRAMES_WAITING: usize = 1 << 16;

/// Batches that wait for the compute thread.
const BATCHES_WAITING: usize = 4;

/// Answers that wait for the decoder.
const ANSWERS_WAITING: usize = 64;

/// Why a worker could not start to serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No daemon at the other end.
    #[error(
        "there is no frame socket at descriptor {FRAME_FD}\n\
         try: `rlhfd run`, which starts its workers itself"
    )]
    NoSocket,
    /// The socket failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The daemon speaks another protocol.
    #[error(
        "the daemon speaks protocol {daemon}, this worker {WORKER_PROTOCOL}\n\
         try: install rlhfd and rlhfd-worker of one version"
    )]
    Version {
        /// The daemon's.
        daemon: u32,
    },
    /// The daemon's first frame was no hello.
    #[error("the daemon did not say hello first\ntry: install both of one version")]
    NoHello,
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Serves the daemon until it drains this worker or closes the socket; ends the process.
///
/// Errors: only before the hello; afterwards every failure is an answer.
pub fn run() -> Result<std::convert::Infallible, ServeError> {
    let socket = frame_socket()?;
    let writing = socket.try_clone().map_err(FrameError::from)?;
    let mut reading = BufReader::new(socket);
    let hello: Frame<ToWorker> = frame::read(&mut reading)?;
    let ToWorker::Hello { protocol, device, rooms_mib, threads, heartbeat_ms } = hello.message
    else {
        return Err(ServeError::NoHello);
    };
    if protocol != WORKER_PROTOCOL {
        return Err(ServeError::Version { daemon: protocol });
    }
    let compute = device::open(&device, &rooms_mib, threads)?;
    let wire = Arc::new(Wire::new(writing));
    wire.send(
        &FromWorker::Hello {
            protocol: WORKER_PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: compute.devices.to_string(),
            libtorch: LIBTORCH_VERSION.to_owned(),
            threads: usize::try_from(tch::get_num_threads()).unwrap_or(1),
        },
        &[],
    )?;
    let shared = Arc::new(Shared::default());
    let (to_prepare, from_reader) = bounded(FRAMES_WAITING);
    let (to_compute, from_prepare) = bounded(BATCHES_WAITING);
    let (to_answers, from_compute) = bounded(ANSWERS_WAITING);
    {
        let shared = Arc::clone(&shared);
        thread("reader", move || read_all(&mut reading, &to_prepare, &shared))?;
    }
    {
        let shared = Arc::clone(&shared);
        thread("prepare", move || prepare::run(&from_reader, &to_compute, &shared))?;
    }
    {
        let wire = Arc::clone(&wire);
        thread("answers", move || answers::run(&from_compute, &wire))?;
    }
    {
        let (wire, shared) = (Arc::clone(&wire), Arc::clone(&shared));
        let every = Duration::from_millis(heartbeat_ms.clamp(10, 60_000));
        let devices = compute.devices;
        thread("heartbeat", move || heartbeat(&wire, &shared, every, &devices))?;
    }
    compute::run(compute, &from_prepare, &to_answers, &shared);
    // The last answers are on their way; the answers thread ends the process after them.
    loop {
        std::thread::park();
    }
}

/// The socket that the daemon left at its fixed place.
fn frame_socket() -> Result<UnixStream, ServeError> {
    let path = format!("/proc/self/fd/{FRAME_FD}");
    let target = std::fs::read_link(path).map_err(|_| ServeError::NoSocket)?;
    if !target.to_string_lossy().starts_with("socket:") {
        return Err(ServeError::NoSocket);
    }
    // SAFETY: the descriptor is open and a socket, as was just seen, and nothing else in this
    // process owns it: it is read once, here, before any thread is started.
    Ok(unsafe { UnixStream::from_raw_fd(FRAME_FD) })
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop).map_err(ServeError::Thread)
}

/// Reads frames until the socket closes, which ends the process whatever it is doing.
fn read_all(
    reading: &mut BufReader<UnixStream>,
    to_prepare: &Sender<Frame<ToWorker>>,
    shared: &Shared,
) {
    loop {
        let frame: Frame<ToWorker> = match frame::read(reading) {
            Ok(frame) => frame,
            Err(FrameError::Closed) => shared::end_process(0),
            Err(error) => {
                tracing::error!("the daemon's frames cannot be read: {error}");
                shared::end_process(1);
            }
        };
        match frame.message {
            ToWorker::Cancel { attempt } => shared.cancel(attempt),
            ToWorker::Drain { at_once, within_ms } => {
                shared.drain(at_once, Duration::from_millis(within_ms));
                pass_on(to_prepare, frame);
            }
            _ => pass_on(to_prepare, frame),
        }
    }
}

fn pass_on(to_prepare: &Sender<Frame<ToWorker>>, frame: Frame<ToWorker>) {
    if to_prepare.send(frame).is_err() {
        shared::end_process(1);
    }
}

fn heartbeat(wire: &Wire, shared: &Shared, every: Duration, devices: &Devices) {
    for _ in tick(every) {
        let (attempt, done) = shared.running();
        let beat = FromWorker::Heartbeat {
            attempt,
            progress: shared.watch.progress(),
            resident_mib: device::resident_mib(),
            device_mib: device_memory::now_mib(devices),
            done,
        };
        wire.send_or_end(&beat, &[]);
    }
}
