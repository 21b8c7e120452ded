//! A worker process with its frame socket in the test's hand, as the daemon would hold it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rlhfd_protocol::frame::{self, Frame, FrameError};
use rlhfd_protocol::worker::{FromWorker, Item, ItemResult, Summary, ToWorker, Work};
use rlhfd_protocol::{FRAME_FD, WORKER_PROTOCOL};

use crate::wait;

/// A worker and our end of its socket.
pub struct Link {
    pub child: Child,
    pub socket: UnixStream,
}

impl Link {
    /// Starts `program` with its frame socket where a worker looks for it.
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        // The shell moves the socket from stdin to the worker's descriptor: no unsafe code here.
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("exec \"$0\" \"$@\" {FRAME_FD}<&0 0</dev/null"))
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("a worker");
        Self { child, socket: ours }
    }

    /// The handshake.
    pub fn greet(&mut self) -> FromWorker {
        self.send(&ToWorker::Hello {
            rooms_mib: Vec::new(),
            protocol: WORKER_PROTOCOL,
            device: "cpu".into(),
            threads: Some(1),
            heartbeat_ms: 50,
        });
        self.receive().expect("a hello").message
    }

    pub fn send(&mut self, message: &ToWorker) {
        self.send_with(message, &[]);
    }

    pub fn send_with(&mut self, message: &ToWorker, payload: &[u8]) {
        frame::write(&mut self.socket, message, payload).expect("the worker reads");
    }

    /// The next frame that is no heartbeat.
    pub fn receive(&mut self) -> Result<Frame<FromWorker>, FrameError> {
        loop {
            let frame = frame::read::<FromWorker>(&mut self.socket)?;
            if !matches!(frame.message, FromWorker::Heartbeat { .. }) {
                return Ok(frame);
            }
        }
    }

    /// Sends a unit and takes all its answers; `Err` holds the frame that ended it otherwise.
    #[expect(clippy::type_complexity, reason = "a test's helper: results, or what came instead")]
    #[expect(clippy::result_large_err, reason = "one value a test")]
    pub fn run(
        &mut self,
        attempt: u64,
        work: Work,
        items: Vec<(Item, Vec<u8>)>,
    ) -> Result<(Vec<(u32, ItemResult, Vec<u8>)>, Summary), FromWorker> {
        let count = u32::try_from(items.len()).expect("a test's unit is small");
        self.send(&ToWorker::RunUnit { attempt, work: Box::new(work), items: count });
        for (index, (item, payload)) in (0..).zip(items) {
            self.send_with(&ToWorker::Item { attempt, index, item }, &payload);
        }
        let mut results = Vec::new();
        loop {
            let frame = self.receive().expect("an answer");
            match frame.message {
                FromWorker::Result { attempt: of, index, result } => {
                    assert_eq!(of, attempt);
                    results.push((index, result, frame.payload));
                }
                FromWorker::Step { .. } => {}
                FromWorker::UnitDone { attempt: of, summary } => {
                    assert_eq!(of, attempt);
                    return Ok((results, summary));
                }
                other => return Err(other),
            }
        }
    }

    /// Waits until the process has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait::until("the worker to end", || child.try_wait().expect("a child"), String::new)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
