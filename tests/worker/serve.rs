//! The real worker at its socket: answers, bits, cancelling, dying and going on.
//!
//! Comes in: the golden models and frames by hand. Goes out: what the daemon may rely on. May not
//! enter: the daemon.

mod training;

use std::fs;

use rlhfd_protocol::worker::{
    Arm, FailureKind, FromWorker, Item, ItemResult, Message, ModelRef, Purpose, ScorePosition,
    ToWorker, Work,
};
use rlhfd_protocol::{WORKER_PROTOCOL, frame};
use rlhfd_tests::binaries::{program, program_if_built, root};
use rlhfd_tests::link::Link;
use rlhfd_tests::models::copy;

fn started() -> Option<Link> {
    if program_if_built("rlhfd-worker-torch").is_none() {
        assert!(std::env::var_os("RLHFD_REQUIRE_TORCH").is_none(), "the engine is not built");
        eprintln!("skipped: rlhfd-worker-torch is not built");
        return None;
    }
    let libtorch = root().join("libtorch").to_string_lossy().into_owned();
    let environment = [("RLHFD_LIBTORCH", libtorch.as_str())];
    let mut link = Link::start(&program("rlhfd-worker"), &["serve"], &environment);
    let hello = link.greet();
    let FromWorker::Hello { protocol: WORKER_PROTOCOL, device, libtorch, .. } = &hello else {
        panic!("{hello:?}");
    };
    assert_eq!(device, "cpu");
    assert!(libtorch.starts_with("2.11"), "{libtorch}");
    Some(link)
}

fn model(name: &str) -> ModelRef {
    let path = root().join("tests/golden/models").join(name);
    ModelRef { path, sha256: name.into() }
}

fn conversation(texts: &[(&str, &str)]) -> Vec<Message> {
    texts
        .iter()
        .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
        .collect()
}

fn render(link: &mut Link, prompts: &[&str]) -> Vec<Vec<u8>> {
    let items = prompts
        .iter()
        .map(|text| (Item::Prompt { messages: conversation(&[("user", text)]) }, Vec::new()))
        .collect();
    let work = Work::Render { policy: model("tiny-tied"), prompt_tokens_max: 200 };
    let (results, _) = link.run(1, work, items).unwrap();
    results.into_iter().map(|(_, _, payload)| payload).collect()
}

fn generate(n: u32, max_new_tokens: u32, batch_items: u32) -> Work {
    let arm = |name: &str, temperature, first_sample| Arm {
        name: name.into(),
        temperature,
        top_p: 1.0,
        top_k: 0,
        n,
        first_sample,
    };
    Work::Generate {
        policy: model("tiny-tied"),
        run_seed: 7,
        purpose: Purpose::Generate,
        iteration: 1,
        arms: vec![arm("warm", 1.0, 0), arm("cool", 0.7, n)],
        max_new_tokens,
        batch_items,
    }
}

fn ids(prompt: &[u8]) -> (Item, Vec<u8>) {
    (Item::PromptIds { occurrence: 0 }, prompt.to_vec())
}

type Answers = Vec<(u32, ItemResult, Vec<u8>)>;

/// Responses in the order of (item, sample), whatever the order in which they ended.
fn sorted(mut answers: Answers) -> Answers {
    answers.sort_by_key(|(index, result, _)| match result {
        ItemResult::Response { sample, .. } => (*index, *sample),
        _ => (*index, 0),
    });
    answers
}

