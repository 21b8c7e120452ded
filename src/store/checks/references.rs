//! What an iteration is held to: fixed, the head of some iterations ago, or a moving average; and that
//! log-probs under a reference are asked for once.

use rlhfd_domain::CheckpointId;
use rlhfd_domain::checkpoint::{CheckpointKind, reference_name};
use rlhfd_domain::gate::{Against, Check, Figure, Limit, Verdict};
use rlhfd_domain::train::{History, ReferenceRule, Replay};

use super::flow::{Flow, to_the_end};
use super::*;
use crate::{Average, Kept, NewCheckpoint, NextReference, StoreError};

fn flow(reference: ReferenceRule) -> Flow {
    let mut flow = Flow::new(80);
    flow.bench.add("held", 0.9, &texts(100, 130));
    flow.reference = reference;
    flow
}

fn name(flow: &Flow, id: CheckpointId) -> String {
    flow.bench.store.checkpoint(id).unwrap().name
}

/// Works an iteration off, and gives the name of what it was held to.
fn iteration(flow: &mut Flow) -> String {
    let t = flow.start(10, 4);
    to_the_end(flow, t);
    name(flow, flow.bench.store.iteration(flow.run, t).unwrap().reference)
}

/// The next iteration's checkpoint is rejected.
fn rejecting(flow: &mut Flow, rejects: bool) {
    flow.verdict = Verdict::of(vec![Check {
        figure: Figure::KlK3,
        against: Against::Reference,
        limit: Limit::Max(1.0),
        value: Some(if rejects { 2.0 } else { 0.5 }),
    }]);
}

fn next(flow: &Flow) -> NextReference {
    flow.bench.store.next_reference(flow.run, flow.reference).unwrap()
}

/// Makes the average that is missing, and gives the names of its policy and of the one before.
fn average(flow: &mut Flow) -> Option<(String, String)> {
    let NextReference::Missing(Average { iteration, policy, before }) = next(flow) else {
        return None;
    };
    let detail = Some("{}".to_owned());
    let key = format!("average/{iteration}");
    let unit = NewUnit { detail, ..a_unit(Stage::Train, WorkKind::Average, &key) };
    let ids = flow.bench.store.add_units(flow.run, &[unit], NOW).unwrap();
    assert_eq!(flow.ready(), [key]);
    let unit = flow.bench.store.unit(ids[0]).unwrap();
    let end = flow.bench.begin(&unit);
    let new = NewCheckpoint {
        name: reference_name(iteration),
        kind: CheckpointKind::Reference,
        parent: Some(policy),
        reference: Some(before),
        path: format!("runs/main/checkpoints/{}", reference_name(iteration)),
        sha256: format!("a{iteration:063}"),
        bytes: 10,
    };
    flow.bench.store.finish_average(&end, &new, NOW).unwrap();
    Some((name(flow, policy), name(flow, before)))
}

#[test]
fn a_fixed_reference_asks_for_nothing_twice() {
    let mut flow = flow(ReferenceRule::Fixed);
    for _ in 0..2 {
        assert_eq!(iteration(&mut flow), "initial");
    }
    let earlier = "SELECT count(*) FROM units WHERE work = 'logprobs' AND detail IS NOT NULL";
    assert_eq!(flow.bench.number(earlier), 0);
}

#[test]
fn the_policy_before_is_the_reference_and_a_rejected_one_never_is() {
    let mut flow = flow(ReferenceRule::Every(1));
    assert_eq!(iteration(&mut flow), "initial");
    rejecting(&mut flow, true);
    assert_eq!(iteration(&mut flow), "iteration-0001");
    rejecting(&mut flow, false);
    assert_eq!(iteration(&mut flow), "iteration-0001", "the head stayed");
    assert_eq!(iteration(&mut flow), "iteration-0003");
    // A person may go back to what the gate rejected; an update is not held to it for that.
    flow.bench.store.roll_back(flow.run, 2, "as it is", NOW).unwrap();
    assert_eq!(iteration(&mut flow), "iteration-0001");
}

#[test]
fn every_second_head_is_a_reference_and_what_a_rollback_left_is_none() {
    let mut flow = flow(ReferenceRule::Every(2));
    let held: Vec<String> = (0..5).map(|_| iteration(&mut flow)).collect();
    let second = "iteration-0002".to_owned();
    let initial = "initial".to_owned();
    assert_eq!(held, [initial.clone(), initial, second.clone(), second, "iteration-0004".into()]);
    flow.bench.store.roll_back(flow.run, 1, "it went wrong", NOW).unwrap();
    assert_eq!(iteration(&mut flow), "iteration-0001");
}

