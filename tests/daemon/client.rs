//! Every verb of `rlhfctl` on a run that has ended: words for people, and JSON for programs.

use std::io::{BufRead, BufReader, Write};

use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::{http, wait};

use crate::story;

#[test]
fn every_verb_answers_people_and_programs() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    story::queue(&scene);
    scene.ctl_ok(&["wait", "--iteration", "2", "--timeout", "60"]);
    assert_eq!(scene.number("SELECT count(*) FROM iteration_history WHERE status = 'done'"), 2);
    let verbs: [(&[&str], &str); 11] = [
        (&["status"], "iteration-0002"),
        (&["runs"], "main"),
        (&["iterations"], "iteration-0001"),
        (&["iterations", "--wide"], "kl_k3"),
        (&["checkpoints"], "initial"),
        (&["checkpoints", "--lineage"], "iteration-0001"),
        (&["events"], "run main begins"),
        (&["prompts", "list"], "plain"),
        (&["preferences", "list"], ""),
        (&["jobs"], ""),
        (&["sql", "SELECT count(*) AS n FROM responses"], "n"),
    ];
    for (words, says) in verbs {
        let said = scene.ctl_ok(words);
        assert!(said.contains(says), "{words:?}: {said}");
        let json = scene.ctl_ok(&[words, &["--json"]].concat());
        for line in json.lines().filter(|_| words[0] == "events") {
            serde_json::from_str::<serde_json::Value>(line)
                .unwrap_or_else(|e| panic!("{e}: {line}"));
        }
        if words[0] != "events" {
            serde_json::from_str::<serde_json::Value>(&json)
                .unwrap_or_else(|e| panic!("{e}: {json}"));
        }
    }
    let csv = scene.ctl_ok(&["sql", "--csv", "SELECT name, seed FROM runs"]);
    assert_eq!(csv.trim(), "name,seed\nmain,7");
}

#[test]
fn events_are_told_as_they_happen_and_a_reader_goes_on_where_it_stopped() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    let mut stream = http::open(&scene.socket()).unwrap();
    let request = "GET /v1/events?follow=true&since=0 HTTP/1.1\r\nHost: x\r\n\
                   Accept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    story::queue(&scene);
    let mut ids = Vec::new();
    let started = std::time::Instant::now();
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        // Comments keep an idle stream open, so the deadline is looked at with each line.
        assert!(started.elapsed() < wait::DEADLINE, "{}", scene.told());
        if let Some(id) = line.strip_prefix("id:") {
            ids.push(id.trim().parse::<i64>().unwrap());
        }
        if line.contains("iteration 2 is done") {
            break;
        }
    }
    assert!(ids.len() >= 4 && ids.is_sorted(), "{ids:?}");
    let from = ids[1];
    let rest = http::request(&scene.socket(), "GET", &format!("/v1/events?since={from}"), None);
    let first: serde_json::Value = serde_json::from_str(rest.body.lines().next().unwrap()).unwrap();
    assert_eq!(first["id"], ids[2], "{}", rest.body);
}
