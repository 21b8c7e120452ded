//! Requests by hand: cut off, far too large, of the wrong kind; the daemon answers or closes, and
//! serves the next one.

use std::io::{Read, Write};

use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::{dump, http, wait};

/// A whole request and the statuses that are right for it.
fn requests() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let huge_header =
        format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "h".repeat(1 << 20));
    let many_headers =
        format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    let big_body = post("/v1/pause", &format!("{{\"reason\": \"{}\"}}", "r".repeat(4 << 20)));
    vec![
        ("an unknown path", get("/v1/nothing").into(), &[404]),
        ("a path outside", get("/../../etc/passwd").into(), &[400, 404]),
        ("a wrong method", get("/v1/pause").into(), &[404, 405]),
        ("a body that is no JSON", post("/v1/pause", "{").into(), &[400]),
        ("an unknown key", post("/v1/pause", "{\"reson\": \"x\"}").into(), &[400]),
        ("a key of another verb", post("/v1/pause", "{\"iteration\": 1}").into(), &[400]),
        ("a body of 4 MB for a command", big_body.into(), &[400, 413]),
        ("a huge header", huge_header.into(), &[400, 431]),
        ("too many headers", many_headers.into(), &[400, 431]),
        ("a wrong type in a query", get("/v1/events?since=yesterday").into(), &[400]),
        (
            "a set name with a slash",
            post("/v1/prompt-sets/a%2Fb/prompts", "{}").into(),
            &[400, 404],
        ),
        ("sql that is no text", post("/v1/sql", "{\"sql\": 5}").into(), &[400]),
        ("no HTTP at all", b"\x00\x01\x02 hello\r\n\r\n".to_vec(), &[400]),
    ]
}

#[test]
fn each_wrong_request_has_its_status_and_the_next_one_is_served() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let before = dump::dump(&scene.database());
    for (name, bytes, statuses) in requests() {
        let answer = http::raw(&scene.socket(), &bytes);
        // Closing without a word is right only where no request could be read at all.
        let status = answer.as_ref().map_or(400, |answer| answer.status);
        assert!(statuses.contains(&status), "{name}: {answer:?}");
        if let Some(answer) = answer.filter(|answer| answer.body.starts_with('{')) {
            let error = &answer.json()["error"];
            for key in ["what", "where", "mend"] {
                assert!(error[key].is_string(), "{name}: {error}");
            }
        }
        assert_eq!(scene.status()["run"]["name"], "main", "{name}");
    }
    dump::assert_same(&before, &dump::dump(&scene.database()), "wrong requests");
}

#[test]
fn an_upload_that_is_cut_off_leaves_nothing() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let before = dump::dump(&scene.database());
    for head in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut stream = http::open(&scene.socket()).unwrap();
        let request =
            format!("POST /v1/prompt-sets/cut/prompts HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let lines = "{\"prompt\": \"a\"}\n".repeat(200);
        if head.starts_with("Transfer") {
            stream.write_all(format!("{:x}\r\n{lines}\r\n", lines.len()).as_bytes()).unwrap();
        } else {
            stream.write_all(lines.as_bytes()).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        let open = "SELECT count(*) = 0 FROM uploads WHERE state = 'open'";
        scene.wait_number("the upload to be failed", open, 1);
    }
    let published = "SELECT count(*) FROM uploads WHERE state = 'published'";
    assert_eq!(scene.number(published), 0);
    assert_eq!(scene.number("SELECT count(*) FROM prompts"), 0);
    dump::assert_same(&before, &dump::dump(&scene.database()), "cut uploads");
}

#[test]
fn a_slow_upload_holds_nobody_up() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let mut slow = http::open(&scene.socket()).unwrap();
    let head = "POST /v1/prompt-sets/slow/prompts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(b"10\r\n{\"prompt\": \"a\"}\n\r\n").unwrap();
    // While it waits for more, another upload is published and the status is answered.
    scene.add_prompts("quick", 0, 3, "0");
    assert_eq!(scene.number("SELECT prompts FROM prompt_sets WHERE name = 'quick'"), 3);
    slow.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(scene.number("SELECT prompts FROM prompt_sets WHERE name = 'slow'"), 1);
}

#[test]
fn a_client_key_makes_a_retry_harmless() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    let path = "/v1/prompt-sets/a/prompts?client_key=once";
    let body = "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n";
    let first = http::request(&scene.socket(), "POST", path, Some(body));
    assert_eq!(first.status, 200, "{}", first.body);
    let first = first.json();
    let same = |answer: &http::Answer| {
        let again = answer.json();
        for key in ["set", "lines", "added", "duplicates"] {
            assert_eq!(again[key], first[key], "{key} of {again}");
        }
        assert_eq!(again["repeated"], true);
    };
    same(&http::request(&scene.socket(), "POST", path, Some(body)));
    daemon.kill();
    let _daemon = scene.start();
    same(&http::request(&scene.socket(), "POST", path, Some(body)));
    assert_eq!(scene.number("SELECT count(*) FROM prompts"), 2);
}

#[test]
fn an_acknowledged_upload_outlives_a_kill() {
    let scene = Scene::fake(&Settings::default());
    for round in 0..3 {
        let daemon = scene.start();
        scene.add_prompts("kept", round * 10, round * 10 + 10, "0");
        daemon.kill();
    }
    let _daemon = scene.start();
    assert_eq!(scene.number("SELECT prompts FROM prompt_sets WHERE name = 'kept'"), 30);
}

#[test]
fn duplicates_within_and_across_sets_are_recognised() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let send = |set: &str, body: &str| {
        let path = format!("/v1/prompt-sets/{set}/prompts");
        http::request(&scene.socket(), "POST", &path, Some(body)).json()
    };
    send("a", "{\"prompt\": \"a\"}\n{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n");
    let as_messages = "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n";
    send("b", &format!("{as_messages}{{\"prompt\": \"c\"}}\n"));
    assert_eq!(scene.number("SELECT count(*) FROM prompts"), 3);
    assert_eq!(scene.number("SELECT sum(duplicates) FROM uploads"), 2);
}

#[test]
fn a_hundred_idle_connections_and_an_open_event_stream_do_not_stop_the_rest() {
    let scene = Scene::fake(&Settings::default());
    let daemon = scene.start();
    let mut idle: Vec<_> = (0..100).map(|_| http::open(&scene.socket()).unwrap()).collect();
    let mut events = http::open(&scene.socket()).unwrap();
    let follow = "GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n";
    events.write_all(follow.as_bytes()).unwrap();
    let ask = || (scene.status()["run"]["name"] == "main").then_some(());
    wait::until("an answer beside idle connections", ask, || scene.told());
    idle.truncate(50);
    // Open streams do not hold the daemon's end.
    let started = std::time::Instant::now();
    assert!(daemon.terminate().success());
    assert!(started.elapsed().as_secs() < 10, "the end took {:?}", started.elapsed());
}
