//! The fake worker is held to the protocol too: what a daemon's test proves rests on it.

use std::path::{Path, PathBuf};

use rlhfd_protocol::worker::{
    Arm, FailureKind, FromWorker, Item, ItemResult, Message, ModelRef, Purpose, ScorePosition,
    ToWorker, TrainTarget, Work,
};
use rlhfd_protocol::{WORKER_PROTOCOL, frame};
use rlhfd_tests::link::Link;
use rlhfd_tests::{binaries, models};

fn fake() -> PathBuf {
    binaries::program("fake-worker")
}

fn started(plan: &str, place: &Path) -> Link {
    let path = place.join("plan.json");
    std::fs::write(&path, plan).unwrap();
    let plan = path.to_string_lossy().into_owned();
    let mut link = Link::start(&fake(), &[], &[("FAKE_WORKER_PLAN", &plan)]);
    assert!(matches!(link.greet(), FromWorker::Hello { protocol: WORKER_PROTOCOL, .. }));
    link
}

fn model(path: &Path) -> ModelRef {
    ModelRef { path: path.into(), sha256: "ab".into() }
}

fn prompt(text: &str) -> (Item, Vec<u8>) {
    let messages = vec![Message { role: "user".into(), content: text.into() }];
    (Item::Prompt { messages }, Vec::new())
}

fn generate_work(policy: &Path) -> Work {
    let arm = |name: &str, n, first_sample| Arm {
        name: name.into(),
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        n,
        first_sample,
    };
    Work::Generate {
        policy: model(policy),
        run_seed: 7,
        purpose: Purpose::Generate,
        iteration: 1,
        arms: vec![arm("a", 2, 0), arm("b", 1, 2)],
        max_new_tokens: 8,
        batch_items: 2,
    }
}

#[test]
fn a_prompt_flows_through_all_works_and_the_same_bits_come_twice() {
    let place = tempfile::tempdir().unwrap();
    let policy = models::policy(place.path(), "policy");
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut link = started("{}", place.path());
        let render = Work::Render { policy: model(&policy), prompt_tokens_max: 100 };
        let long = "long ".repeat(40);
        let (rendered, _) = link.run(1, render, vec![prompt("hello"), prompt(&long)]).unwrap();
        assert!(matches!(rendered[1].1, ItemResult::Refused { .. }), "{rendered:?}");
        let ids = rendered[0].2.clone();
        let items = vec![(Item::PromptIds { occurrence: 0 }, ids.clone())];
        let (written, _) = link.run(2, generate_work(&policy), items).unwrap();
        assert_eq!(written.len(), 3);
        let ItemResult::Response { tokens, logprob, text, .. } = &written[0].1 else { panic!() };
        // The same model gives the same log-probs for the ids that it wrote.
        let response = &written[0].2[..*tokens as usize * 4];
        let prompt_tokens = u32::try_from(ids.len() / 4).unwrap();
        let item = Item::ResponseIds { prompt_tokens };
        let work = Work::Logprobs { model: model(&policy), batch_items: 1 };
        let (back, _) = link.run(3, work, vec![(item, [&ids[..], response].concat())]).unwrap();
        let ItemResult::Logprobs { logprob: again, .. } = back[0].1 else { panic!() };
        assert_eq!(again, *logprob);
        let messages = vec![Message { role: "assistant".into(), content: text.clone() }];
        let position = ScorePosition::Last;
        let work = Work::Score { scorer: model(&policy), position, batch_items: 1 };
        let item = (Item::Conversation { messages }, Vec::new());
        let (scored, _) = link.run(4, work, vec![item]).unwrap();
        runs.push((rendered, written, scored));
        link.send(&ToWorker::Drain { at_once: false, within_ms: 60_000 });
        assert!(link.ended().success());
    }
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn a_worker_leaves_when_its_socket_closes() {
    let place = tempfile::tempdir().unwrap();
    let mut link = started("{}", place.path());
    link.socket.shutdown(std::net::Shutdown::Both).unwrap();
    link.ended();
}

#[test]
fn a_fault_fires_once_over_all_processes() {
    let place = tempfile::tempdir().unwrap();
    let policy = models::policy(place.path(), "policy");
    let plan = r#"{"faults": [{"name": "dies", "work": "render", "after": 1,
        "act": {"kind": "exit", "code": 9}}]}"#;
    let mut link = started(plan, place.path());
    let work = Work::Render { policy: model(&policy), prompt_tokens_max: 100 };
    link.send(&ToWorker::RunUnit { attempt: 1, work: Box::new(work.clone()), items: 2 });
    for index in 0..2 {
        link.send(&ToWorker::Item { attempt: 1, index, item: prompt("x").0 });
    }
    assert_eq!(link.ended().code(), Some(9));
    let mut link = started(plan, place.path());
    let (results, _) = link.run(1, work, vec![prompt("x"), prompt("y")]).unwrap();
    assert_eq!(results.len(), 2);
}

