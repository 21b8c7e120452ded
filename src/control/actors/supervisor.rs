//! The supervisor actor: it starts worker processes, and starts fewer of them when they keep dying.
//!
//! In: leases that the scheduler wants, deaths. Out: processes with their actors. It lives on the
//! main thread, because a child dies with the thread that spawned it. May not enter: units.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use actix::prelude::*;
use rlhfd_config::CheckedConfig;

use super::scheduler::{LeaseEnded, LeaseOpening, SchedulerActor};
use super::worker::{Newborn, WorkerActor, WorkerContext};
use crate::gpu;
use crate::live::{LiveBoard, LiveWorker, WorkerState};
use crate::watchdog::Alive;
use crate::workers::child::{self, Launch};
use crate::workers::death::Death;
use crate::workers::libtorch;
use crate::workers::link;
use crate::workers::watch::Limits;

/// Messages that may wait.
const MAILBOX: usize = 64;
/// For tests only: leases on (fake) GPUs compute on the CPU.
const TEST_ON_CPU: &str = "RLHFD_TEST_GPU_LEASES_ON_CPU";
/// The longest back-off.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// The actor.
pub struct SupervisorActor {
    worker: WorkerContext,
    scheduler: Addr<SchedulerActor>,
    live: LiveBoard,
    next: u64,
    /// By number: devices, when it was started, whether it said hello.
    born: BTreeMap<u64, (Vec<String>, Instant, bool)>,
    /// By devices: deaths in a row.
    deaths: BTreeMap<Vec<String>, u32>,
}

impl SupervisorActor {
    /// Starts it on this thread, which must be the main one.
    #[must_use]
    pub fn start_with(worker: WorkerContext) -> Addr<Self> {
        Self::create(move |own| {
            own.set_mailbox_capacity(MAILBOX);
            Self {
                scheduler: worker.scheduler.clone(),
                live: worker.live.clone(),
                worker,
                next: 1,
                born: BTreeMap::new(),
                deaths: BTreeMap::new(),
            }
        })
    }

    fn spawn(&mut self, number: u64, (devices, rooms_mib): (Vec<String>, Vec<u64>)) {
        let config = self.worker.stage.config.borrow().clone();
        let started = launch(&config, &devices).and_then(|launch| {
            child::spawn(&launch).map_err(|error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                format!("{error}: {}", cause.unwrap_or_default())
            })
        });
        let spawned = match started {
            Ok(spawned) => spawned,
            Err(why) => {
                tracing::error!("no worker: {why}");
                self.tell(Some(why));
                super::tell(&self.scheduler, LeaseEnded { number, death: Death::Unknown });
                return;
            }
        };
        let pid = spawned.pid;
        tracing::info!(pid, devices = devices.join(","), "a worker is started");
        self.show(number, pid, &devices);
        let born = Newborn {
            number,
            pid,
            device: if computes_on_gpu(&devices) { "cuda" } else { "cpu" },
            limits: limits(&config),
            threads: usize::try_from(config.worker.threads).ok().filter(|threads| *threads > 0),
            devices,
            rooms_mib,
        };
        WorkerActor::start_with(self.worker.clone(), born, move |span, listener| {
            link::drive(spawned, span, listener)
        });
    }

    fn show(&self, number: u64, pid: u32, devices: &[String]) {
        let worker = LiveWorker {
            lease: None,
            pid,
            devices: devices.to_vec(),
            state: WorkerState::Starting,
            resident_mib: 0,
            unit: None,
            next: None,
        };
        self.live.change(|live| {
            live.workers.insert(number, worker);
        });
    }

    /// Says why there is no worker, or that there is one.
    fn tell(&self, why: Option<String>) {
        self.live.change(|live| match why {
            Some(why) => {
                live.faults.insert("worker".into(), format!("no worker runs: {why}"));
            }
            None => {
                live.faults.remove("worker");
            }
        });
    }
}

/// 0 at first, then 1 s, 2 s, 4 s, …
fn back_off(deaths: u32) -> Duration {
    match deaths {
        0 => Duration::ZERO,
        deaths => Duration::from_secs(1 << (deaths - 1).min(6)).min(BACK_OFF_MAX),
    }
}

