//! The socket's side of the fake worker: threads, frames, units in order.
//!
//! Three threads as in the real one: a reader that also sees cancel, drain and the closing of the
//! socket while a unit runs; a heart; and the computing one, which is this function's caller.

use std::collections::VecDeque;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use rlhfd_protocol::frame::{self, Frame};
use rlhfd_protocol::worker::{
    Done, FailureKind, FromWorker, ItemResult, ModelRef, Purpose, Reason, Summary, ToWorker, Work,
};
use rlhfd_protocol::{FRAME_FD, WORKER_PROTOCOL};

use super::answers::{answers, make_non_finite, refused, text_of, tokens_of, work_name};
use super::faults::{Act, Faults, Point, disk_failed};
use super::{train, verify};

/// What the three threads share.
#[derive(Default)]
pub(super) struct Shared {
    progress: AtomicU64,
    attempt: AtomicU64,
    items: AtomicU64,
    cancelled: AtomicU64,
    draining: AtomicBool,
    at_once: AtomicBool,
    within_ms: AtomicU64,
    silent: AtomicBool,
}

/// The computing side.
pub(super) struct Worker {
    out: Arc<Mutex<UnixStream>>,
    inbox: Receiver<Frame<ToWorker>>,
    /// Frames that came before their turn.
    ahead: VecDeque<Frame<ToWorker>>,
    pub(super) faults: Faults,
    pub(super) shared: Arc<Shared>,
}

/// Why a unit ended before its last item.
pub(super) enum Stop {
    Failed { kind: FailureKind, message: String, exit: bool },
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// One unit's attempt as it was announced.
struct Unit {
    attempt: u64,
    work: Work,
    items: u32,
}

/// Serves until the daemon drains it or closes the socket.
pub fn serve() -> Result<()> {
    // SAFETY: the daemon hands this process the socket at this descriptor, and nothing else in it
    // owns or closes it.
    let socket = unsafe { OwnedFd::from_raw_fd(FRAME_FD) };
    rustix::io::fcntl_getfd(&socket)?;
    let socket = UnixStream::from(socket);
    let shared = Arc::new(Shared::default());
    let (send, inbox) = sync_channel(64);
    let reader = socket.try_clone()?;
    let seen = Arc::clone(&shared);
    std::thread::spawn(move || read_frames(reader, &seen, &send));
    let mut worker = Worker {
        out: Arc::new(Mutex::new(socket)),
        inbox,
        ahead: VecDeque::new(),
        faults: Faults::from_env()?,
        shared,
    };
    worker.greet()?;
    worker.work()
}

fn read_frames(
    mut socket: UnixStream,
    shared: &Shared,
    send: &std::sync::mpsc::SyncSender<Frame<ToWorker>>,
) {
    loop {
        match frame::read::<ToWorker>(&mut socket) {
            Ok(frame) => {
                match &frame.message {
                    ToWorker::Cancel { attempt } => {
                        shared.cancelled.store(*attempt, Ordering::SeqCst);
                        continue;
                    }
                    ToWorker::Drain { at_once, within_ms } => {
                        shared.within_ms.store(*within_ms, Ordering::SeqCst);
                        shared.at_once.store(*at_once, Ordering::SeqCst);
                        shared.draining.store(true, Ordering::SeqCst);
                    }
                    _ => {}
                }
                if send.send(frame).is_err() {
                    return;
                }
            }
            // A worker leaves when its socket closes, whatever it computes.
            Err(frame::FrameError::Closed | frame::FrameError::Io(_)) => std::process::exit(0),
            Err(e) => {
                eprintln!("fake-worker: {e}");
                std::process::exit(4);
            }
        }
    }
}

impl Worker {
    fn greet(&mut self) -> Result<()> {
        let first = self.next()?;
        let ToWorker::Hello { device, rooms_mib, threads, heartbeat_ms, .. } = first.message else {
            bail!("the first frame must be hello");
        };
        let mut protocol = WORKER_PROTOCOL;
        if let Some((name, act)) = self.due("hello", 0, "", None) {
            match act {
                Act::OtherVersion => protocol += 1,
                other => {
                    self.act_out(&name, other).map_err(|stop| match stop {
                        Stop::Broken(e) => e,
                        Stop::Failed { message, .. } => anyhow::anyhow!(message),
                    })?;
                }
            }
        }
        self.send(
            &FromWorker::Hello {
                protocol,
                version: env!("CARGO_PKG_VERSION").into(),
                device,
                libtorch: "none".into(),
                threads: threads.unwrap_or(1),
            },
            &[],
        )?;
        let out = Arc::clone(&self.out);
        let shared = Arc::clone(&self.shared);
        let every = Duration::from_millis(heartbeat_ms.clamp(10, 60_000));
        let each = self.faults.plan().device_mib;
        let device_mib = each.map_or(Vec::new(), |each| vec![each; rooms_mib.len().max(1)]);
        std::thread::spawn(move || beat(&out, &shared, every, device_mib));
        Ok(())
    }