fn train_work(place: &Path, policy: &Path, out: &str, resume: bool) -> Work {
    Work::TrainDpo {
        policy: model(policy),
        reference: model(policy),
        initial: model(policy),
        folder: place.join("iteration"),
        target: TrainTarget {
            micro_batch: None,
            out: place.join(out),
            unit: "1/train".into(),
            state: place.join(format!("{out}-state")),
            resume,
            seed: 1,
            save_every_steps: 2,
            save_every_s: 600,
            parent_sha256: "cd".into(),
        },
    }
}

/// Kills a training after its third step and gives what the second attempt says.
fn killed_and_again(place: &Path, policy: &Path, out: &str, resume: bool) -> (u64, String) {
    let plan = format!(
        r#"{{"faults": [{{"name": "{out}", "work": "train_dpo", "after": 3,
            "act": {{"kind": "signal", "number": 9}}}}]}}"#
    );
    let work = train_work(place, policy, out, resume);
    let mut link = started(&plan, place);
    link.send(&ToWorker::RunUnit { attempt: 1, work: Box::new(work.clone()), items: 0 });
    link.ended();
    let mut link = started(&plan, place);
    let (_, summary) = link.run(2, work, Vec::new()).unwrap();
    let published = summary.checkpoint.unwrap();
    (published.first_step, published.sha256)
}

#[test]
fn a_killed_training_resumes_to_the_same_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    let policy = models::policy(place.path(), "policy");
    let folder = place.path().join("iteration");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("settings.toml"), "batch_pairs = 2\nepochs = 2\n").unwrap();
    let pairs: String = (0..5).map(|n| format!("{{\"pair\":{n}}}\n")).collect();
    std::fs::write(folder.join("pairs.jsonl"), pairs).unwrap();
    let mut link = started("{}", place.path());
    let (_, whole) =
        link.run(1, train_work(place.path(), &policy, "whole", true), Vec::new()).unwrap();
    let whole = whole.checkpoint.unwrap();
    assert_eq!((whole.steps, whole.first_step), (6, 1));
    let (first_step, sha256) = killed_and_again(place.path(), &policy, "resumed", true);
    assert_eq!((first_step, &sha256), (3, &whole.sha256));
    let (first_step, sha256) = killed_and_again(place.path(), &policy, "anew", false);
    assert_eq!((first_step, &sha256), (1, &whole.sha256));
    let held: rlhfd_protocol::manifest::Manifest =
        serde_json::from_slice(&std::fs::read(place.path().join("whole/manifest.json")).unwrap())
            .unwrap();
    assert!(held.paths_stay_inside());
}

#[test]
fn each_way_to_fail_is_told() {
    let place = tempfile::tempdir().unwrap();
    let policy = models::policy(place.path(), "policy");
    let fault = |act: &str| {
        format!(r#"{{"faults": [{{"name": "x", "work": "render", "times": 0, "act": {act}}}]}}"#)
    };
    let work = || Work::Render { policy: model(&policy), prompt_tokens_max: 100 };
    let plan = fault(r#"{"kind": "fail", "failure": "out_of_memory", "exit": false}"#);
    let failed = started(&plan, place.path()).run(1, work(), vec![prompt("x")]).unwrap_err();
    let FromWorker::UnitFailed { kind, .. } = failed else { panic!("{failed:?}") };
    assert_eq!(kind, FailureKind::OutOfMemory);
    let twice = started(&fault(r#"{"kind": "answer_twice"}"#), place.path())
        .run(1, work(), vec![prompt("x")])
        .unwrap();
    assert_eq!(twice.0.len(), 2);
    for act in ["garbage", "oversized", "unknown_verb"] {
        let mut link = started(&fault(&format!(r#"{{"kind": "{act}"}}"#)), place.path());
        link.send(&ToWorker::RunUnit { attempt: 1, work: Box::new(work()), items: 1 });
        link.send(&ToWorker::Item { attempt: 1, index: 0, item: prompt("x").0 });
        let error = link.receive().unwrap_err();
        assert!(!matches!(error, frame::FrameError::Closed), "{act}: {error}");
    }
}