/// Whether a lease on these devices computes on a GPU.
fn computes_on_gpu(devices: &[String]) -> bool {
    devices.iter().any(|uuid| uuid != gpu::CPU) && std::env::var_os(TEST_ON_CPU).is_none()
}

fn launch(config: &CheckedConfig, devices: &[String]) -> Result<Launch, String> {
    let origin = libtorch::origin();
    let configured = config.worker.program.as_ref().map(|place| place.path.as_path());
    let program = libtorch::program(configured, &origin);
    let folders = libtorch::candidates(
        config.worker.libtorch.as_ref().map(|place| place.path.as_path()),
        std::env::var_os("RLHFD_LIBTORCH"),
        &origin,
    );
    // A program of the user's own may bring its libraries itself.
    let libraries = match libtorch::find(&folders) {
        Ok(folder) => Some(folder),
        Err(_) if configured.is_some() => None,
        Err(missing) => return Err(missing.to_string()),
    };
    let gpus = if computes_on_gpu(devices) { devices.to_vec() } else { Vec::new() };
    let nice = i32::try_from(config.worker.nice).unwrap_or(0);
    Ok(Launch { program, libraries, gpus, nice })
}

fn limits(config: &CheckedConfig) -> Limits {
    let scheduler = &config.scheduler;
    Limits {
        heartbeat: Duration::from_millis(scheduler.heartbeat_ms),
        silence: Duration::from_secs(scheduler.silence_timeout_s),
        progress: Duration::from_secs(scheduler.progress_timeout_s),
        load: Duration::from_secs(scheduler.load_timeout_s),
    }
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;
}

/// A worker is wanted on these devices.
#[derive(Message)]
#[rtype(result = "()")]
pub struct OpenLease {
    /// UUIDs, in the order of a model's blocks.
    pub devices: Vec<String>,
    /// Over several: the room of each.
    pub rooms_mib: Vec<u64>,
    /// Whether they are GPUs.
    pub cuda: bool,
}

impl Handler<OpenLease> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, open: OpenLease, ctx: &mut Self::Context) {
        let held = |uuid: &String| self.born.values().any(|(devices, ..)| devices.contains(uuid));
        if open.devices.iter().any(held) {
            // The wish crossed with an answer.
            return;
        }
        let number = self.next;
        self.next += 1;
        let (devices, rooms_mib) = (open.devices, open.rooms_mib);
        self.born.insert(number, (devices.clone(), Instant::now(), false));
        // On the CPU a worker holds nothing of a GPU.
        let device_mib = (!computes_on_gpu(&devices)).then(|| vec![0; devices.len()]);
        let opening = LeaseOpening {
            number,
            devices: devices.clone(),
            rooms_mib: rooms_mib.clone(),
            device_mib,
        };
        super::tell(&self.scheduler, opening);
        let wait = back_off(self.deaths.get(&devices).copied().unwrap_or(0));
        ctx.run_later(wait, move |supervisor, _| supervisor.spawn(number, (devices, rooms_mib)));
    }
}

/// A worker said hello.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Greeted {
    /// Its number.
    pub number: u64,
}

impl Handler<Greeted> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, greeted: Greeted, _: &mut Self::Context) {
        if let Some((_, _, said)) = self.born.get_mut(&greeted.number) {
            *said = true;
            self.tell(None);
        }
    }
}

/// A process is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Died {
    /// Its number.
    pub number: u64,
    /// How it ended.
    pub death: Death,
}

impl Handler<Died> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, died: Died, _: &mut Self::Context) {
        let Some((devices, since, greeted)) = self.born.remove(&died.number) else { return };
        let deaths = self.deaths.entry(devices).or_default();
        // One that said hello dies of its units or from outside: those have ceilings of their own,
        // and a new process may do better at once.
        if greeted || died.death == Death::Exit(0) {
            *deaths = 0;
            return;
        }
        tracing::warn!(after_s = since.elapsed().as_secs(), "a worker died before its hello");
        *deaths = deaths.saturating_add(1);
        if died.death != Death::Unknown {
            let why =
                format!("the last one ended by {} before its first word; see the log", died.death);
            self.tell(Some(why));
        }
    }
}

impl Handler<Alive> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, _: Alive, _: &mut Self::Context) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_to_a_minute() {
        let seconds: Vec<u64> = (0..10).map(|deaths| back_off(deaths).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
