//! The daemon: order of start, life, and the reverse order of stop.
//!
//! ```text
//! configuration → lock → database → in order again → actors → socket → ready
//! ```
//! In: places and a checked configuration. Out: an exit code. May not enter: what any actor does.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use rlhfd_config::{CheckedConfig, ConfigError};
use rlhfd_store::{DiskKind, NewEvent, Store, StoreError};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::actors;
use crate::actors::evaluation::EvaluationActor;
use crate::actors::generation::GenerationActor;
use crate::actors::iteration::{IterationActor, OrderContext};
use crate::actors::labelling::LabellingActor;
use crate::actors::pairing::PairingActor;
use crate::actors::scheduler::{Heard, Meet, SchedulerActor, Stop};
use crate::actors::stage::{StageContext, Stages};
use crate::actors::store::{Close, StoreActor};
use crate::actors::supervisor::SupervisorActor;
use crate::actors::training::TrainingActor;
use crate::actors::worker::WorkerContext;
use crate::adopt::{AdoptError, adopt};
use crate::advance::tidy::Stuck;
use crate::exit;
use crate::gpu::nvml::NvmlProbe;
use crate::gpu::xids::{self, Listening};
use crate::handles::{AppState, Command, IterationHandle, StoreHandle, now_ms, with_causes};
use crate::health::{self, Health};
use crate::listener::{self, BindError};
use crate::live::LiveBoard;
use crate::log_watch;
use crate::models::Models;
use crate::notify::Manager;
use crate::overdue;
use crate::places::{Asked, PlaceError, Places};
use crate::platform;
use crate::reload::reload;
use crate::rights::{self, Groups};
use crate::stages::unsound;
use crate::watchdog::{self, Core};

/// Between two questions whether the workers are gone.
const STOP_POLL: Duration = Duration::from_millis(20);
/// So long the run's opening is waited for before the socket is served.
const OPEN_WAIT: Duration = Duration::from_secs(2);
/// So long one try to open the state folder may take, for the service manager.
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
/// So long the database's readers, and then its writer, may take to end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// After a kill, this long for the processes to be reaped.
const KILL_WAIT: Duration = Duration::from_secs(3);

/// Why the daemon did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What an earlier daemon left.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The system.
    #[error("the system refused: {0}")]
    Io(#[from] std::io::Error),
}

impl StartError {
    /// What the service manager is told.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Place(error) => error.exit_code(),
            Self::Bind(error) => error.exit_code(),
            Self::Store(error) | Self::Adopt(AdoptError::Store(error)) => match error {
                // The place may be well again later; the service manager tries.
                StoreError::Disk { .. }
                | StoreError::OutcomeUnknown { .. }
                | StoreError::Busy { .. } => exit::BUSY,
                StoreError::Place { source, .. } => exit::of_place(source),
                _ => exit::CONFIG,
            },
            Self::Adopt(AdoptError::Io { source, .. }) => exit::of_place(source),
            Self::Config(_) => exit::CONFIG,
            Self::Io(_) => exit::SOFTWARE,
        }
    }

    /// Whether a disk that is full or fails kept it from coming up: then it waits until the disk is well. One
    /// that is read-only may be a mistake of the configuration, for which nobody should wait.
    fn may_pass(&self) -> bool {
        match self {
            Self::Place(PlaceError::Io { source, .. })
            | Self::Store(StoreError::Place { source, .. })
            | Self::Adopt(
                AdoptError::Io { source, .. } | AdoptError::Store(StoreError::Place { source, .. }),
            ) => health::may_pass(source),
            Self::Store(error) | Self::Adopt(AdoptError::Store(error)) => matches!(
                error,
                StoreError::Disk { kind: DiskKind::Full | DiskKind::Io, .. }
                    | StoreError::OutcomeUnknown { .. }
            ),
            Self::Place(_) | Self::Config(_) | Self::Bind(_) | Self::Io(_) => false,
        }
    }
}

