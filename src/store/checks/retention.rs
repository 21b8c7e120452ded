//! What may go, and that its marks survive a kill at any point.

use std::collections::BTreeSet;

use rlhfd_domain::CheckpointId;
use rlhfd_domain::train::ReferenceRule;

use super::flow::Flow;
use super::*;
use crate::{Kept, NewUnit, StoreError};

const KEPT: Kept = Kept { newest: 1, named: Vec::new(), reference: ReferenceRule::Fixed };

/// Four iterations, each with a checkpoint.
fn four() -> Flow {
    let mut flow = Flow::new(20);
    for number in 1..=4 {
        // Of five prompts, the one of ordinal 4 ties.
        flow.start(5, 0);
        flow.bench.render(flow.run);
        for work in [WorkKind::Generate, WorkKind::Score, WorkKind::Pair, WorkKind::Logprobs] {
            flow.work(work);
        }
        flow.work(WorkKind::TrainDpo);
        flow.work(WorkKind::Checkpoint);
        flow.bench.store.end_without_update(flow.run, number, "a check", NOW).unwrap();
    }
    flow
}

#[test]
fn a_removal_is_marked_before_and_after_and_begun_once() {
    let mut flow = four();
    let run = flow.run;
    // The head is the initial policy; of the four the newest stays.
    let first = flow.bench.store.next_removal(run, &KEPT, &BTreeSet::new()).unwrap().unwrap();
    assert_eq!(first.iteration, Some(1));
    assert!(flow.bench.store.begin_removal(first.id, &KEPT, NOW).unwrap());
    let mut bench = flow.bench.after_a_kill();
    let begun = bench.store.removals_begun(run).unwrap();
    assert_eq!(begun.iter().map(|one| one.id).collect::<Vec<_>>(), [first.id]);
    assert_eq!(
        bench.store.next_removal(run, &KEPT, &BTreeSet::new()).unwrap().unwrap().id,
        first.id
    );
    assert!(bench.store.begin_removal(first.id, &KEPT, NOW).unwrap(), "begun already");
    bench.store.end_removal(first.id, NOW).unwrap();
    bench.store.end_removal(first.id, NOW).unwrap();
    let told = "SELECT count(*) FROM events WHERE kind = 'checkpoint_removed'";
    assert_eq!(bench.number(told), 1, "it is told once");
    let next = bench.store.next_removal(run, &KEPT, &BTreeSet::new()).unwrap().unwrap();
    assert_eq!(next.iteration, Some(2));
    // Pinned meanwhile: it stays, and the next one is found.
    bench.store.pin(run, "iteration-0002", true, (None, NOW)).unwrap();
    assert!(!bench.store.begin_removal(next.id, &KEPT, NOW).unwrap());
    assert_eq!(
        bench.store.next_removal(run, &KEPT, &BTreeSet::new()).unwrap().unwrap().iteration,
        Some(3)
    );
    let named = Kept { named: vec!["iteration-0003".into()], ..KEPT };
    assert_eq!(bench.store.next_removal(run, &named, &BTreeSet::new()).unwrap(), None);
    let late = bench.store.pin(run, "iteration-0001", true, (None, NOW)).unwrap_err();
    assert!(matches!(late, StoreError::Conflict { .. }), "{late:?}");
    let unknown = bench.store.pin(run, "iteration-0009", true, (None, NOW)).unwrap_err();
    assert!(matches!(unknown, StoreError::NotFound { .. }), "{unknown:?}");
    assert_eq!(bench.store.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_folder_that_does_not_go_holds_up_no_other() {
    let mut flow = four();
    let (run, store) = (flow.run, &mut flow.bench.store);
    let first = store.next_removal(run, &KEPT, &BTreeSet::new()).unwrap().unwrap();
    assert!(store.begin_removal(first.id, &KEPT, NOW).unwrap());
    let passed = BTreeSet::from([first.path]);
    let next = store.next_removal(run, &KEPT, &passed).unwrap().unwrap();
    assert_eq!(next.iteration, Some(2));
}

#[test]
fn averages_stay_while_one_is_made_from_them() {
    let mut flow = four();
    let run = flow.run;
    let first = flow.bench.store.next_removal(run, &KEPT, &BTreeSet::new()).unwrap().unwrap();
    assert!(flow.bench.store.begin_removal(first.id, &KEPT, NOW).unwrap());
    flow.bench.store.end_removal(first.id, NOW).unwrap();
    let average = "INSERT INTO checkpoints (run_id, name, kind, parent_id, path, sha256, unit_id, created_ms)
        SELECT run_id, 'reference-0001', 'reference', id, 'r', 'r', unit_id, 0 FROM checkpoints WHERE id = ?1";
    flow.bench.store.conn.execute(average, [first.id.get()]).unwrap();
    let average = CheckpointId(flow.bench.store.conn.last_insert_rowid());
    let going = |flow: &Flow| {
        let conn = &flow.bench.store.conn;
        crate::retention::all_superfluous(conn, run, &KEPT).unwrap().contains(&average)
    };
    assert!(going(&flow), "its policy is gone");
    let detail = Some("{}".to_owned());
    let unit = NewUnit { detail, ..a_unit(Stage::Train, WorkKind::Average, "average/2") };
    flow.bench.store.add_units(run, &[unit], NOW).unwrap();
    assert!(!going(&flow));
}

#[test]
fn every_checkpoint_is_read_however_many_there_are() {
    let mut flow = Flow::new(4);
    let run = flow.run;
    let before = flow.bench.store.checkpoints(run).unwrap();
    let head = before.last().unwrap().id.get();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10500)
        INSERT INTO checkpoints (id, run_id, name, kind, iteration, parent_id, path, sha256, sound, created_ms)
        SELECT ?1 + i, ?2, 'n' || i, 'policy', i, ?1 + i - 1, 'n' || i, 'n' || i, i = 10500, 0 FROM n";
    flow.bench.store.conn.execute(many, [head, run.get()]).unwrap();
    assert_eq!(flow.bench.store.checkpoints(run).unwrap().len(), before.len() + 10_500);
    // The head falls back over all that are not sound.
    let newest = CheckpointId(head + 10_500);
    flow.bench.store.conn.execute("UPDATE runs SET head_id = ?1", [newest.get()]).unwrap();
    let heir = flow.bench.store.mark_unsound(newest, "it is gone", NOW).unwrap();
    assert_eq!(heir, Some(CheckpointId(head)));
}

#[test]
fn texts_that_no_preference_has_go_and_the_rows_stay() {
    let mut flow = four();
    let run = flow.run;
    let (texts, rows) = ("SELECT count(*) FROM response_texts", "SELECT count(*) FROM responses");
    let (before, all) = (flow.bench.number(texts), flow.bench.number(rows));
    let unpaired = "SELECT count(*) FROM responses r WHERE r.iteration <= 3 AND NOT EXISTS
        (SELECT 1 FROM preferences p WHERE r.id IN (p.chosen_id, p.rejected_id))";
    let unpaired = flow.bench.number(unpaired);
    assert!(unpaired > 0 && unpaired < all);
    while flow.bench.store.sweep_texts(run, 3).unwrap() {}
    assert_eq!(flow.bench.number(texts), before - unpaired);
    assert_eq!(flow.bench.number(rows), all);
    let lost = "SELECT count(*) FROM preferences p WHERE NOT EXISTS
        (SELECT 1 FROM response_texts t WHERE t.response_id = p.chosen_id)
        OR NOT EXISTS (SELECT 1 FROM response_texts t WHERE t.response_id = p.rejected_id)";
    assert_eq!(flow.bench.number(lost), 0);
    assert!(!flow.bench.store.sweep_texts(run, 3).unwrap(), "once is enough");
}

#[test]
fn old_events_go_and_newer_ones_stay() {
    let mut flow = Flow::new(4);
    let before = flow.bench.number("SELECT count(*) FROM events");
    let event = crate::NewEvent::of(flow.run, "later", "it happened later");
    flow.bench.store.append_event(&event, NOW + 1_000).unwrap();
    assert_eq!(flow.bench.store.oldest_event_ms().unwrap(), Some(NOW));
    assert!(flow.bench.store.sweep_events(NOW + 1).unwrap());
    assert!(before > 0 && !flow.bench.store.sweep_events(NOW + 1).unwrap());
    assert_eq!(flow.bench.number("SELECT count(*) FROM events WHERE kind = 'later'"), 1);
    assert_eq!(flow.bench.number("SELECT count(*) FROM events"), 1);
}
