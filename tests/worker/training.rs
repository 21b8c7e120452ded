//! Trainings at the worker's socket: killed, asked to leave, and gone on from; what they publish, altered.

use std::fs;
use std::path::Path;

use rlhfd_protocol::worker::{
    FailureKind, FromWorker, Item, ModelRef, Published, ToWorker, TrainTarget, Work,
};
use rlhfd_tests::link::Link;

use super::{conversation, generate, ids, model, render, started};

/// An iteration folder of `pairs` pairs of token ids.
fn iteration(place: &Path, pairs: u32) {
    let folder = place.join("iteration");
    fs::create_dir_all(&folder).unwrap();
    let settings = "batch_pairs = 1\nmicro_batch_pairs = 1\nepochs = 8\nlearning_rate = 1e-3\n";
    fs::write(folder.join("settings.toml"), settings).unwrap();
    let line = |n: u32| {
        format!(
            "{{\"prompt_ids\": [1, {}], \"chosen_ids\": [{}, 2], \"rejected_ids\": [{}, 2], \
             \"reference_logprob_chosen\": -9.0, \"reference_logprob_rejected\": -9.0, \
             \"weight\": 1.0, \"iteration\": 1, \"ordinal\": {n}, \"rank\": 0}}\n",
            10 + n,
            20 + n,
            60 + n
        )
    };
    fs::write(folder.join("pairs.jsonl"), (0..pairs).map(line).collect::<String>()).unwrap();
}

fn train(place: &Path, out: &str, resume: bool) -> Work {
    Work::TrainDpo {
        policy: model("tiny-tied"),
        reference: model("tiny-tied"),
        initial: model("tiny-tied"),
        folder: place.join("iteration"),
        target: TrainTarget {
            micro_batch: None,
            out: place.join(out),
            unit: "1/train".into(),
            state: place.join(format!("{out}-state")),
            resume,
            seed: 7,
            save_every_steps: 2,
            save_every_s: 600,
            parent_sha256: "ab".into(),
        },
    }
}

fn trained(link: &mut Link, work: Work) -> Published {
    let (_, summary) = link.run(9, work, Vec::new()).unwrap();
    summary.checkpoint.expect("a checkpoint")
}

