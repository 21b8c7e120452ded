//! The daemon through its deaths: started again as a service manager would, looked at, and ended in order.
//!
//! Comes in: a scene and what faults are made with. Goes out: where a fault fell, and a sentence where
//! something is wrong already. May not enter: how a fault is made.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rlhfd_tests::scene::{Daemon, Scene, alive};
use rlhfd_tests::{dump, http};

use crate::blows;
use crate::faults::{Fault, Kind, PARTS};
use crate::round::Tools;
use crate::tally::Tally;

/// Exit codes after which a service manager does not start the daemon again (`RestartPreventExitStatus`).
const FOR_GOOD: [i32; 2] = [64, 78];
/// What a service manager waits before it starts anew.
const RESTART: Duration = Duration::from_millis(100);
/// How long a worker may take to be gone after its daemon.
const GONE: Duration = Duration::from_secs(5);
/// SIGTERM, to a daemon that does not listen for it yet.
const TERMINATED: i32 = 15;
/// SIGABRT: a commit failed, by the fault before, while it was told to end.
const ABORTED: i32 = 6;

/// A scene's daemon, whichever process it is now.
pub struct Life<'a> {
    pub scene: &'a Scene,
    pub tools: &'a mut Tools,
    pub daemon: Option<Daemon<'a>>,
    start_ms: u64,
    workers: BTreeSet<i32>,
}

impl<'a> Life<'a> {
    pub fn begun(scene: &'a Scene, tools: &'a mut Tools, start_ms: u64) -> Self {
        let daemon = Some(scene.start());
        Self { scene, tools, daemon, start_ms, workers: BTreeSet::new() }
    }

    /// One number by SQL; none while the database cannot be read.
    pub fn ask(&self, sql: &str) -> Option<i64> {
        let connection = dump::try_open(&self.scene.database()).ok()?;
        connection.query_row(sql, [], |row| row.get(0)).ok()
    }

    /// A look: who ended is started anew.
    ///
    /// Errors: it ended as one that is not to be started again, or the run waits for a person.
    pub fn look(&mut self) -> Result<(), String> {
        self.revive()?;
        self.workers.extend(self.daemon.iter().flat_map(Daemon::workers));
        let paused = "SELECT count(*) FROM runs WHERE paused_by = 'daemon'";
        if self.ask(paused) != Some(1) {
            return Ok(());
        }
        let reason = "SELECT paused_reason FROM runs WHERE paused_by = 'daemon'";
        let reason = dump::text(&self.scene.database(), reason).unwrap_or_default();
        Err(format!("the run is paused: {reason}"))
    }

    /// Starts the daemon anew if it has ended by itself.
    pub fn revive(&mut self) -> Result<(), String> {
        let Some(daemon) = self.daemon.as_mut() else {
            self.daemon = Some(self.scene.start_unasked());
            return Ok(());
        };
        let Some(status) = daemon.child.try_wait().expect("a child") else { return Ok(()) };
        if status.code().is_some_and(|code| FOR_GOOD.contains(&code)) {
            return Err(format!("the daemon ended for good: {status}"));
        }
        std::thread::sleep(RESTART);
        self.daemon = Some(self.scene.start_unasked());
        Ok(())
    }

    /// Ends the daemon that lives, this way.
    pub fn end<T>(&mut self, way: impl FnOnce(Daemon<'a>) -> T) -> Option<T> {
        self.daemon.take().map(way)
    }

    /// Lets a fault fall, and counts it where it fell.
    pub fn suffer(&mut self, fault: Fault, tally: &mut Tally) -> Result<(), String> {
        blows::until_breakable(self, &fault)?;
        if let Some(part) = fault.in_start {
            self.end(Daemon::kill);
            // Files are altered while nobody lives; all else falls into the start itself.
            if fault.kind != Kind::Corrupt {
                self.daemon = Some(self.scene.start_unasked());
                std::thread::sleep(Duration::from_millis(self.start_ms * part / PARTS));
            }
        }
        let at = self.at();
        if blows::hit(self, &fault)? {
            tally.fell(fault.kind, &at);
        }
        self.revive()
    }

    /// Whether the daemon has begun.
    pub fn serves(&self) -> bool {
        http::open(&self.scene.socket()).is_ok()
    }

    /// What goes on now: the daemon's start, a stage, or `between`. While a worker begins no unit is at
    /// work: then it is the stage that the worker begins for, whose units are the first that are open.
    fn at(&self) -> String {
        if !self.serves() {
            return "start".to_owned();
        }
        let stage = "SELECT coalesce(
            (SELECT u.stage FROM attempts a JOIN units u ON u.id = a.unit_id
             WHERE a.ended_ms IS NULL ORDER BY a.id DESC LIMIT 1),
            (SELECT u.stage FROM units u JOIN iterations i USING (run_id, iteration)
             WHERE i.ended_ms IS NULL AND u.state = 'open'
             ORDER BY instr('prompts generate label pair train checkpoint evaluate', u.stage) LIMIT 1),
            'between')";
        let connection = dump::try_open(&self.scene.database());
        let asked = connection.and_then(|conn| conn.query_row(stage, [], |row| row.get(0)));
        let stage: String = asked.unwrap_or_else(|_| "between".to_owned());
        // A training that writes its checkpoint does that stage's work.
        if stage == "train" && self.publishes() { "checkpoint".to_owned() } else { stage }
    }

    /// Whether a checkpoint is written that no row names yet.
    fn publishes(&self) -> bool {
        let folder = self.scene.state().join("runs/main/checkpoints");
        let known = self.ask("SELECT count(*) FROM checkpoints WHERE kind = 'policy'");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let standing = entries.filter(|entry| entry.path().join("model.safetensors").is_file());
        known.is_some_and(|known| standing.count() > known.unsigned_abs() as usize)
    }

    /// The end of a round.
    ///
    /// Errors: it does not end in order, or a worker lives on.
    pub fn ended_in_order(mut self) -> Result<(), String> {
        self.workers.extend(self.daemon.iter().flat_map(Daemon::workers));
        // A daemon that only begins is let begin.
        while !self.serves() {
            self.revive()?;
            std::thread::sleep(RESTART);
        }
        let status = self.end(Daemon::terminate);
        if !status.is_some_and(|status| status.success()) {
            return Err(format!("it did not end in order: {status:?}"));
        }
        // One that had only begun dies with the daemon, by the kernel's hand.
        let until = Instant::now() + GONE;
        while let Some(pid) = self.workers.iter().find(|pid| alive(**pid)) {
            if Instant::now() > until {
                return Err(format!("worker {pid} outlived its daemon"));
            }
            std::thread::sleep(RESTART);
        }
        Ok(())
    }
}

/// Whether a daemon that was told to end did so, or by what it may end by instead.
pub fn is_orderly(status: ExitStatus) -> bool {
    status.success() || status.signal().is_some_and(|by| [TERMINATED, ABORTED].contains(&by))
}
