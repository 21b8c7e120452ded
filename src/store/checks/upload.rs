//! Uploads: all or nothing, duplicates, crashes.

use super::*;
use crate::{Appended, StoreError};

fn rows(texts: &[&str]) -> Vec<NewPrompt> {
    texts.iter().map(|text| a_prompt(text)).collect()
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    let upload = bench.open("s", 0.0);
    bench.store.append_prompts(upload, &rows(&["a", "b"])).unwrap();
    bench.store.count_lines(upload, 0, 3).unwrap();
    assert!(bench.store.prompt_sets(None).unwrap().is_empty());
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 0);
    let done = bench.publish(upload);
    assert_eq!((done.lines, done.kept, done.bad), (5, 2, 3));
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 2);
    assert_eq!(bench.store.prompt_sets(None).unwrap()[0].prompts, 2);
    assert_eq!(bench.store.waiting_since(run).unwrap(), Some(NOW));
    let late = bench.store.append_prompts(upload, &rows(&["c"])).unwrap_err();
    assert!(late.to_string().contains("is published"), "{late}");
}

#[test]
fn duplicates_are_known_within_and_across_sets() {
    let mut bench = Bench::new();
    let first = bench.open("one", 0.0);
    let got = bench.store.append_prompts(first, &rows(&["a", "b", "a"])).unwrap();
    assert_eq!(got, Appended { kept: 2, reserved: 0, duplicates: 1 });
    bench.publish(first);
    let second = bench.open("two", 0.0);
    let got = bench.store.append_prompts(second, &rows(&["b", "c"])).unwrap();
    assert_eq!(got, Appended { kept: 1, reserved: 0, duplicates: 1 });
}

#[test]
fn of_twins_in_two_open_uploads_the_second_published_loses() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    let (one, two, three) =
        (bench.open("one", 0.5), bench.open("two", 0.5), bench.open("one", 0.5));
    let all: Vec<NewPrompt> = texts(0, 100).iter().map(|t| a_prompt(t)).collect();
    bench.store.append_prompts(one, &all).unwrap();
    bench.store.append_prompts(two, &all[50..]).unwrap();
    bench.store.append_prompts(three, &all[90..]).unwrap();
    let two = bench.publish(two);
    assert_eq!((two.kept, two.duplicates), (50, 0));
    let one = bench.publish(one);
    assert_eq!((one.kept, one.duplicates), (50, 50));
    bench.store.fail_upload(three, "the client went away", NOW).unwrap();
    while bench.store.sweep_uploads().unwrap() {}
    assert_eq!(bench.number("SELECT count(*) FROM prompts"), 100);
    assert_eq!(bench.number("SELECT count(DISTINCT sha256) FROM prompts"), 100);
    let reserved = bench.number("SELECT sum(reserved) FROM prompts");
    let sets = bench.store.prompt_sets(None).unwrap();
    let counted: u64 = sets.iter().map(|set| set.reserved).sum();
    assert_eq!(reserved.cast_unsigned(), counted);
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 100 - counted);
}

#[test]
fn a_twin_of_an_upload_that_failed_is_kept() {
    let mut bench = Bench::new();
    let (one, two) = (bench.open("one", 0.0), bench.open("two", 0.0));
    bench.store.append_prompts(one, &rows(&["a"])).unwrap();
    bench.store.append_prompts(two, &rows(&["a"])).unwrap();
    bench.store.fail_upload(one, "cut off", NOW).unwrap();
    assert_eq!(bench.publish(two).kept, 1);
    while bench.store.sweep_uploads().unwrap() {}
    assert_eq!(bench.number("SELECT count(*) FROM prompts"), 1);
    assert_eq!(bench.number("SELECT count(*) FROM upload_twins"), 0);
}

#[test]
fn a_crash_in_an_upload_leaves_the_state_as_it_was() {
    let mut bench = Bench::new();
    bench.add("s", 0.0, &texts(0, 10));
    let upload = bench.open("new", 0.0);
    let many: Vec<NewPrompt> = texts(10, 1_500).iter().map(|t| a_prompt(t)).collect();
    for _ in 0..3 {
        bench.store.append_prompts(upload, &many).unwrap();
    }
    let mut bench = bench.after_a_kill();
    let recovered = bench.store.recover(NOW).unwrap();
    assert_eq!(recovered.uploads, 1);
    while bench.store.sweep_uploads().unwrap() {}
    assert_eq!(bench.number("SELECT count(*) FROM prompts"), 10);
    assert_eq!(bench.number("SELECT count(*) FROM prompt_sets"), 1, "no empty set is left");
    assert!(bench.store.integrity().unwrap().is_empty());
}

#[test]
fn a_clients_key_makes_a_retry_harmless() {
    let mut bench = Bench::new();
    let keyed = NewUpload { client_key: Some("k".into()), ..new_upload("s", 0.0) };
    let UploadOpened::Fresh(first) = bench.store.open_upload(&keyed, NOW).unwrap() else {
        panic!()
    };
    let busy = bench.store.open_upload(&keyed, NOW).unwrap_err();
    assert!(matches!(busy, StoreError::Conflict { .. }));
    // What failed gives its key back.
    bench.store.fail_upload(first.id, "cut off", NOW).unwrap();
    let UploadOpened::Fresh(second) = bench.store.open_upload(&keyed, NOW).unwrap() else {
        panic!()
    };
    bench.store.append_prompts(second.id, &rows(&["a"])).unwrap();
    let done = bench.publish(second.id);
    assert_eq!(bench.store.open_upload(&keyed, NOW).unwrap(), UploadOpened::Done(done.clone()));
    assert_eq!(bench.publish(second.id), done, "publishing again changes nothing");
    let other = NewUpload { name: Name::parse("t", "set").unwrap(), ..keyed };
    assert!(bench.store.open_upload(&other, NOW).is_err());
}

#[test]
fn a_set_keeps_its_reserve_share() {
    let mut bench = Bench::new();
    bench.add("s", 0.25, &texts(0, 10));
    let other = bench.store.open_upload(&new_upload("s", 0.5), NOW).unwrap_err();
    assert!(other.to_string().contains("leave --reserve out"), "{other}");
    let unsaid = NewUpload { set: SetAsked::default(), ..new_upload("s", 0.0) };
    assert!(bench.store.open_upload(&unsaid, NOW).is_ok());
    assert!(bench.store.open_upload(&new_upload("t", 1.0), NOW).is_err());
    assert!(bench.store.open_upload(&new_upload("t", f64::NAN), NOW).is_err());
    let many = vec![a_prompt("x"); rlhfd_domain::limits::UPLOAD_BATCH_ROWS + 1];
    let upload = bench.open("u", 0.0);
    assert!(bench.store.append_prompts(upload, &many).is_err());
}
