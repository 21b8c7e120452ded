//! The listener over real sockets: what is taken, and what is refused with which words.
//!
//! Requests are written byte by byte here, so that nothing between the test and the daemon mends them.

mod commands;
mod limits;
mod refused;
mod uploads;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Context, Handler};
use actix_web::dev::ServerHandle;
use rlhfd_config::CheckedConfig;
use rlhfd_domain::Name;
use rlhfd_store::{ModelIdentity, RunIdentity};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::{Limits, SocketFiles, bind, serve_within};
use crate::actors::iteration::Order;
use crate::actors::store::StoreActor;
use crate::handles::{AppState, Command, IterationHandle, StoreHandle, Told};
use crate::live::LiveBoard;
use crate::places::Places;

/// Long enough for a loaded machine, and never waited for where the test passes.
const DEADLINE: Duration = Duration::from_secs(30);

/// Stands in for the iteration actor: notes what was ordered.
struct Orders(Arc<Mutex<Vec<Command>>>);

impl Actor for Orders {
    type Context = Context<Self>;
}

impl Handler<Order> for Orders {
    type Result = ();

    fn handle(&mut self, order: Order, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(order.command);
        let _ = order.reply.send(Ok(Told { message: "done".to_owned(), job: None }));
    }
}

/// A daemon that is all listener and store.
struct Daemon {
    folder: tempfile::TempDir,
    socket: PathBuf,
    readers: PathBuf,
    store: StoreHandle,
    orders: Arc<Mutex<Vec<Command>>>,
    server: ServerHandle,
    stop: watch::Sender<bool>,
    _files: SocketFiles,
    _config: watch::Sender<Arc<CheckedConfig>>,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_within(Limits::OURS).await
    }

    async fn start_within(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("d.sock");
        let readers = folder.path().join("r.sock");
        let state = folder.path().join("state");
        let places = Places {
            config: folder.path().join("c.toml"),
            state: state.clone(),
            socket: socket.clone(),
        };
        std::fs::create_dir_all(places.uploads()).unwrap();
        let mut store = rlhfd_store::Store::open(&state).unwrap();
        let policy = ModelIdentity { path: "models/policy".to_owned(), sha256: "aa".to_owned() };
        let name = Name::parse("main", "run").unwrap();
        let identity = RunIdentity { name, seed: 7, policy, start_job: None, reference: None };
        store.open_run(&identity, 1).unwrap();
        let store = StoreHandle::new(StoreActor::start_with(store), state);
        let orders = Arc::new(Mutex::new(Vec::new()));
        let actor = Orders(Arc::clone(&orders)).start();
        let text =
            "[run]\npolicy = \"models/policy\"\n[[label.scorers]]\nname = \"rm\"\nmodel = \"rm\"\n";
        let config = CheckedConfig::from_text(text, folder.path()).unwrap();
        let (config, config_watch) = watch::channel(Arc::new(config));
        let (stop, shutdown) = watch::channel(false);
        let app = AppState {
            store: store.clone(),
            iteration: IterationHandle::to(actor.recipient()),
            live: LiveBoard::new(),
            config: config_watch,
            places: Arc::new(places),
            shutdown,
            started_ms: 1,
        };
        let (listeners, files) =
            bind(&socket, Some(&readers), crate::rights::Groups::default()).unwrap();
        let server = serve_within(app, listeners, limits).unwrap();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self {
            folder,
            socket,
            readers,
            store,
            orders,
            server: handle,
            stop,
            _files: files,
            _config: config,
        }
    }

    async fn get(&self, target: &str) -> Got {
        ask(&self.socket, &request("GET", target, "", b"")).await
    }

    async fn post(&self, target: &str, body: &[u8]) -> Got {
        ask(&self.socket, &request("POST", target, "", body)).await
    }

    async fn sql(&self, sql: &str) -> Value {
        let body = json!({ "sql": sql }).to_string();
        let got = self.post("/v1/sql", body.as_bytes()).await;
        assert_eq!(got.status, 200, "{}", got.text);
        got.json()["rows"].clone()
    }

    /// Asks until `sql` gives `expected`.
    async fn until(&self, sql: &str, expected: Value) {
        let wait = async {
            while self.sql(sql).await != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap();
    }

    /// Nothing of any upload is visible, and nothing lies about.
    async fn assert_empty(&self) {
        self.until("select count(*) FROM prompts", json!([[0]])).await;
        self.until("select count(*) FROM uploads WHERE state = 'open'", json!([[0]])).await;
        assert_eq!(self.get("/v1/prompt-sets").await.json()["prompt_sets"], json!([]));
        let uploads = self.folder.path().join("state/uploads");
        assert_eq!(std::fs::read_dir(uploads).unwrap().count(), 0);
    }
}

/// An answer.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    text: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// What, where and how to mend: none may be empty.
    fn error(&self) -> String {
        let error = self.json()["error"].clone();
        for part in ["what", "where", "mend"] {
            assert!(error[part].as_str().is_some_and(|text| !text.is_empty()), "{}", self.text);
        }
        error.to_string()
    }
}

fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Sends bytes as they are and reads to the end.
async fn ask(socket: &Path, bytes: &[u8]) -> Got {
    let talk = async {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let bytes = bytes.to_vec();
        let sent = actix_rt::spawn(async move {
            // The daemon may answer and close before it has read all.
            let _ = write.write_all(&bytes).await;
            write
        });
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        drop(sent.await);
        parse(&answer)
    };
    tokio::time::timeout(DEADLINE, talk).await.unwrap()
}

fn parse(answer: &[u8]) -> Got {
    let text = String::from_utf8_lossy(answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Got { status, head: head.to_lowercase(), text: body.to_owned() }
}

const GOOD: &[u8] = b"{\"prompt\": \"one\"}\n\n{\"prompt\": \"two\"}\r\n{\"prompt\": \"one\"}";
const PROMPTS: &str = "/v1/prompt-sets/own/prompts";
const REWARD: &str = "/v1/training-jobs/reward/demo";
const SFT: &str = "/v1/training-jobs/sft/demo";