#[test]
fn a_response_has_the_log_probs_that_the_model_gives_it() {
    let Some(mut link) = started() else { return };
    let prompts = render(&mut link, &["a b", "c d e", "a b c d e f"]);
    let items = prompts.iter().map(|prompt| ids(prompt)).collect();
    let (answers, summary) = link.run(2, generate(2, 12, 2), items).unwrap();
    assert_eq!(answers.len(), 12);
    assert!(summary.tokens > 0);
    for (index, result, payload) in answers {
        let ItemResult::Response { tokens, logprob, .. } = result else { panic!("{result:?}") };
        let (response, logprobs) = payload.split_at(tokens as usize * 4);
        let parts = frame::floats_from_bytes(logprobs).unwrap();
        assert_eq!(parts.len(), tokens as usize);
        let sum: f64 = parts.iter().map(|part| f64::from(*part)).sum();
        assert!((sum - logprob).abs() < 1e-4);
        let prompt = &prompts[index as usize];
        let prompt_tokens = u32::try_from(prompt.len() / 4).unwrap();
        let item = (Item::ResponseIds { prompt_tokens }, [prompt, response].concat());
        let work = Work::Logprobs { model: model("tiny-tied"), batch_items: 1 };
        let (back, _) = link.run(3, work, vec![item]).unwrap();
        let ItemResult::Logprobs { logprob: again, .. } = back[0].1 else { panic!("{back:?}") };
        assert!((again - logprob).abs() < 1e-3, "{again} and {logprob}");
    }
}

#[test]
fn a_unit_cut_along_its_batches_gives_the_same_bits() {
    let Some(mut link) = started() else { return };
    let prompts = render(&mut link, &["a b", "c d e", "f", "g h i j k"]);
    let items = |from: usize, to: usize| prompts[from..to].iter().map(|p| ids(p)).collect();
    let (whole, _) = link.run(2, generate(2, 16, 2), items(0, 4)).unwrap();
    let (first, _) = link.run(3, generate(2, 16, 2), items(0, 2)).unwrap();
    // Another process does the second half.
    let mut other = started().unwrap();
    let (second, _) = other.run(4, generate(2, 16, 2), items(2, 4)).unwrap();
    let second = second.into_iter().map(|(index, result, bytes)| (index + 2, result, bytes));
    let halves: Answers = sorted(first).into_iter().chain(sorted(second.collect())).collect();
    assert_eq!(sorted(whole), halves);
}

#[test]
fn scores_are_finite_and_a_policy_is_refused_as_scorer() {
    let Some(mut link) = started() else { return };
    let item = || {
        let messages = conversation(&[("user", "a"), ("assistant", "b c")]);
        vec![(Item::Conversation { messages }, Vec::new())]
    };
    let score = |name| Work::Score {
        scorer: model(name),
        position: ScorePosition::Transformers,
        batch_items: 4,
    };
    let (scored, _) = link.run(1, score("tiny-reward"), item()).unwrap();
    let ItemResult::Score { score: value, .. } = scored[0].1 else { panic!("{scored:?}") };
    assert!(value.is_finite());
    let failed = link.run(2, score("tiny-tied"), item()).unwrap_err();
    let FromWorker::UnitFailed { kind, message, .. } = failed else { panic!("{failed:?}") };
    assert_eq!(kind, FailureKind::Input, "{message}");
    // The worker lives on.
    link.run(3, score("tiny-reward"), item()).unwrap();
}

