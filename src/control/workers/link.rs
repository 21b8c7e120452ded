//! The link to one worker process: its frames in order, and its end, to one listener.
//!
//! In: a spawned process. Out: [`LinkEvent`]s, each handled before the next is read, so that a slow
//! listener slows the worker and nothing piles up: at most a frame is read, a frame is being sent
//! and one waits to be. May not enter: what a frame means.

use std::time::Duration;

use actix::prelude::*;
use rlhfd_protocol::frame::{Frame, FrameError};
use rlhfd_protocol::worker::FromWorker;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tracing::Span;

use super::child::Spawned;
use super::codec;
use super::death::Death;
use super::logs;

/// How long a process may take to end after its socket closed.
const LEAVE: Duration = Duration::from_secs(5);
/// How long a killed process is waited for: one that stands in a call of a driver whose device is gone may
/// never end, and its lease must.
const REAP: Duration = Duration::from_secs(30);

/// What happens on a link.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum LinkEvent {
    /// A frame came.
    Frame(Frame<FromWorker>),
    /// The process is gone; nothing comes after this.
    Ended {
        /// How it ended.
        death: Death,
        /// What was wrong with its last frame, where something was.
        garbage: Option<String>,
    },
}

/// The daemon's hands on a link.
#[derive(Debug)]
pub struct Link {
    /// Encoded frames to the worker. When every clone is dropped, the worker sees the end and leaves.
    pub out: mpsc::Sender<Vec<u8>>,
    /// Kills the process group.
    pub kill: mpsc::Sender<()>,
}

/// Drives a link until the process is reaped. Log lines come in the span that `span` holds.
pub fn drive(
    spawned: Spawned,
    span: &watch::Receiver<Span>,
    listener: Recipient<LinkEvent>,
) -> Link {
    let (out, frames) = mpsc::channel(1);
    let (kill, killed) = mpsc::channel(1);
    let Spawned { pid, socket, process, stdout, stderr, oom, oom_kills } = spawned;
    if let Some(stdout) = stdout {
        actix_rt::spawn(logs::say_again(stdout, pid, span.clone()));
    }
    if let Some(stderr) = stderr {
        actix_rt::spawn(logs::say_again(stderr, pid, span.clone()));
    }
    let (read, write) = socket.into_split();
    actix_rt::spawn(send_all(frames, write));
    actix_rt::spawn(async move {
        let mut child = Process { pid, process, killed };
        let garbage = read_all(read, &mut child, &listener).await;
        let status = child.end(garbage.is_some()).await;
        let death = Death::read(status, oom_kills, oom.read());
        // The listener may be gone already; the process is reaped all the same.
        let _ = listener.send(LinkEvent::Ended { death, garbage }).await;
    });
    Link { out, kill }
}

struct Process {
    pid: u32,
    process: tokio::process::Child,
    killed: mpsc::Receiver<()>,
}

async fn send_all(mut frames: mpsc::Receiver<Vec<u8>>, mut write: OwnedWriteHalf) {
    while let Some(bytes) = frames.recv().await {
        if write.write_all(&bytes).await.is_err() {
            // The reading side sees the same end and tells it.
            return;
        }
    }
}

/// Reads until the socket ends or someone kills; says what was wrong with a frame.
async fn read_all(
    mut read: OwnedReadHalf,
    child: &mut Process,
    listener: &Recipient<LinkEvent>,
) -> Option<String> {
    loop {
        let frame = tokio::select! {
            frame = codec::read::<FromWorker, _>(&mut read) => frame,
            Some(()) = child.killed.recv() => {
                child.kill();
                return None;
            }
        };
        match frame {
            Ok(frame) => {
                if listener.send(LinkEvent::Frame(frame)).await.is_err() {
                    child.kill();
                    return None;
                }
            }
            Err(FrameError::Closed | FrameError::Io(_)) => return None,
            Err(error) => return Some(error.to_string()),
        }
    }
}

impl Process {
    fn kill(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It is not reaped yet, so that the number is still its own.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }

    async fn end(&mut self, kill_now: bool) -> Option<std::process::ExitStatus> {
        if kill_now {
            self.kill();
        }
        let left = tokio::select! {
            status = self.process.wait() => Some(status),
            () = actix_rt::time::sleep(LEAVE) => None,
            Some(()) = self.killed.recv() => None,
        };
        match left {
            Some(status) => status.ok(),
            None => {
                self.kill();
                actix_rt::time::timeout(REAP, self.process.wait()).await.ok()?.ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::frame;

    use super::*;
    use crate::workers::child::{Launch, spawn};

    #[derive(Default)]
    struct Ear(Vec<String>, Option<tokio::sync::oneshot::Sender<Vec<String>>>);
    impl Actor for Ear {
        type Context = Context<Self>;
    }
    impl Handler<LinkEvent> for Ear {
        type Result = ();
        fn handle(&mut self, event: LinkEvent, _: &mut Context<Self>) {
            let ended = matches!(event, LinkEvent::Ended { .. });
            self.0.push(format!("{event:?}"));
            if ended && let Some(done) = self.1.take() {
                done.send(std::mem::take(&mut self.0)).unwrap();
            }
        }
    }

    async fn heard(script: &str, frame: &FromWorker, kill: bool) -> Vec<String> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("worker");
        std::fs::write(folder.path().join("frame"), frame::encode(frame, &[]).unwrap()).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", folder.path().display()))
            .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let launch = Launch { program, libraries: None, gpus: Vec::new(), nice: 0 };
        let (done, all) = tokio::sync::oneshot::channel();
        let ear = Ear(Vec::new(), Some(done)).start();
        let (_span, spans) = watch::channel(Span::none());
        let link = drive(spawn(&launch).unwrap(), &spans, ear.recipient());
        if kill {
            link.kill.send(()).await.unwrap();
        }
        all.await.unwrap()
    }

    #[actix_rt::test]
    async fn frames_come_before_the_end_and_the_end_tells_the_exit_code() {
        let all = heard("cat frame >&3; exit 7", &FromWorker::Loaded { seconds: 1.0 }, false).await;
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[0].contains("Loaded") && all[1].contains("Exit(7)"), "{all:?}");
    }

    #[actix_rt::test]
    async fn garbage_ends_the_process_with_a_word_about_it() {
        let all = heard(
            "printf '\\377\\377\\377\\377\\377\\377\\377\\377' >&3; sleep 60",
            &FromWorker::Loaded { seconds: 1.0 },
            false,
        )
        .await;
        assert!(all[0].contains("ceiling") && all[0].contains("Signal(9)"), "{all:?}");
    }

    #[actix_rt::test]
    async fn a_kill_ends_a_process_that_says_nothing() {
        let all = heard("sleep 60", &FromWorker::Loaded { seconds: 1.0 }, true).await;
        assert!(all[0].contains("Signal(9)"), "{all:?}");
    }
}