#[test]
fn an_average_follows_the_heads_line_and_is_waited_for() {
    let mut flow = flow(ReferenceRule::Average);
    assert_eq!(iteration(&mut flow), "initial");
    let refused = flow.try_start(10, 4).unwrap_err();
    assert!(refused.to_string().contains("no moving average up to its head"), "{refused}");
    let of = |policy: &str, before: &str| Some((policy.to_owned(), before.to_owned()));
    assert_eq!(average(&mut flow), of("iteration-0001", "initial"));
    rejecting(&mut flow, true);
    assert_eq!(iteration(&mut flow), "reference-0001");
    // What was rejected is in no average.
    rejecting(&mut flow, false);
    assert_eq!(iteration(&mut flow), "reference-0001");
    assert_eq!(average(&mut flow), of("iteration-0003", "reference-0001"));
    assert_eq!(iteration(&mut flow), "reference-0003");
    // Gone back, the average of that time stands still.
    flow.bench.store.roll_back(flow.run, 1, "again", NOW).unwrap();
    assert_eq!(average(&mut flow), None);
    assert_eq!(iteration(&mut flow), "reference-0001");
    let lost = flow.bench.store.checkpoint_by_name(flow.run, "reference-0001").unwrap().unwrap();
    flow.bench.store.roll_back(flow.run, 1, "again", NOW).unwrap();
    flow.bench.store.mark_unsound(lost.id, "a file is gone", NOW).unwrap();
    let asked = flow.bench.store.next_reference(flow.run, ReferenceRule::Average);
    assert!(matches!(asked, Err(StoreError::Conflict { .. })), "{asked:?}");
}

#[test]
fn a_run_that_turns_to_averages_makes_those_of_its_whole_line_first() {
    let mut flow = flow(ReferenceRule::Fixed);
    for _ in 0..2 {
        iteration(&mut flow);
    }
    flow.reference = ReferenceRule::Average;
    let of = |policy: &str, before: &str| Some((policy.to_owned(), before.to_owned()));
    assert_eq!(average(&mut flow), of("iteration-0001", "initial"));
    assert_eq!(average(&mut flow), of("iteration-0002", "reference-0001"));
    assert_eq!(average(&mut flow), None);
    assert_eq!(iteration(&mut flow), "reference-0002");
}

fn passed_over(flow: &Flow) -> Vec<String> {
    let sql = "SELECT message FROM events WHERE kind = 'reference_passed_over' ORDER BY id";
    let mut statement = flow.bench.store.conn.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn lose(flow: &mut Flow, name: &str) {
    let lost = flow.bench.store.checkpoint_by_name(flow.run, name).unwrap().unwrap();
    flow.bench.store.mark_unsound(lost.id, "it is gone", NOW).unwrap();
}

#[test]
fn a_policy_whose_files_are_gone_is_no_reference_and_that_is_told_once() {
    let mut flow = flow(ReferenceRule::Every(3));
    let held: Vec<String> = (0..4).map(|_| iteration(&mut flow)).collect();
    assert_eq!(held[3], "iteration-0003");
    assert_eq!(passed_over(&flow), Vec::<String>::new());
    lose(&mut flow, "iteration-0003");
    for _ in 0..2 {
        assert_eq!(iteration(&mut flow), "iteration-0002");
    }
    let told = passed_over(&flow);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("iteration-0003 are not there"), "{told:?}");
    assert!(told[0].contains("iteration-0002 is the reference"), "{told:?}");
}

#[test]
fn an_average_without_a_policy_whose_files_are_gone_says_so() {
    let mut flow = flow(ReferenceRule::Fixed);
    for _ in 0..2 {
        iteration(&mut flow);
    }
    flow.reference = ReferenceRule::Average;
    lose(&mut flow, "iteration-0001");
    assert_eq!(average(&mut flow), Some(("iteration-0002".into(), "initial".into())));
    let told = passed_over(&flow);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("iteration-0001 are not there, and reference-0002"), "{told:?}");
}