/// Runs until a signal says otherwise.
#[must_use]
pub fn run(asked: &Asked) -> ExitCode {
    platform::give_memory_back();
    platform::mark_core_thread();
    platform::install_panic_hook();
    let lived = platform::runtime().map_err(StartError::Io).and_then(|runtime| {
        let system = System::with_tokio_rt(|| runtime);
        system.block_on(live(asked))
    });
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

async fn live(asked: &Asked) -> Result<(), StartError> {
    rights::keep_others_out();
    let _file_size = platform::survive_file_size_limit()?;
    let mut signals = Signals::new()?;
    let places = Arc::new(Places::find(asked, |name| std::env::var_os(name))?);
    let config = CheckedConfig::load(&places.config)?;
    let readers_socket: Option<PathBuf> =
        config.control.readers_socket.as_ref().map(|place| place.path.clone());
    let manager = Manager::named(std::env::var_os("NOTIFY_SOCKET").as_deref());
    let groups = Groups::ours();
    let Some((_lock, store)) = opened(&places, &config, groups, &manager, &mut signals).await?
    else {
        return Ok(());
    };
    let (listeners, socket_files) =
        listener::bind(&places.socket, readers_socket.as_deref(), groups)?;

    let (config, configs) = watch::channel(Arc::new(config));
    let (stopping, shutdown) = watch::channel(false);
    let daemon = Daemon::start(store, &places, configs.clone());
    let iteration = IterationHandle::new(daemon.iteration.clone());
    // Who asks first finds the run open; a large model's sum is not waited for.
    let opened = iteration.order(Command::UploadPublished, None);
    let _ = actix_rt::time::timeout(OPEN_WAIT, opened).await;
    let knobs = configs.clone();
    let app = AppState {
        store: daemon.store.clone(),
        iteration,
        live: daemon.live.clone(),
        config: configs,
        places: Arc::clone(&places),
        shutdown,
        started_ms: now_ms(),
    };
    let server = listener::serve(app, listeners)?;
    let handle = server.handle();
    let serving = actix_rt::spawn(server);
    tracing::info!(
        socket = %places.socket.display(),
        state = %places.state.display(),
        "rlhfd {} serves",
        env!("CARGO_PKG_VERSION")
    );
    manager.tell(&[NotifyState::Ready]);
    let keep = watchdog::keep(daemon.cores(), daemon.live.clone(), manager.clone());
    let watchdog = actix_rt::spawn(keep);
    let (live, store) = (daemon.live.clone(), daemon.store.clone());
    actix_rt::spawn(overdue::keep(daemon.cores(), live, store, knobs));
    signals.until_stop(&places, &config, &daemon.store, &manager).await;

    let longest = extended(Duration::from_secs(config.borrow().scheduler.stop_timeout_s));
    manager.tell(&[NotifyState::Stopping, NotifyState::Status("workers leave"), longest]);
    // Streams end first: an open one would hold the server up.
    stopping.send_replace(true);
    daemon.drain(&mut signals, &config.borrow().clone()).await;
    watchdog.abort();
    // Whatever was left of the time: the database is to be closed.
    manager.tell(&[NotifyState::Status("the database is closed"), extended(Duration::ZERO)]);
    handle.stop(true).await;
    // The server's own end holds nothing of ours.
    let _ = serving.await;
    daemon.close().await?;
    drop(socket_files);
    tracing::info!("stopped");
    Ok(())
}

/// The state folder, in order again. A disk that is full or fails is waited for; none where a signal came
/// first.
async fn opened(
    places: &Places,
    config: &CheckedConfig,
    groups: Groups,
    manager: &Manager,
    signals: &mut Signals,
) -> Result<Option<(File, Store)>, StartError> {
    let again = Duration::from_millis(config.store.disk_probe_ms);
    let mut told = String::new();
    loop {
        let error = match open(places, groups) {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) if error.may_pass() => with_causes(&error),
            Err(error) => return Err(error),
        };
        if error != told {
            tracing::error!("{error}; it is tried again until the disk is well");
            told = error;
        }
        let patience = again.saturating_add(OPEN_PATIENCE).as_micros();
        let patience = u32::try_from(patience).unwrap_or(u32::MAX);
        manager.mention(&[NotifyState::Status(&told), NotifyState::ExtendTimeoutUsec(patience)]);
        tokio::select! {
            () = signals.again() => return Ok(None),
            () = actix_rt::time::sleep(again) => {}
        }
    }
}

fn open(places: &Places, groups: Groups) -> Result<(File, Store), StartError> {
    let lock = places.lock(groups)?;
    let mut store = Store::open(&places.state)?;
    tell_copy(&mut store, places)?;
    adopt(&mut store, places)?;
    Ok((lock, store))
}

/// An older schema was brought to this version's: where the copy from before lies.
fn tell_copy(store: &mut Store, places: &Places) -> Result<(), StoreError> {
    let Some(copy) = store.copied() else { return Ok(()) };
    let copy = places.relative(copy);
    let text = format!("the database has this version's schema now; {copy} is what it was before");
    tracing::info!("{text}");
    store.append_event(&NewEvent::about("database_migrated", text), now_ms())?;
    Ok(())
}

/// What a stop may take from now on: workers are waited for, then killed and reaped; requests and readings
/// end, and the database's last write.
fn extended(workers: Duration) -> NotifyState<'static> {
    let end = 2 * KILL_WAIT + Duration::from_secs(listener::STOP_TIMEOUT_S) + 2 * CLOSE_WAIT;
    let all = (workers + end).as_micros();
    NotifyState::ExtendTimeoutUsec(u32::try_from(all).unwrap_or(u32::MAX))
}

/// The actors that the rest is reached through. Dropping an address may end an actor: all are kept.
struct Daemon {
    store: StoreHandle,
    scheduler: Addr<SchedulerActor>,
    iteration: Addr<IterationActor>,
    live: LiveBoard,
    supervisor: Addr<SupervisorActor>,
    _stages: Stages,
    _listening: Listening,
}

