//! The listener over real sockets: what is taken, and what is refused with which words.
//!
//! Requests are written byte by byte here, so that nothing between the test and the daemon mends them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Context, Handler};
use actix_web::dev::ServerHandle;
use rlhfd_config::CheckedConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::{SocketFiles, bind, serve};
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
    orders: Arc<Mutex<Vec<Command>>>,
    server: ServerHandle,
    stop: watch::Sender<bool>,
    _files: SocketFiles,
    _config: watch::Sender<Arc<CheckedConfig>>,
}

impl Daemon {
    async fn start() -> Self {
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
        let store = rlhfd_store::Store::open(&state).unwrap();
        let store = StoreHandle::new(StoreActor::start_with(store), state);
        let orders = Arc::new(Mutex::new(Vec::new()));
        let actor = Orders(Arc::clone(&orders)).start();
        let text =
            "[run]\npolicy = \"models/policy\"\n[[label.scorers]]\nname = \"rm\"\nmodel = \"rm\"\n";
        let config = CheckedConfig::from_text(text, folder.path()).unwrap();
        let (config, config_watch) = watch::channel(Arc::new(config));
        let (stop, shutdown) = watch::channel(false);
        let app = AppState {
            store,
            iteration: IterationHandle::to(actor.recipient()),
            live: LiveBoard::new(),
            config: config_watch,
            places: Arc::new(places),
            shutdown,
            started_ms: 1,
        };
        let (listeners, files) = bind(&socket, Some(&readers)).unwrap();
        let server = serve(app, listeners).unwrap();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self {
            folder,
            socket,
            readers,
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
        self.until("SELECT count(*) FROM prompts", json!([[0]])).await;
        self.until("SELECT count(*) FROM uploads WHERE state = 'open'", json!([[0]])).await;
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

#[actix_rt::test]
async fn what_there_is_answers_in_json() {
    let daemon = Daemon::start().await;
    for target in [
        "/v1",
        "/v1/status",
        "/v1/runs",
        "/v1/prompt-sets",
        "/v1/iterations",
        "/v1/checkpoints",
        "/v1/training-jobs",
    ] {
        let got = daemon.get(target).await;
        assert_eq!(got.status, 200, "{target}: {}", got.text);
        assert!(got.json().is_object(), "{target}");
        assert!(got.head.contains("rlhfd-version: "), "{}", got.head);
    }
}

#[actix_rt::test]
async fn requests_that_make_no_sense_are_refused_with_words() {
    let daemon = Daemon::start().await;
    let big = format!("{{\"sql\": \"{}\"}}", "x".repeat(200 << 10));
    let long_name = format!("/v1/prompt-sets/{}/prompts", "x".repeat(100));
    let table: &[(&str, &str, &str, &[u8], u16, &str)] = &[
        ("GET", "/", "", b"", 404, "no such thing"),
        ("GET", "/v2/status", "", b"", 404, "no such thing"),
        ("GET", "/v1/../../etc/passwd", "", b"", 404, "no such thing"),
        ("DELETE", "/v1/status", "", b"", 405, "send GET"),
        ("POST", "/v1/status", "", b"{}", 405, "send GET"),
        ("GET", "/v1/start", "", b"", 405, "send POST"),
        ("BREW", "/v1/start", "", b"", 405, "send POST"),
        ("POST", "/v1/start", "", b"{", 400, "cannot be read"),
        ("POST", "/v1/start", "", b"[]", 400, "cannot be read"),
        ("POST", "/v1/start", "", b"\xff\xfe", 400, "cannot be read"),
        ("POST", "/v1/start", "", b"{\"now\": true}", 400, "unknown field"),
        ("POST", "/v1/start", "", b"{\"reason\": \"x\"}", 400, "means nothing here"),
        ("POST", "/v1/pause", "", b"{\"iteration\": 1}", 400, "it takes reason"),
        ("POST", "/v1/pause", "", b"{\"reason\": 3}", 400, "cannot be read"),
        ("POST", "/v1/cancel", "", b"{\"iteration\": 0}", 400, "no iteration has this number"),
        ("POST", "/v1/cancel", "", b"{\"iteration\": -1}", 400, "cannot be read"),
        ("POST", "/v1/cancel", "", b"{\"job\": \"demo\"}", 400, "reward/NAME"),
        ("POST", "/v1/cancel", "", b"{\"job\": \"reward/../x\"}", 400, "no name"),
        ("POST", "/v1/cancel", "", b"{\"job\": \"reward/a\", \"iteration\": 1}", 400, "name one"),
        ("POST", "/v1/sql", "", b"{}", 400, "missing field"),
        ("POST", "/v1/sql", "", big.as_bytes(), 413, "longer than 128 KiB"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"DELETE FROM prompts\"}", 403, "only one SELECT"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"SELEC 1\"}", 400, "syntax"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"SELECT 1; SELECT 2\"}", 403, "one statement"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"ATTACH 'x.db' AS x\"}", 403, "only one SELECT"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"\"}", 403, "empty"),
        ("POST", PROMPTS, "Content-Encoding: gzip\r\n", b"x", 415, "compressed"),
        ("POST", "/v1/prompt-sets/own/prompts?reserve=2", "", GOOD, 400, "share of 2"),
        ("POST", "/v1/prompt-sets/own/prompts?reserve=NaN", "", GOOD, 400, "share of NaN"),
        ("POST", "/v1/prompt-sets/own/prompts?reserve=much", "", GOOD, 400, "query cannot be read"),
        ("POST", "/v1/prompt-sets/own/prompts?colour=red", "", GOOD, 400, "unknown field"),
        ("POST", "/v1/prompt-sets/own/prompts?client_key=", "", GOOD, 400, "client key"),
        ("POST", "/v1/prompt-sets/own/prompts?client_key=a%0Ab", "", GOOD, 400, "client key"),
        ("POST", "/v1/prompt-sets/Own/prompts", "", GOOD, 400, "no name for a prompt set"),
        ("POST", "/v1/prompt-sets/%2e%2e/prompts", "", GOOD, 400, "no name for a prompt set"),
        ("POST", "/v1/prompt-sets/..%2F..%2Fx/prompts", "", GOOD, 400, "no name for a prompt set"),
        ("POST", "/v1/prompt-sets/a%00b/prompts", "", GOOD, 400, "no name for a prompt set"),
        ("POST", &long_name, "", GOOD, 400, "no name for a prompt set"),
        ("POST", "/v1/training-jobs/reward/..%2Fx", "", GOOD, 400, "no name for a training job"),
        ("POST", "/v1/training-jobs/sft/x", "", GOOD, 404, "no such thing"),
        ("GET", "/v1/events?since=yesterday", "", b"", 400, "query cannot be read"),
        ("GET", "/v1/events", "Last-Event-ID: x\r\n", b"", 400, "Last-Event-ID is no number"),
        ("GET", "/v1/checkpoints?lineage=nobody", "", b"", 404, "nobody"),
    ];
    for (method, target, headers, body, status, words) in table {
        let got = ask(&daemon.socket, &request(method, target, headers, body)).await;
        assert_eq!(got.status, *status, "{method} {target}: {}", got.text);
        let error = got.error();
        assert!(error.contains(words), "{method} {target}: {error}");
    }
    daemon.assert_empty().await;
    assert_eq!(*daemon.orders.lock().unwrap(), []);
}

#[actix_rt::test]
async fn heads_that_are_no_http_are_refused_and_the_daemon_lives_on() {
    let daemon = Daemon::start().await;
    let huge =
        format!("GET /v1/status HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n", "x".repeat(200 << 10));
    let many = format!("GET /v1/status HTTP/1.1\r\nHost: d\r\n{}\r\n", "X: y\r\n".repeat(500));
    let lengths =
        "POST /v1/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}";
    for (bytes, status) in [
        (huge.as_bytes(), 431),
        (many.as_bytes(), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".as_slice(), 400),
        (b"GET /v1/status\r\n\r\n".as_slice(), 400),
        (lengths.as_bytes(), 400),
    ] {
        let got = ask(&daemon.socket, bytes).await;
        assert_eq!(got.status, status, "{}", got.head);
    }
    assert_eq!(daemon.get("/v1/status").await.status, 200);
}

#[actix_rt::test]
async fn a_good_upload_is_counted_and_its_retry_harmless() {
    let daemon = Daemon::start().await;
    let target = format!("{PROMPTS}?client_key=k1");
    let got = daemon.post(&target, GOOD).await;
    assert_eq!(got.status, 200, "{}", got.text);
    let expected = json!({
        "set": "own", "lines": 3, "added": 2, "reserved": 0, "duplicates": 1, "bad": 0, "repeated": false,
    });
    assert_eq!(got.json(), expected);
    let again = daemon.post(&target, GOOD).await.json();
    assert_eq!((&again["added"], &again["repeated"]), (&json!(2), &json!(true)));
    let without_key = daemon.post(PROMPTS, GOOD).await.json();
    assert_eq!((&without_key["added"], &without_key["duplicates"]), (&json!(0), &json!(3)));
    let sets = daemon.get("/v1/prompt-sets").await.json();
    assert_eq!(sets["prompt_sets"][0]["fresh"], json!(2));
    assert_eq!(daemon.orders.lock().unwrap().first(), Some(&Command::PromptsPublished));
    // The kernel's word on who asked stands in the events.
    let uid = rustix::process::getuid().as_raw();
    let rows = daemon.sql("SELECT DISTINCT uid FROM events WHERE kind = 'command'").await;
    assert_eq!(rows, json!([[uid]]));
}

#[actix_rt::test]
async fn bad_lines_are_named_and_nothing_is_kept() {
    let daemon = Daemon::start().await;
    let mut long = b"{\"prompt\": \"".to_vec();
    long.resize(10_000_000, b'x');
    let bad: &[(&[u8], &str)] = &[
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"{", "is not JSON"),
        (b"{\"prompt\": 3}", "`prompt` is a number"),
        (b"{\"prompt\": \"\xff\"}", "is not UTF-8"),
        (b"{\"messages\": []}", "`messages` is empty"),
        (b"{\"messages\": [{\"role\": \"user\"}]}", "has no `content`"),
        (b"[1, 2]", "is an array"),
        (&long, "longer than 4 MiB"),
    ];
    for (line, reason) in bad {
        // Enough good rows before and after it that batches were on their way.
        let mut body = Vec::new();
        if !line.iter().all(u8::is_ascii_whitespace) {
            for i in 0..2_500 {
                body.extend_from_slice(format!("{{\"prompt\": \"p{i}\"}}\n").as_bytes());
            }
        }
        body.extend_from_slice(line);
        body.extend_from_slice(b"\n");
        let got = daemon.post(PROMPTS, &body).await;
        assert_eq!(got.status, 422, "{reason}: {}", got.text);
        assert!(got.error().contains(reason), "{reason}: {}", got.error());
        if body.len() > line.len() + 1 {
            assert_eq!(got.json()["error"]["lines"][0]["line"], json!(2_501));
        }
    }
    daemon.assert_empty().await;
}

#[actix_rt::test]
async fn bad_lines_may_be_left_out() {
    let daemon = Daemon::start().await;
    let body = b"{\"prompt\": \"one\"}\nnonsense\n{\"prompt\": \"two\"}\n{}\n";
    let got = daemon.post(&format!("{PROMPTS}?skip_bad=true&reserve=0.5"), body).await.json();
    assert_eq!((&got["lines"], &got["added"], &got["bad"]), (&json!(4), &json!(2), &json!(2)));
    assert_eq!(got["bad_lines"][1]["line"], json!(4));
    let all_bad = daemon.post(&format!("{PROMPTS}?skip_bad=true"), b"{}\n{}\n").await;
    assert_eq!(all_bad.status, 422);
    assert!(all_bad.error().contains("all 2 lines are bad"));
}

#[actix_rt::test]
async fn an_upload_that_is_cut_off_leaves_nothing() {
    let daemon = Daemon::start().await;
    for target in [PROMPTS, REWARD] {
        let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nHost: d\r\nContent-Length: 9000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for i in 0..5_000 {
            let line =
                format!("{{\"prompt\": \"p{i}\", \"chosen\": \"a\", \"rejected\": \"b\"}}\n");
            stream.write_all(line.as_bytes()).await.unwrap();
        }
        daemon.until("SELECT count(*) FROM uploads WHERE state = 'open'", json!([[1]])).await;
        drop(stream);
        daemon.assert_empty().await;
    }
    daemon.until("SELECT count(*) FROM uploads WHERE state = 'failed'", json!([[2]])).await;
}

#[actix_rt::test]
async fn a_slow_upload_holds_nobody_up() {
    let daemon = Daemon::start().await;
    let mut slow = UnixStream::connect(&daemon.socket).await.unwrap();
    let head = format!(
        "POST {PROMPTS} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(b"5\r\n{\"pro\r\n").await.unwrap();
    daemon.until("SELECT count(*) FROM uploads WHERE state = 'open'", json!([[1]])).await;
    let other = daemon.post("/v1/prompt-sets/other/prompts", GOOD).await;
    assert_eq!(other.status, 200, "{}", other.text);
    assert_eq!(daemon.get("/v1/status").await.status, 200);
    slow.write_all(b"a\r\nmpt\": \"x\"}\r\n0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).status, 200, "{}", String::from_utf8_lossy(&answer));
}

#[actix_rt::test]
async fn preferences_become_a_file_and_a_job() {
    let daemon = Daemon::start().await;
    let body = b"{\"prompt\": \"Q\", \"chosen\": \"a\", \"rejected\": \"b\"}\n{\"prompt\": \"R\", \"chosen\": \"c\", \"rejected\": \"d\"}\n";
    let got = daemon.post(REWARD, body).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert_eq!((&got.json()["job"], &got.json()["examples"]), (&json!("reward/demo"), &json!(2)));
    let orders = daemon.orders.lock().unwrap().clone();
    let [Command::TrainReward { name, upload }] = orders.as_slice() else { panic!("{orders:?}") };
    assert_eq!(name.as_str(), "demo");
    let file = daemon.folder.path().join(format!("state/uploads/{upload}.jsonl"));
    let lines = std::fs::read_to_string(file).unwrap();
    assert_eq!(
        lines.lines().next().unwrap(),
        r#"{"chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"Q"},{"role":"assistant","content":"b"}]}"#
    );
}

#[actix_rt::test]
async fn bad_preferences_are_named_and_leave_nothing() {
    let daemon = Daemon::start().await;
    for (line, reason) in [
        (r#"{"chosen": "a", "rejected": "b"}"#, "there is no `prompt`"),
        (r#"{"prompt": "Q", "chosen": "a"}"#, "has no `rejected`"),
        (r#"{"prompt": "Q", "chosen": "a", "rejected": "a"}"#, "are the same"),
        (
            r#"{"chosen": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]}"#,
            "prompts of `chosen` and `rejected` differ",
        ),
    ] {
        let line = line.replace('\n', " ");
        let got = daemon.post(REWARD, line.as_bytes()).await;
        assert_eq!(got.status, 422, "{}", got.text);
        assert!(got.error().contains(reason), "{}", got.error());
    }
    daemon.assert_empty().await;
    assert_eq!(*daemon.orders.lock().unwrap(), []);
}

#[actix_rt::test]
async fn the_readers_socket_takes_no_writes() {
    let daemon = Daemon::start().await;
    let to_readers = async |method: &str, target: &str, body: &[u8]| {
        ask(&daemon.readers, &request(method, target, "", body)).await
    };
    for target in ["/v1/start", "/v1/pause", "/v1/resume", "/v1/cancel", PROMPTS, REWARD] {
        let got = to_readers("POST", target, b"{}").await;
        assert_eq!(got.status, 403, "{target}: {}", got.text);
        assert!(got.error().contains("this socket is for reading"));
    }
    assert_eq!(to_readers("DELETE", "/v1/sql", b"").await.status, 405);
    assert_eq!(to_readers("GET", "/v1/status", b"").await.status, 200);
    let sql = to_readers("POST", "/v1/sql", b"{\"sql\": \"SELECT 1 AS one, x'00ff' AS b\"}").await;
    assert_eq!(
        sql.json(),
        json!({"columns": ["one", "b"], "rows": [[1, "00ff"]], "truncated": false})
    );
    daemon.assert_empty().await;
    assert_eq!(*daemon.orders.lock().unwrap(), []);
}

#[actix_rt::test]
async fn commands_are_ordered_as_they_were_asked() {
    let daemon = Daemon::start().await;
    daemon.post("/v1/start", b"").await;
    daemon.post("/v1/pause", b"{\"reason\": \"maintenance\"}").await;
    daemon.post("/v1/resume", b"{}").await;
    daemon.post("/v1/cancel", b"{\"iteration\": 3}").await;
    let got = daemon.post("/v1/cancel", b"{\"job\": \"reward/demo\"}").await;
    assert_eq!(got.json(), json!({"message": "done"}));
    let name = rlhfd_domain::Name::parse("demo", "training job").unwrap();
    let expected = [
        Command::Start,
        Command::Pause { reason: Some("maintenance".to_owned()) },
        Command::Resume,
        Command::CancelIteration { iteration: Some(3) },
        Command::CancelJob { name },
    ];
    assert_eq!(*daemon.orders.lock().unwrap(), expected);
}

#[actix_rt::test]
async fn a_large_result_is_cut_and_says_so() {
    let daemon = Daemon::start().await;
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let body = json!({ "sql": sql, "rows_max": 10 }).to_string();
    let got = daemon.post("/v1/sql", body.as_bytes()).await.json();
    assert_eq!(got["rows"].as_array().unwrap().len(), 10);
    assert_eq!(got["truncated"], json!(true));
}

#[actix_rt::test]
async fn events_are_listed_followed_and_end_with_the_daemon() {
    let daemon = Daemon::start().await;
    daemon.post(PROMPTS, GOOD).await;
    let listed = daemon.get("/v1/events?last=1000").await;
    let newest = listed.text.lines().filter(|line| line.starts_with('{')).next_back().unwrap();
    let newest: Value = serde_json::from_str(newest).unwrap();
    let id = newest["id"].as_i64().unwrap();

    let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
    let head = format!(
        "GET /v1/events HTTP/1.1\r\nHost: d\r\nConnection: close\r\nAccept: text/event-stream\r\nLast-Event-ID: {}\r\n\r\n",
        id - 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = String::new();
    until_seen(&mut stream, &mut seen, &format!("id: {id}\n")).await;
    assert!(seen.to_lowercase().contains("content-type: text/event-stream"), "{seen}");
    // What happens now arrives by itself.
    daemon.post("/v1/prompt-sets/more/prompts", b"{\"prompt\": \"three\"}").await;
    until_seen(&mut stream, &mut seen, "prompts for more").await;
    // A stream that is open must not hold the daemon's stop.
    daemon.stop.send_replace(true);
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(3), daemon.server.stop(true)).await;
    assert!(stopped.is_ok(), "the server did not stop by itself");
}

async fn until_seen(stream: &mut UnixStream, seen: &mut String, words: &str) {
    let read = async {
        let mut buffer = [0; 4096];
        while !seen.contains(words) {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the stream ended before {words:?}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap();
}
