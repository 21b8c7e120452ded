//! What the listener's verbs may hold: ways to ask, never an actor's insides.
//!
//! In: closures for the store, commands for the run. Out: answers after the transaction is
//! committed. Every way in is bounded: a full mailbox is [`AskError::Busy`], which a verb answers by
//! 503 and Retry-After. May not enter: SQL, HTTP.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::dev::SendError;
use actix::{Addr, Recipient};
use rlhfd_config::CheckedConfig;
use rlhfd_domain::{JobId, JobName, UploadId};
use rlhfd_store::{Reader, Store, StoreError};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::actors::iteration::{IterationActor, Order};
use crate::actors::store::{StoreActor, Write};
use crate::live::LiveBoard;
use crate::places::Places;

/// Reads that may run at once; each has a connection of its own.
pub const READERS_MAX: usize = 8;

/// Of these so many stay open while nothing is read: each keeps pages and statements, and the others are
/// needed in bursts only.
const READERS_IDLE: usize = 3;

/// So long a read waits for its turn: longer only where all that run hang.
const READER_WAIT: Duration = Duration::from_secs(120);

/// Why an actor or the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Too many wait already: ask again in a second.
    #[error("the daemon is busy; try again in a second")]
    Busy,
    /// The daemon is on its way out.
    #[error("the daemon is stopping; start it again and repeat the command")]
    Gone,
    /// The store refused, or its place failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The command does not fit the run's state now; a sentence with what to do.
    #[error("{0}")]
    Refused(String),
}

/// The database: one writer, several readers.
#[derive(Clone)]
pub struct StoreHandle {
    writer: Addr<StoreActor>,
    readers: Arc<Readers>,
    announce: Arc<watch::Sender<i64>>,
}

struct Readers {
    state: PathBuf,
    idle: Mutex<Vec<Reader>>,
    permits: Semaphore,
}

impl StoreHandle {
    /// Over a writer that runs and the state folder that readers open.
    #[must_use]
    pub fn new(writer: Addr<StoreActor>, state: PathBuf) -> Self {
        let readers =
            Readers { state, idle: Mutex::new(Vec::new()), permits: Semaphore::new(READERS_MAX) };
        Self { writer, readers: Arc::new(readers), announce: Arc::new(watch::Sender::new(0)) }
    }

    /// Runs a write on the store's thread and waits for its commit. It waits for its turn: the
    /// actors use it.
    ///
    /// Errors: `Gone`, or the write's own.
    pub async fn write<T, W>(&self, write: W) -> Result<T, AskError>
    where
        T: Send + 'static,
        W: FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    {
        let (message, answer) = self.packed(write);
        self.writer.send(message).await.map_err(|_| AskError::Gone)?;
        answer.await.map_err(|_| AskError::Gone)?.map_err(AskError::Store)
    }

    /// As [`Self::write`], but refused with `Busy` where the mailbox is full: verbs use it.
    pub async fn try_write<T, W>(&self, write: W) -> Result<T, AskError>
    where
        T: Send + 'static,
        W: FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    {
        let (message, answer) = self.packed(write);
        self.writer.try_send(message).map_err(|refused| match refused {
            SendError::Full(_) => AskError::Busy,
            SendError::Closed(_) => AskError::Gone,
        })?;
        answer.await.map_err(|_| AskError::Gone)?.map_err(AskError::Store)
    }

    fn packed<T, W>(&self, write: W) -> (Write, oneshot::Receiver<Result<T, StoreError>>)
    where
        T: Send + 'static,
        W: FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let announce = Arc::clone(&self.announce);
        let message = Write(Box::new(move |store| {
            let result = write(store);
            if let Err(error) = &result
                && error.disposition() == rlhfd_store::Disposition::Abort
            {
                // Whether the commit stands is not known: only opening anew tells.
                tracing::error!("the outcome of a write is unknown, starting over: {error}");
                std::process::abort();
            }
            if let Ok(last) = store.last_event() {
                announce.send_if_modified(|known| {
                    let newer = last.get() > *known;
                    *known = last.get().max(*known);
                    newer
                });
            }
            // Whoever asked may have left; the write stands.
            let _ = reply.send(result);
        }));
        (message, answer)
    }

    /// Runs a read on the blocking pool, on a connection of its own.
    ///
    /// Errors: `Gone` while stopping, or the read's own.
    pub async fn read<T, R>(&self, read: R) -> Result<T, AskError>
    where
        T: Send + 'static,
        R: FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let permit = actix_rt::time::timeout(READER_WAIT, readers.permits.acquire()).await;
        let permit = permit.map_err(|_| AskError::Busy)?.map_err(|_| AskError::Gone)?;
        let held = Arc::clone(&self.readers);
        let answer = actix_rt::task::spawn_blocking(move || held.with(read))
            .await
            .map_err(|_| AskError::Gone)?;
        drop(permit);
        answer.map_err(AskError::Store)
    }

    /// The number of the newest event; it changes when a write added one.
    #[must_use]
    pub fn events(&self) -> watch::Receiver<i64> {
        self.announce.subscribe()
    }

    /// Ends reading: waits for reads that run, and closes every idle connection, so that the
    /// writer's close finds the database alone.
    pub async fn close_readers(&self) {
        // A permit for each reader means that none is out.
        if let Ok(all) = self.readers.permits.acquire_many(READERS_MAX as u32).await {
            self.readers.permits.close();
            drop(all);
        }
        self.readers.idle().clear();
    }

    /// The writer, for the daemon's own start and stop.
    #[must_use]
    pub fn writer(&self) -> &Addr<StoreActor> {
        &self.writer
    }
}

