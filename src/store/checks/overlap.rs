//! Training data against evaluation prompts: whichever comes second gives way.

use rlhfd_domain::train::{History, ReferenceRule};
use rlhfd_domain::{JobId, JobKind, UploadId};

use super::offline::pair;
use super::*;
use crate::{ExamplePrompts, Iteration, JobStatus, NewIteration, NewJob, NewOffline};

fn folded(text: &str) -> [u8; 32] {
    a_prompt(text).folded
}

/// An open upload of preferences, with one example to each list of prompts.
fn data(bench: &mut Bench, examples: &[&[&str]]) -> (UploadId, Vec<bool>) {
    let new = NewUpload { kind: UploadKind::Preferences, ..new_upload("job", 0.0) };
    let opened = bench.store.open_upload(&new, NOW).unwrap();
    let UploadOpened::Fresh(upload) = opened else { panic!("it is new") };
    let prompts: Vec<ExamplePrompts> =
        examples.iter().map(|texts| texts.iter().map(|text| folded(text)).collect()).collect();
    let stay = bench.store.sift_examples(upload.id, &prompts).unwrap();
    (upload.id, stay)
}

fn job(bench: &mut Bench, run: RunId, upload: UploadId) -> JobId {
    bench.publish(upload);
    let new = NewJob {
        run,
        kind: JobKind::Reward,
        name: format!("job-{upload}"),
        upload: Some(upload),
        config: String::new(),
        config_sha256: String::new(),
        base: None,
    };
    bench.store.create_job(&new, |_| Vec::new(), NOW).unwrap()
}

/// Starts and ends an iteration, so that the evaluation list grows.
fn iterate(bench: &mut Bench, run: RunId) -> Iteration {
    let new = NewIteration {
        run,
        config: String::new(),
        config_sha256: String::new(),
        prompts_max: 1,
        reuse_prompts: false,
        evaluate_prompts_max: 1_000,
        arms: Vec::new(),
        offline: crate::OfflineUse::default(),
        reference: ReferenceRule::Fixed,
        history: History::All,
    };
    let iteration = bench.store.start_iteration(&new, NOW, |_| Vec::new()).unwrap();
    bench.store.end_without_update(run, iteration.iteration, "a check", NOW).unwrap();
    iteration
}

/// Texts of prompts that are reserved (or not) at a share of a half.
fn half(reserved: bool, from: u32) -> Vec<String> {
    let of = |text: &String| prompt::is_reserved(&a_prompt(text).sha256, 0.5) == reserved;
    texts(from, from + 100).into_iter().filter(of).collect()
}

#[test]
fn an_example_whose_prompt_is_kept_for_evaluation_is_left_out_and_counted() {
    let mut bench = Bench::new();
    bench.run();
    bench.add("s", 0.5, &texts(0, 100));
    let (kept, drawn) = (half(true, 0), half(false, 0));
    let shouted = format!(" {}\n", kept[1].to_uppercase());
    let (upload, stay) = data(
        &mut bench,
        &[&[&kept[0]], &[&drawn[0]], &[&shouted], &["new"], &["newer", &kept[2]], &[]],
    );
    assert_eq!(stay, [false, true, false, true, false, true]);
    bench.store.count_lines(upload, 3, 0).unwrap();
    let done = bench.publish(upload);
    assert_eq!((done.lines, done.kept, done.evaluation_prompts), (6, 3, 3));
    // Of an example that is left out nothing is noted.
    assert_eq!(bench.number("SELECT count(*) FROM trained_prompts"), 2);
    let told = "SELECT count(*) FROM events WHERE message LIKE '%; 3 left out: evaluation_prompt'";
    assert_eq!(bench.number(told), 1);
}

#[test]
fn a_reserve_that_comes_later_leaves_out_what_was_trained_on() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    let reserved = half(true, 0);
    let (upload, stay) =
        data(&mut bench, &[&[&reserved[0].to_uppercase()], &[&reserved[1]], &["x"]]);
    assert_eq!(stay, [true; 3]);
    let trained = job(&mut bench, run, upload);
    bench.add("s", 0.5, &texts(0, 100));
    assert_eq!(iterate(&mut bench, run).evaluate, reserved.len() as u64 - 2);
    let met = "SELECT count(*) FROM evaluation_prompts e JOIN prompts p ON p.id = e.prompt_id
               JOIN trained_prompts t ON t.folded = p.folded";
    assert_eq!(bench.number(met), 0);
    let told = "SELECT count(*) FROM events WHERE kind = 'evaluation_prompts_left_out'
                AND message LIKE '2 of the prompts kept for evaluation%'";
    assert_eq!(bench.number(told), 1);
    // Data that a job gave up, and those of another run's job, bind nobody.
    bench.store.end_job(trained, JobStatus::Cancelled, "a check", NOW).unwrap();
    let later = half(true, 100);
    let (other, _) = data(&mut bench, &[&[&later[0]], &[&later[1]]]);
    let cancelled = job(&mut bench, run, other);
    bench.store.end_job(cancelled, JobStatus::Cancelled, "a check", NOW).unwrap();
    bench.add("s", 0.5, &texts(100, 200));
    let all = reserved.len() + later.len() - 2;
    assert_eq!(iterate(&mut bench, run).evaluate, all as u64);
    assert_eq!(bench.number(told), 1);
}

#[test]
fn offline_preferences_and_evaluation_prompts_are_never_the_same() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("s", 0.5, &texts(0, 100));
    let (kept, later) = (half(true, 0), half(true, 100));
    let upload = bench.open_offline("off");
    let about = |n: u32, text: &str| NewOffline { folded: folded(text), ..pair(n) };
    let rows = [
        about(0, &kept[0].to_uppercase()),
        about(1, "new"),
        about(2, &later[0]),
        about(3, &kept[1]),
    ];
    let appended = bench.store.append_offline(upload, &rows).unwrap();
    assert_eq!((appended.kept, appended.duplicates), (2, 0));
    let done = bench.publish(upload);
    assert_eq!((done.lines, done.kept, done.evaluation_prompts), (4, 2, 2));
    assert_eq!(bench.store.preference_set("off").unwrap().unwrap().preferences, 2);
    // A reserve that comes later gives way to what may be trained on by then.
    bench.add("s", 0.5, &texts(100, 200));
    assert_eq!(iterate(&mut bench, run).evaluate, (kept.len() + later.len()) as u64 - 1);
    let told = "SELECT count(*) FROM events WHERE kind = 'evaluation_prompts_left_out'
                AND message LIKE '1 of the prompts kept for evaluation%offline%'";
    assert_eq!(bench.number(told), 1);
}

#[test]
fn what_failed_is_swept() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    let reserved = half(true, 0);
    let (upload, _) = data(&mut bench, &[&[&reserved[0]]]);
    bench.store.fail_upload(upload, "a check", NOW).unwrap();
    bench.add("s", 0.5, &texts(0, 100));
    assert_eq!(iterate(&mut bench, run).evaluate, reserved.len() as u64);
    while bench.store.sweep_uploads().unwrap() {}
    assert_eq!(bench.number("SELECT count(*) FROM trained_prompts"), 0);
}