impl Daemon {
    fn start(
        store: Store,
        places: &Arc<Places>,
        config: watch::Receiver<Arc<CheckedConfig>>,
    ) -> Self {
        let store = StoreHandle::new(StoreActor::start_with(store), places.state.clone());
        let live = LiveBoard::new();
        let health = Health::new(places.state.clone(), live.clone());
        actix_rt::spawn(health.clone().keep(config.clone()));
        actix_rt::spawn(log_watch::keep(store.clone(), places.database(), config.clone()));
        let stage =
            StageContext { store: store.clone(), places: Arc::clone(places), config, health };
        let stages = Stages {
            generation: GenerationActor::start_with(stage.clone()),
            labelling: LabellingActor::start_with(stage.clone()),
            pairing: PairingActor::start_with(stage.clone()),
            training: TrainingActor::start_with(stage.clone()),
            evaluation: EvaluationActor::start_with(stage.clone()),
        };
        actix_rt::spawn(unsound::after_start(stage.clone()));
        let scheduler =
            SchedulerActor::start_with(stage.clone(), live.clone(), Arc::new(NvmlProbe::default()));
        let supervisor = SupervisorActor::start_with(WorkerContext {
            stage: stage.clone(),
            stages: stages.clone(),
            scheduler: scheduler.clone(),
            live: live.clone(),
        });
        let order = OrderContext {
            stage,
            stages: stages.clone(),
            live: live.clone(),
            models: Arc::new(Models::default()),
            stuck: Stuck::default(),
        };
        let iteration = IterationActor::start_with(order, scheduler.clone());
        actors::tell(
            &scheduler,
            Meet { supervisor: supervisor.clone(), iteration: iteration.clone() },
        );
        let errors = scheduler.clone();
        // A full mailbox loses one: the device's own counters tell of it at the next look.
        let listening = xids::listen(move |error| drop(errors.try_send(Heard(error))));
        let (_stages, _listening) = (stages, listening);
        Self { store, scheduler, iteration, live, supervisor, _stages, _listening }
    }

    /// Those without which nothing goes on.
    fn cores(&self) -> Vec<Core> {
        vec![
            Core::store(&self.store),
            Core::actor("iteration", &self.iteration),
            Core::actor("scheduler", &self.scheduler),
            Core::actor("supervisor", &self.supervisor),
        ]
    }

    /// Workers give back what they have; a training saves its state where there is time. What is not gone
    /// in time is killed: nothing is lost by that but the work since the last save.
    async fn drain(&self, signals: &mut Signals, config: &CheckedConfig) {
        let wait = Duration::from_secs(config.scheduler.stop_timeout_s);
        let gone = self.until_no_worker(Stop { now: false });
        tokio::select! {
            () = gone => return,
            () = actix_rt::time::sleep(wait) => {
                tracing::warn!("workers are not gone after {} s", wait.as_secs());
            }
            () = signals.again() => tracing::warn!("asked twice: workers are not waited for"),
        }
        let gone = self.until_no_worker(Stop { now: true });
        if actix_rt::time::timeout(KILL_WAIT, gone).await.is_err() {
            tracing::warn!("killed workers are not reaped; they die with the daemon");
        }
    }

    async fn until_no_worker(&self, stop: Stop) {
        while self.scheduler.send(Stop { now: stop.now }).await.is_ok_and(|left| left > 0) {
            actix_rt::time::sleep(STOP_POLL).await;
        }
    }

    /// The last write is committed, then the side files go. What does not come to its end in time is cut
    /// off: the next start makes it good.
    async fn close(self) -> Result<(), StartError> {
        if actix_rt::time::timeout(CLOSE_WAIT, self.store.close_readers()).await.is_err() {
            tracing::warn!("a reading of the database (a backup?) does not end: it is cut off");
        }
        match actix_rt::time::timeout(CLOSE_WAIT, self.store.writer().send(Close)).await {
            Ok(Ok(closed)) => {
                if !closed? {
                    tracing::warn!("another program reads the database: its log stays beside it");
                }
            }
            Ok(Err(_)) => {}
            Err(_) => tracing::warn!("the database is not closed in time: its log stays beside it"),
        }
        Ok(())
    }
}

async fn keep_event(store: StoreHandle, event: NewEvent) {
    if let Err(error) = store.write(move |s| s.append_event(&event, now_ms())).await {
        tracing::warn!("an event is lost: {error}");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Until SIGTERM or SIGINT; SIGHUP reads the configuration again.
    async fn until_stop(
        &mut self,
        places: &Places,
        config: &watch::Sender<Arc<CheckedConfig>>,
        store: &StoreHandle,
        manager: &Manager,
    ) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    manager.tell(&[NotifyState::Reloading]);
                    let event = reload(places, config);
                    manager.tell(&[NotifyState::Ready]);
                    // A store that hangs must not keep a signal to stop from being heard.
                    actix_rt::spawn(keep_event(store.clone(), event));
                }
            }
        }
    }

    async fn again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