impl Readers {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        // A panic in a read poisons nothing: the list holds only connections that were given back.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let kept = self.idle().pop();
        let reader = match kept {
            Some(reader) => reader,
            None => Reader::open(&self.state)?,
        };
        let answer = read(&reader);
        let mut idle = self.idle();
        if answer.is_ok() && idle.len() < READERS_IDLE {
            idle.push(reader);
        }
        // Where it is not kept, it is closed after the lock is given back: locals go in reverse order.
        answer
    }
}

/// What a person (or a verb on their behalf) may ask of the active run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start an iteration with the prompts that are there.
    Start,
    /// Let running units finish, then do nothing.
    Pause {
        /// For `status`.
        reason: Option<String>,
    },
    /// Go on.
    Resume,
    /// Give the prompts of an iteration back; rows stay.
    CancelIteration {
        /// By default the one that runs.
        iteration: Option<u32>,
    },
    /// Move the head to what an earlier iteration trained; 0 is the initial policy.
    RollBack {
        /// Which.
        iteration: u32,
        /// For the events.
        reason: Option<String>,
    },
    /// Keep a checkpoint's files, or let them go once they are old.
    Pin {
        /// Its name.
        checkpoint: String,
        /// Whether they stay.
        pinned: bool,
    },
    /// Cancel a training job.
    CancelJob {
        /// Which.
        job: JobName,
    },
    /// A training job on the data that an upload brought (`Places::upload_file`).
    Train {
        /// The job.
        job: JobName,
        /// The published upload.
        upload: UploadId,
    },
    /// Prompts or offline preferences were published: look whether an iteration may start.
    UploadPublished,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// A sentence.
    pub message: String,
    /// The training job that was made.
    pub job: Option<JobId>,
}

/// The way to the one orderer.
#[derive(Clone)]
pub struct IterationHandle(Recipient<Order>);

impl IterationHandle {
    /// Over the actor.
    #[must_use]
    pub fn new(actor: Addr<IterationActor>) -> Self {
        Self::to(actor.recipient())
    }

    /// Over whoever takes orders, as in tests of the verbs.
    #[must_use]
    pub fn to(recipient: Recipient<Order>) -> Self {
        Self(recipient)
    }

    /// Orders something. `uid` is the peer's, kept with the event.
    ///
    /// Errors: `Busy`, `Gone`, `Store`, or `Refused` with what to do.
    pub async fn order(&self, command: Command, uid: Option<u32>) -> Result<Told, AskError> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Order { command, uid, reply }).map_err(|refused| match refused {
            SendError::Full(_) => AskError::Busy,
            SendError::Closed(_) => AskError::Gone,
        })?;
        answer.await.map_err(|_| AskError::Gone)?
    }
}

/// All that a verb may use.
#[derive(Clone)]
pub struct AppState {
    /// The database.
    pub store: StoreHandle,
    /// Commands.
    pub iteration: IterationHandle,
    /// What goes on now: `live.now()`.
    pub live: LiveBoard,
    /// The configuration in force; it changes at SIGHUP.
    pub config: watch::Receiver<Arc<CheckedConfig>>,
    /// Where things lie.
    pub places: Arc<Places>,
    /// True once the daemon stops: streams end then.
    pub shutdown: watch::Receiver<bool>,
    /// When the daemon started, in milliseconds since the epoch.
    pub started_ms: i64,
}

/// Milliseconds since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// An error with its causes, the outermost first.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        at = cause.source();
    }
    text
}
