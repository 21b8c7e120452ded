//! What peers may take, each limit small enough to be met here.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{DEADLINE, Daemon, ask, request};
use crate::listener::Limits;

/// Until the daemon closes the connection; what it said.
async fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(DEADLINE, read).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[actix_rt::test]
async fn a_head_that_does_not_come_to_an_end_is_not_waited_for() {
    let limits = Limits { head: Duration::from_millis(200), ..Limits::OURS };
    let daemon = Daemon::start_within(limits).await;
    for begun in ["", "GET /v1/status HT", "GET /v1/status HTTP/1.1\r\nHost: d\r\n"] {
        let mut slow = UnixStream::connect(&daemon.socket).await.unwrap();
        slow.write_all(begun.as_bytes()).await.unwrap();
        let said = rest(&mut slow).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{begun:?}: {said}");
    }
}

#[actix_rt::test]
async fn one_byte_after_the_other_does_not_hold_a_connection() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::OURS };
    let daemon = Daemon::start_within(limits).await;
    let (mut read, mut write) = UnixStream::connect(&daemon.socket).await.unwrap().into_split();
    let drip = actix_rt::spawn(async move {
        while write.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut said = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, read.read_to_end(&mut said)).await.unwrap();
    drip.abort();
}

#[actix_rt::test]
async fn an_idle_connection_is_closed() {
    let limits = Limits { keep_alive: Duration::from_millis(200), ..Limits::OURS };
    let daemon = Daemon::start_within(limits).await;
    let mut idle = UnixStream::connect(&daemon.socket).await.unwrap();
    idle.write_all(b"GET /v1/status HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    assert!(rest(&mut idle).await.starts_with("HTTP/1.1 200"));
}

#[actix_rt::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let head = Duration::from_secs(2);
    let limits = Limits { connections: 3, head, ..Limits::OURS };
    let daemon = Daemon::start_within(limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(UnixStream::connect(&daemon.socket).await.unwrap());
    }
    // Long enough that they are taken, short before they are turned out.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    assert_eq!(daemon.get("/v1/status").await.status, 200);
    assert!(started.elapsed() > Duration::from_millis(500), "{:?}", started.elapsed());
}

#[actix_rt::test]
async fn answers_that_nobody_reads_are_counted_and_dropped() {
    let unread = Duration::from_millis(300);
    let limits = Limits { unread_kib: 3 << 10, unread, ..Limits::OURS };
    let daemon = Daemon::start_within(limits).await;
    let long = json!({"sql": "select hex(zeroblob(1000000))"}).to_string();
    let long = request("POST", "/v1/sql", "", long.as_bytes());
    assert_eq!(ask(&daemon.socket, &long).await.json()["rows"][0][0], "0".repeat(2_000_000));
    // This one asks and does not read.
    let mut deaf = UnixStream::connect(&daemon.socket).await.unwrap();
    deaf.write_all(&long).await.unwrap();
    deaf.readable().await.unwrap();
    let refused = ask(&daemon.socket, &long).await;
    assert_eq!(refused.status, 503, "{}", refused.head);
    assert!(refused.error().contains("have not read"), "{}", refused.text);
    assert_eq!(daemon.get("/v1/status").await.status, 200);
    let room = async {
        while ask(&daemon.socket, &long).await.status == 503 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, room).await.unwrap();
    // What it reads now is cut off.
    assert!(rest(&mut deaf).await.len() < 2_000_000);
}