/// Iteration 2's checkpoint is removed, as by retention; the first stays as the best.
fn remove_second(flow: &mut Flow) -> CheckpointId {
    let second = flow.bench.store.checkpoint_by_name(flow.run, "iteration-0002").unwrap().unwrap();
    let kept = Kept { newest: 1, named: Vec::new(), reference: flow.reference };
    assert!(flow.bench.store.begin_removal(second.id, &kept, NOW).unwrap());
    assert!(!flow.bench.store.has_old_logprobs(flow.run).unwrap(), "its files are there still");
    flow.bench.store.end_removal(second.id, NOW).unwrap();
    second.id
}

fn under(flow: &Flow, reference: CheckpointId) -> i64 {
    let sql = "SELECT (SELECT count(*) FROM reference_logprobs WHERE reference_id = ?1)
                    + (SELECT count(*) FROM offline_logprobs WHERE reference_id = ?1)";
    flow.bench.store.conn.query_row(sql, [reference.get()], |row| row.get(0)).unwrap()
}

#[test]
fn log_probs_go_with_the_files_of_their_reference_and_are_asked_for_again_if_it_comes_back() {
    let mut flow = flow(ReferenceRule::Every(1));
    for _ in 0..4 {
        iteration(&mut flow);
    }
    let second = remove_second(&mut flow);
    let all = flow.bench.number("SELECT count(*) FROM reference_logprobs");
    let old = under(&flow, second);
    assert!(old > 0 && old < all);
    // An open iteration's own reference keeps them, whatever became of its files.
    let open = flow.start(10, 4);
    let hold = "UPDATE iterations SET reference_id = ?1 WHERE iteration = ?2";
    flow.bench.store.conn.execute(hold, [second.get(), i64::from(open)]).unwrap();
    assert!(!flow.bench.store.sweep_logprobs(flow.run).unwrap());
    flow.bench.store.cancel_iteration(flow.run, open, NOW).unwrap();
    while flow.bench.store.sweep_logprobs(flow.run).unwrap() {}
    assert_eq!(under(&flow, second), 0);
    assert_eq!(flow.bench.number("SELECT count(*) FROM reference_logprobs"), all - old);
    assert!(!flow.bench.store.has_old_logprobs(flow.run).unwrap(), "once is enough");
    // Its folder is brought back, and a person goes back to it.
    flow.bench.store.mark_sound(second, NOW).unwrap();
    flow.bench.store.roll_back(flow.run, 2, "it was better", NOW).unwrap();
    assert_eq!(iteration(&mut flow), "iteration-0002");
    let replay = Replay { history: History::All, history_weight: 1.0 };
    let train = flow.bench.unit(flow.run, "0006/train").id;
    let (pairs, left_out) = flow.bench.store.fix_training_set(train, replay, NOW).unwrap();
    assert_eq!((pairs, left_out), (40, 0), "a pair has no log-probs");
}

/// Every pair that the newest update takes has log-probs under its reference, each asked for once.
#[test]
fn earlier_pairs_are_known_under_a_reference_that_moved() {
    let mut flow = flow(ReferenceRule::Every(2));
    for _ in 0..3 {
        iteration(&mut flow);
    }
    let of =
        "SELECT group_concat(detail, ' ') FROM units WHERE iteration = ?1 AND work = 'logprobs'
              AND detail IS NOT NULL";
    let earlier = |flow: &Flow, t: u32| -> Option<String> {
        flow.bench.store.conn.query_row(of, [t], |row| row.get(0)).unwrap()
    };
    assert_eq!(earlier(&flow, 2), None);
    assert_eq!(earlier(&flow, 3).as_deref(), Some("1 1 2 2"), "ten prompts are two units");
    let replay = Replay { history: History::All, history_weight: 1.0 };
    let train = flow.bench.unit(flow.run, "0003/train").id;
    assert_eq!(flow.bench.store.fix_training_set(train, replay, NOW).unwrap(), (24, 0));
    let pages = flow.bench.store.training_pairs(train, None, 100).unwrap();
    assert_eq!(pages.len(), 24);
    // The fourth has the reference of the third: only what is new is asked for, by its own units.
    iteration(&mut flow);
    assert_eq!(earlier(&flow, 4), None);
    let twice = "SELECT count(*) - count(DISTINCT response_id || ' ' || reference_id)
                 FROM reference_logprobs";
    assert_eq!(flow.bench.number(twice), 0);
}