    fn work(&mut self) -> Result<()> {
        loop {
            let Frame { message, .. } = self.next()?;
            match message {
                ToWorker::Load { models } => {
                    self.check_models(&models)?;
                    self.send(&FromWorker::Loaded { seconds: 0.0 }, &[])?;
                }
                ToWorker::RunUnit { attempt, work, items } => {
                    self.run(&Unit { attempt, work: *work, items })?;
                }
                ToWorker::Drain { .. } => return Ok(()),
                ToWorker::Unload | ToWorker::Cancel { .. } => {}
                other => bail!("{other:?} came between two units"),
            }
        }
    }

    fn check_models(&self, models: &[ModelRef]) -> Result<()> {
        for model in models {
            if !model.path.join("config.json").is_file() {
                bail!("{} holds no config.json", model.path.display());
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Frame<ToWorker>> {
        match self.ahead.pop_front() {
            Some(frame) => Ok(frame),
            None => Ok(self.inbox.recv()?),
        }
    }

    fn run(&mut self, unit: &Unit) -> Result<()> {
        self.shared.items.store(0, Ordering::SeqCst);
        self.shared.attempt.store(unit.attempt, Ordering::SeqCst);
        let ended = match &unit.work {
            Work::TrainDpo { .. }
            | Work::TrainSft { .. }
            | Work::TrainReward { .. }
            | Work::TrainPreference { .. } => train::run(self, unit.attempt, &unit.work),
            Work::Average { .. } => train::average(self, unit.attempt, &unit.work),
            _ => self.run_items(unit),
        };
        self.shared.attempt.store(0, Ordering::SeqCst);
        match ended {
            Ok(mut summary) => {
                summary.device_peak_mib = self.faults.plan().device_peak_mib;
                self.send(&FromWorker::UnitDone { attempt: unit.attempt, summary }, &[])
            }
            Err(Stop::Failed { kind, message, exit }) => {
                self.send(&FromWorker::UnitFailed { attempt: unit.attempt, kind, message }, &[])?;
                if exit {
                    std::process::exit(3);
                }
                Ok(())
            }
            Err(Stop::Broken(error)) if disk_failed(&error) => {
                let (kind, message) = (FailureKind::Disk, format!("{error:#}"));
                self.send(&FromWorker::UnitFailed { attempt: unit.attempt, kind, message }, &[])
            }
            Err(Stop::Broken(error)) => Err(error),
        }
    }

    fn run_items(&mut self, unit: &Unit) -> Result<Summary, Stop> {
        let name = work_name(&unit.work);
        let purpose = match &unit.work {
            Work::Generate { purpose, .. } => Some(*purpose),
            _ => None,
        };
        let mut summary = Summary { seconds: 0.25, peak_mib: 10, ..Summary::default() };
        // All items are taken first, so that a unit that fails early leaves none in the socket.
        let mut items = Vec::new();
        while (items.len() as u32) < unit.items {
            let frame = self.next()?;
            match frame.message {
                ToWorker::Item { attempt, index, item } if attempt == unit.attempt => {
                    items.push((index, item, frame.payload));
                }
                _ => self.ahead.push_back(frame),
            }
        }
        verify::models_of(&unit.work)?;
        if let Work::Probe { policies, scorers, preference_models, .. } = &unit.work {
            self.check_models(policies)?;
            self.check_models(preference_models)?;
            for (scorer, _) in scorers {
                self.check_models(std::slice::from_ref(scorer))?;
            }
            if let Some((name, act)) = self.due("probe", 0, "", None) {
                match act {
                    Act::Finding { message } => summary.findings.push(message),
                    other => {
                        self.act_out(&name, other)?;
                    }
                }
            }
        }
        for (done, (index, item, payload)) in items.into_iter().enumerate() {
            self.check_cancel(unit.attempt)?;
            self.check_leave()?;
            let text = text_of(&item, &payload);
            let due = self.due(name, done as u32, &text, purpose);
            let handling = match due {
                Some((name, act)) => self.act_out(&name, act)?,
                None => Handling::Usual,
            };
            self.pause_for(self.faults.plan().ms_per_item);
            let answers = match handling {
                Handling::Refuse => vec![refused(Reason::OverLong, "refused by the plan")],
                _ => answers(&unit.work, item, &payload),
            };
            summary.tokens += answers.iter().map(|(result, _)| tokens_of(result)).sum::<u64>();
            self.answer(unit.attempt, index, answers, handling)?;
            self.progress();
            self.shared.items.fetch_add(1, Ordering::SeqCst);
        }
        Ok(summary)
    }

    fn answer(
        &mut self,
        attempt: u64,
        index: u32,
        answers: Vec<(ItemResult, Vec<u8>)>,
        handling: Handling,
    ) -> Result<()> {
        let (attempt, index, times) = match handling {
            Handling::Usual | Handling::Refuse | Handling::NonFinite => (attempt, index, 1),
            Handling::Twice => (attempt, index, 2),
            Handling::LeaveOut => (attempt, index, 0),
            Handling::OtherAttempt => (attempt + 1000, index, 1),
            Handling::OtherIndex => (attempt, index + 100_000, 1),
        };
        for (mut result, payload) in answers {
            if handling == Handling::NonFinite {
                make_non_finite(&mut result);
            }
            for _ in 0..times {
                let message = FromWorker::Result { attempt, index, result: result.clone() };
                self.send(&message, &payload)?;
            }
        }
        Ok(())
    }

    /// Does what the plan says. Acts that end the process do not return.
    pub(super) fn act_out(&mut self, name: &str, act: Act) -> Result<Handling, Stop> {
        match act {
            Act::Exit { code } => std::process::exit(code),
            Act::Signal { number: 6 } => std::process::abort(),
            Act::Signal { number } => loop {
                // Rust's own handler of faults passes the first one on; the second one kills.
                if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
                    rustix::process::kill_process(rustix::process::getpid(), signal)?;
                }
                std::thread::sleep(Duration::from_millis(5));
            },
            Act::Stall => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            Act::Silent => {
                self.shared.silent.store(true, Ordering::SeqCst);
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            Act::Garbage => self.send_raw(b"\x05\x00\x00\x00\x00\x00\x00\x00{{{{{")?,
            Act::Oversized => self.send_raw(&[0xff; 64])?,
            Act::UnknownVerb => {
                let bytes = frame::encode(&serde_json::json!({"verb": "sing"}), &[])
                    .map_err(anyhow::Error::from)?;
                self.send_raw(&bytes)?;
            }
            Act::Fail { failure, exit } => {
                return Err(Stop::Failed { kind: failure, message: "by the plan".into(), exit });
            }
            Act::Hold => {
                let shared = Arc::clone(&self.shared);
                self.faults.hold(name, || {
                    shared.progress.fetch_add(1, Ordering::SeqCst);
                });
            }
            Act::AnswerTwice => return Ok(Handling::Twice),
            Act::LeaveOut => return Ok(Handling::LeaveOut),
            Act::WrongAttempt => return Ok(Handling::OtherAttempt),
            Act::WrongIndex => return Ok(Handling::OtherIndex),
            Act::NonFiniteAnswer => return Ok(Handling::NonFinite),
            Act::Refuse => return Ok(Handling::Refuse),
            Act::OtherVersion | Act::Finding { .. } => {}
        }
        Ok(Handling::Usual)
    }

    pub(super) fn due(
        &self,
        work: &str,
        done: u32,
        text: &str,
        purpose: Option<Purpose>,
    ) -> Option<(String, Act)> {
        self.faults.due(&Point { work, done, text, purpose })
    }

    pub(super) fn check_cancel(&self, attempt: u64) -> Result<(), Stop> {
        if self.shared.cancelled.load(Ordering::SeqCst) == attempt {
            let message = "cancelled as asked".into();
            return Err(Stop::Failed { kind: FailureKind::Cancelled, message, exit: false });
        }
        Ok(())
    }

    /// Everything but a training, which looks itself, stops only where that is asked for.
    fn check_leave(&self) -> Result<(), Stop> {
        if self.shared.at_once.load(Ordering::SeqCst) {
            let message = "stopped to leave at once".into();
            return Err(Stop::Failed { kind: FailureKind::Cancelled, message, exit: false });
        }
        Ok(())
    }

    /// Where the daemon asked it to leave: within so many milliseconds.
    pub(super) fn draining(&self) -> Option<u64> {
        let asked = self.shared.draining.load(Ordering::SeqCst);
        asked.then(|| self.shared.within_ms.load(Ordering::SeqCst))
    }

    pub(super) fn progress(&self) {
        self.shared.progress.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn pause_for(&self, ms: u64) {
        if ms > 0 {
            std::thread::sleep(Duration::from_millis(ms));
        }
    }

    pub(super) fn send(&self, message: &FromWorker, payload: &[u8]) -> Result<()> {
        let bytes = frame::encode(message, payload)?;
        self.send_raw(&bytes)
    }

    fn send_raw(&self, bytes: &[u8]) -> Result<()> {
        use std::io::Write;
        let mut out = self.out.lock().map_err(|_| anyhow::anyhow!("the writer is poisoned"))?;
        out.write_all(bytes)?;
        Ok(())
    }
}

/// How the answers of one item are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    Usual,
    Twice,
    LeaveOut,
    OtherAttempt,
    OtherIndex,
    NonFinite,
    Refuse,
}

fn beat(out: &Mutex<UnixStream>, shared: &Shared, every: Duration, device_mib: Vec<u64>) {
    use std::io::Write;
    loop {
        std::thread::sleep(every);
        if shared.silent.load(Ordering::SeqCst) {
            continue;
        }
        let attempt = shared.attempt.load(Ordering::SeqCst);
        let items = u32::try_from(shared.items.load(Ordering::SeqCst)).unwrap_or(u32::MAX);
        let message = FromWorker::Heartbeat {
            attempt: (attempt != 0).then_some(attempt),
            progress: shared.progress.load(Ordering::SeqCst),
            resident_mib: 10,
            device_mib: device_mib.clone(),
            done: (attempt != 0).then_some(Done { items, tokens: 0 }),
        };
        let Ok(bytes) = frame::encode(&message, &[]) else { return };
        let Ok(mut out) = out.lock() else { return };
        if out.write_all(&bytes).is_err() {
            return;
        }
    }
}
