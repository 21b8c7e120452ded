//! What is refused before anything is done, and with which words.

use serde_json::json;

use super::{Daemon, GOOD, PROMPTS, REWARD, ask, request};

/// Method, target, further headers, body; the status and some words of the answer.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], u16, &'a str);

#[actix_rt::test]
async fn requests_that_make_no_sense_are_refused_with_words() {
    let daemon = Daemon::start().await;
    let big = format!("{{\"sql\": \"{}\"}}", "x".repeat(200 << 10));
    let long_name = format!("/v1/prompt-sets/{}/prompts", "x".repeat(100));
    let table: &[Case<'_>] = &[
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
        ("POST", "/v1/sql", "", b"{\"sql\": \"delete from prompts\"}", 403, "only one SELECT"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"SELEC 1\"}", 400, "syntax"),
        ("POST", "/v1/sql", "", b"{\"sql\": \"select 1; SELECT 2\"}", 403, "one statement"),
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
        ("POST", "/v1/training-jobs/dpo/x", "", GOOD, 404, "no kind of training job"),
        ("POST", "/v1/training-jobs/sft/x", "", GOOD, 422, "has no `messages`"),
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
    let sql = to_readers("POST", "/v1/sql", b"{\"sql\": \"select 1 AS one, x'00ff' AS b\"}").await;
    assert_eq!(
        sql.json(),
        json!({"columns": ["one", "b"], "rows": [[1, "00ff"]], "truncated": false})
    );
    daemon.assert_empty().await;
    assert_eq!(*daemon.orders.lock().unwrap(), []);
}