/// Kills a training after its fifth step, and gives what the next attempt says.
fn killed_and_again(place: &Path, out: &str, resume: bool) -> Published {
    let mut link = started().unwrap();
    let work = train(place, out, resume);
    link.send(&ToWorker::RunUnit { attempt: 8, work: Box::new(work.clone()), items: 0 });
    loop {
        match link.receive().unwrap().message {
            FromWorker::Step { step: 5, .. } => break,
            FromWorker::Step { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    link.child.kill().unwrap();
    link.child.wait().unwrap();
    assert!(!place.join(out).exists());
    trained(&mut started().unwrap(), work)
}

#[test]
fn a_killed_training_goes_on_to_the_same_bits() {
    let Some(mut link) = started() else { return };
    let place = tempfile::tempdir().unwrap();
    iteration(place.path(), 6);
    let whole = trained(&mut link, train(place.path(), "whole", true));
    assert_eq!((whole.steps, whole.first_step), (48, 1));
    let resumed = killed_and_again(place.path(), "resumed", true);
    assert!(resumed.first_step > 1 && resumed.first_step % 2 == 1, "{}", resumed.first_step);
    assert_eq!(resumed.sha256, whole.sha256);
    let anew = killed_and_again(place.path(), "anew", false);
    assert_eq!((anew.first_step, &anew.sha256), (1, &whole.sha256));
    // Asked again, it takes its own folder as it stands, and refuses another's.
    assert_eq!(trained(&mut link, train(place.path(), "whole", true)).sha256, whole.sha256);
    let mut work = train(place.path(), "whole", true);
    let Work::TrainDpo { target, .. } = &mut work else { panic!() };
    target.unit = "2/train".into();
    let failed = link.run(10, work, Vec::new()).unwrap_err();
    assert!(matches!(failed, FromWorker::UnitFailed { .. }), "{failed:?}");
}

/// Drains a training with so much time, and gives the last step that it told and what the next attempt says.
fn drained_and_again(within_ms: u64) -> Option<(u64, Published)> {
    let mut link = started()?;
    let place = tempfile::tempdir().unwrap();
    iteration(place.path(), 20);
    let mut work = train(place.path(), "out", true);
    let Work::TrainDpo { target, .. } = &mut work else { panic!() };
    target.save_every_steps = 4;
    link.send(&ToWorker::RunUnit { attempt: 8, work: Box::new(work.clone()), items: 0 });
    let mut last_step = 0;
    while last_step < 5 {
        let FromWorker::Step { step, .. } = link.receive().unwrap().message else { panic!() };
        last_step = step;
    }
    link.send(&ToWorker::Drain { at_once: true, within_ms });
    loop {
        match link.receive().unwrap().message {
            FromWorker::Step { step, .. } => last_step = step,
            FromWorker::UnitFailed { kind: FailureKind::Cancelled, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(link.ended().success());
    Some((last_step, trained(&mut started().unwrap(), work)))
}

#[test]
fn an_altered_checkpoint_is_found_as_it_is_loaded_for_whatever_work() {
    let Some(mut link) = started() else { return };
    let place = tempfile::tempdir().unwrap();
    iteration(place.path(), 6);
    let prompts = render(&mut link, &["a b"]);
    let sha256 = trained(&mut link, train(place.path(), "out", true)).sha256;
    let checkpoint = ModelRef { path: place.path().join("out"), sha256 };
    let generation = |policy: ModelRef| {
        let Work::Generate {
            run_seed, purpose, iteration, arms, max_new_tokens, batch_items, ..
        } = generate(1, 4, 1)
        else {
            panic!()
        };
        Work::Generate { policy, run_seed, purpose, iteration, arms, max_new_tokens, batch_items }
    };
    let works = |model: &ModelRef| {
        let Work::TrainDpo { folder, target, .. } = train(place.path(), "next", true) else {
            panic!()
        };
        let (policy, reference, initial) = (model.clone(), model.clone(), model.clone());
        let logprobs = Work::Logprobs { model: model.clone(), batch_items: 1 };
        let rendered = Work::Render { policy: model.clone(), prompt_tokens_max: 200 };
        let messages = conversation(&[("user", "a")]);
        [
            (generation(model.clone()), vec![ids(&prompts[0])]),
            (logprobs, vec![(Item::ResponseIds { prompt_tokens: 1 }, prompts[0].clone())]),
            (rendered, vec![(Item::Prompt { messages }, Vec::new())]),
            (Work::TrainDpo { policy, reference, initial, folder, target }, Vec::new()),
        ]
    };
    let kinds = |link: &mut Link, model: &ModelRef| {
        let run = |(work, items)| match link.run(9, work, items) {
            Ok(_) => None,
            Err(FromWorker::UnitFailed { kind, .. }) => Some(kind),
            Err(other) => panic!("{other:?}"),
        };
        works(model).into_iter().map(run).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&mut link, &checkpoint), [None; 4]);
    fs::remove_dir_all(place.path().join("next")).unwrap();
    // A bit of the weights: texts are rendered without them.
    let weights = checkpoint.path.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let unsound = Some(FailureKind::Unsound);
    let found = kinds(&mut started().unwrap(), &checkpoint);
    assert_eq!(found, [unsound, unsound, None, unsound]);
    // Also by a process that found it whole before.
    assert_eq!(kinds(&mut link, &checkpoint), [unsound, unsound, None, unsound]);
    // Another checkpoint than the one that was admitted.
    let other = ModelRef { sha256: "ab".repeat(32), ..checkpoint };
    assert_eq!(kinds(&mut started().unwrap(), &other), [unsound; 4]);
}

#[test]
fn a_drained_training_saves_where_it_stands() {
    let Some((last_step, published)) = drained_and_again(60_000) else { return };
    assert_eq!(published.first_step, last_step + 1);
}

#[test]
fn a_drained_training_without_the_time_for_a_save_goes_on_from_its_last_one() {
    let Some((last_step, published)) = drained_and_again(0) else { return };
    assert_eq!(published.first_step, last_step / 4 * 4 + 1);
}