#[test]
fn a_missing_or_broken_model_fails_the_unit_and_never_the_process_by_a_panic() {
    let Some(mut link) = started() else { return };
    let place = tempfile::tempdir().unwrap();
    let broken = place.path().join("broken");
    copy(&model("tiny-tied").path, &broken);
    let weights = fs::read(broken.join("model.safetensors")).unwrap();
    fs::write(broken.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    for (attempt, path) in [(1, broken), (2, place.path().join("nowhere"))] {
        let policy = ModelRef { path, sha256: format!("{attempt}") };
        let work = Work::Render { policy, prompt_tokens_max: 10 };
        let item = Item::Prompt { messages: conversation(&[("user", "a")]) };
        let failed = link.run(attempt, work, vec![(item, Vec::new())]).unwrap_err();
        let FromWorker::UnitFailed { kind, message, .. } = failed else { panic!("{failed:?}") };
        assert_eq!(kind, FailureKind::Input, "{message}");
    }
    assert_eq!(render(&mut link, &["a"]).len(), 1);
}

#[test]
fn a_cancelled_unit_ends_soon_and_the_next_one_is_done() {
    let Some(mut link) = started() else { return };
    let prompts = render(&mut link, &["a b"]);
    let count = 400;
    link.send(&ToWorker::RunUnit { attempt: 5, work: Box::new(generate(4, 200, 1)), items: count });
    for index in 0..count {
        let (item, payload) = ids(&prompts[0]);
        link.send_with(&ToWorker::Item { attempt: 5, index, item }, &payload);
        if index == 2 {
            link.send(&ToWorker::Cancel { attempt: 5 });
        }
    }
    let mut answers = 0;
    loop {
        match link.receive().unwrap().message {
            FromWorker::Result { .. } => answers += 1,
            FromWorker::UnitFailed { attempt: 5, kind, .. } => {
                assert_eq!(kind, FailureKind::Cancelled);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(answers < 4 * 2 * count, "nothing was cancelled");
    assert_eq!(render(&mut link, &["a"]).len(), 1);
}

#[test]
fn a_worker_leaves_when_its_socket_closes_even_while_it_computes() {
    let Some(mut link) = started() else { return };
    let prompts = render(&mut link, &["a b"]);
    let work = Box::new(generate(16, 400, 1));
    link.send(&ToWorker::RunUnit { attempt: 1, work, items: 1 });
    let (item, payload) = ids(&prompts[0]);
    link.send_with(&ToWorker::Item { attempt: 1, index: 0, item }, &payload);
    link.socket.shutdown(std::net::Shutdown::Both).unwrap();
    link.ended();
}

#[test]
fn bytes_that_are_no_frame_end_the_worker_with_an_error() {
    use std::io::Write;
    let garbage: [&[u8]; 3] =
        [&[0xff; 64], b"\x05\x00\x00\x00\x00\x00\x00\x00{{{{{", b"\x02\x00\x00\x00\0\0\0\0{}"];
    for bytes in garbage {
        let Some(mut link) = started() else { return };
        link.socket.write_all(bytes).unwrap();
        let status = link.ended();
        assert!(!status.success(), "{status:?}");
        assert!(status.code().is_some_and(|code| code != 101), "{status:?}");
    }
}

#[test]
fn only_a_drain_that_is_at_once_leaves_a_unit_unfinished() {
    for at_once in [false, true] {
        let Some(mut link) = started() else { return };
        let prompts = render(&mut link, &["a b"]);
        let count = 12;
        let work = Box::new(generate(4, 60, 1));
        link.send(&ToWorker::RunUnit { attempt: 5, work, items: count });
        for index in 0..count {
            let (item, payload) = ids(&prompts[0]);
            link.send_with(&ToWorker::Item { attempt: 5, index, item }, &payload);
        }
        link.send(&ToWorker::Drain { at_once, within_ms: 60_000 });
        let end = loop {
            match link.receive().unwrap().message {
                FromWorker::Result { .. } => {}
                other => break other,
            }
        };
        match end {
            FromWorker::UnitDone { attempt: 5, .. } => assert!(!at_once),
            FromWorker::UnitFailed { attempt: 5, kind: FailureKind::Cancelled, .. } => {
                assert!(at_once);
            }
            other => panic!("{other:?}"),
        }
        assert!(link.ended().success());
    }
}

#[test]
fn hearts_beat_while_it_computes_and_progress_is_counted() {
    let Some(mut link) = started() else { return };
    let prompts = render(&mut link, &["a b"]);
    link.send(&ToWorker::RunUnit { attempt: 1, work: Box::new(generate(8, 300, 1)), items: 1 });
    let (item, payload) = ids(&prompts[0]);
    link.send_with(&ToWorker::Item { attempt: 1, index: 0, item }, &payload);
    let mut seen = Vec::new();
    loop {
        let frame = frame::read::<FromWorker>(&mut link.socket).unwrap();
        match frame.message {
            FromWorker::Heartbeat { attempt: Some(1), progress, resident_mib, .. } => {
                assert!(resident_mib > 10);
                seen.push(progress);
            }
            FromWorker::UnitDone { .. } => break,
            FromWorker::UnitFailed { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    assert!(seen.len() >= 2, "{} heartbeats", seen.len());
    assert!(seen.is_sorted() && seen.first() < seen.last(), "{seen:?}");
}
