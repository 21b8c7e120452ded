//! Answers, commands and streams.

use std::time::Duration;

use futures_util::future::select_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{DEADLINE, Daemon, GOOD, PROMPTS};
use crate::actors::store::Write;
use crate::handles::Command;

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
async fn commands_are_ordered_as_they_were_asked() {
    let daemon = Daemon::start().await;
    daemon.post("/v1/start", b"").await;
    daemon.post("/v1/pause", b"{\"reason\": \"maintenance\"}").await;
    daemon.post("/v1/resume", b"{}").await;
    daemon.post("/v1/cancel", b"{\"iteration\": 3}").await;
    let got = daemon.post("/v1/cancel", b"{\"job\": \"reward/demo\"}").await;
    assert_eq!(got.json(), json!({"message": "done"}));
    let name = rlhfd_domain::Name::parse("demo", "training job").unwrap();
    let job = rlhfd_domain::JobName { kind: rlhfd_domain::JobKind::Reward, name };
    let expected = [
        Command::Start,
        Command::Pause { reason: Some("maintenance".to_owned()) },
        Command::Resume,
        Command::CancelIteration { iteration: Some(3) },
        Command::CancelJob { job },
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
    let newest = listed.text.lines().rfind(|line| line.starts_with('{')).unwrap();
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

#[actix_rt::test]
async fn a_daemon_that_is_busy_says_when_to_come_again() {
    let daemon = Daemon::start().await;
    // The store's thread stands still, and its mailbox is filled to the brim.
    // The mailbox has its size once the actor's thread answers.
    daemon.store.write(|store| store.last_event()).await.unwrap();
    let (go_on, still) = std::sync::mpsc::channel::<()>();
    let blocked = Write(Box::new(move |_| {
        let _ = still.recv();
    }));
    daemon.store.writer().try_send(blocked).unwrap();
    while daemon.store.writer().try_send(Write(Box::new(|_| ()))).is_ok() {}
    // An actor's mailbox keeps one more place for each address: one request may still get in.
    let mut asked: Vec<_> = [PROMPTS, "/v1/training-jobs/reward/demo", PROMPTS]
        .map(|t| Box::pin(daemon.post(t, GOOD)))
        .into();
    for _ in 0..2 {
        let (got, _, rest) = select_all(asked).await;
        assert_eq!(got.status, 503, "{}", got.text);
        assert!(got.head.contains("retry-after: 1"), "{}", got.head);
        assert!(got.error().contains("busy"));
        asked = rest;
    }
    // Reading goes on meanwhile.
    assert_eq!(daemon.get("/v1/status").await.status, 200);
    drop(go_on);
    assert!([200, 422, 503].contains(&select_all(asked).await.0.status));
}
