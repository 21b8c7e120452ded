//! Where head and best policy stand after verdicts, cancelled iterations and lost folders.

use rlhfd_domain::CheckpointId;
use rlhfd_domain::gate::{Against, Check, Figure, Limit, Verdict};

use super::flow::{Flow, to_the_end};
use super::*;

fn verdict(value: f64) -> Option<Verdict> {
    Verdict::of(vec![Check {
        figure: Figure::KlK3,
        against: Against::Reference,
        limit: Limit::Max(1.0),
        value: Some(value),
    }])
}

fn name(flow: &Flow, id: Option<CheckpointId>) -> Option<String> {
    id.map(|id| flow.bench.store.checkpoint(id).unwrap().name)
}

/// The names of the head and the best policy.
fn places(flow: &Flow) -> (String, Option<String>) {
    let run = flow.bench.store.run(flow.run).unwrap();
    (name(flow, Some(run.head)).unwrap(), name(flow, run.best))
}

fn flow() -> Flow {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 130));
    flow
}

#[test]
fn a_failed_gate_keeps_the_head_and_marks_the_checkpoint() {
    let mut flow = flow();
    flow.verdict = verdict(2.0);
    let t = flow.start(10, 4);
    to_the_end(&mut flow, t);
    assert_eq!(places(&flow), ("initial".into(), None));
    let store = &flow.bench.store;
    assert_eq!(
        store.gate_failed(flow.run).unwrap(),
        Some((1, "failed: kl_k3 2.000 > 1.000 (reference)".into()))
    );
    let rejected =
        "SELECT count(*) FROM checkpoints WHERE rejected = 1 AND name = 'iteration-0001'";
    assert_eq!(flow.bench.number(rejected), 1);
    let kept = "SELECT count(*) FROM gate_verdicts WHERE iteration = 1 AND figure = 'kl_k3'
                AND bound = 'max' AND limit_value = 1 AND value = 2 AND held = 0";
    assert_eq!(flow.bench.number(kept), 1);

    flow.verdict = verdict(0.5);
    let t = flow.start(10, 4);
    to_the_end(&mut flow, t);
    let store = &flow.bench.store;
    let history = store.history("main", 10).unwrap();
    assert_eq!(
        (history[1].policy_in.as_str(), history[1].gate.as_deref()),
        ("initial", Some("passed"))
    );
    assert_eq!(places(&flow), ("iteration-0002".into(), Some("iteration-0002".into())));
    assert_eq!(store.gate_failed(flow.run).unwrap(), None);
}

#[test]
fn the_first_of_equal_policies_is_the_best_until_its_folder_is_lost() {
    let mut flow = flow();
    for _ in 0..3 {
        let t = flow.start(10, 4);
        to_the_end(&mut flow, t);
    }
    // All of them gain 1 over the initial policy.
    assert_eq!(places(&flow), ("iteration-0003".into(), Some("iteration-0001".into())));
    let store = &mut flow.bench.store;
    assert_eq!(store.history("main", 10).unwrap()[2].gate, None);
    let best = store.run(flow.run).unwrap().best.unwrap();
    assert_eq!(store.iterations_since(flow.run, best).unwrap(), 2);
    let initial = store.run(flow.run).unwrap().initial;
    assert_eq!(store.iterations_since(flow.run, initial).unwrap(), 3);
    store.mark_unsound(best, "it is gone", NOW).unwrap();
    assert_eq!(places(&flow), ("iteration-0003".into(), None));
    let t = flow.start(10, 4);
    to_the_end(&mut flow, t);
    assert_eq!(places(&flow), ("iteration-0004".into(), Some("iteration-0002".into())));
}

#[test]
fn a_cancelled_iteration_and_an_unsound_checkpoint_leave_the_head() {
    let mut flow = flow();
    let trained = [
        WorkKind::Generate,
        WorkKind::Score,
        WorkKind::Pair,
        WorkKind::Logprobs,
        WorkKind::TrainDpo,
        WorkKind::Checkpoint,
    ];
    let t = flow.start(10, 4);
    flow.bench.render(flow.run);
    trained.into_iter().for_each(|kind| flow.work(kind));
    assert_eq!(places(&flow).0, "initial", "the head moves with the verdict");
    flow.bench.store.cancel_iteration(flow.run, t, NOW).unwrap();
    assert_eq!(places(&flow), ("initial".into(), None));

    let t = flow.start(10, 4);
    flow.bench.render(flow.run);
    trained.into_iter().for_each(|kind| flow.work(kind));
    let made = flow.bench.store.iteration(flow.run, t).unwrap().policy_out.unwrap();
    assert_eq!(flow.bench.store.mark_unsound(made, "cut short", NOW).unwrap(), None);
    assert_eq!(places(&flow), ("initial".into(), None));
    // What was under way had made it: its prompts are back.
    let cancelled = "SELECT count(*) FROM iterations WHERE cancelled_ms IS NOT NULL";
    assert_eq!(flow.bench.number(cancelled), 2);
    assert_eq!(flow.bench.number("SELECT count(*) FROM units WHERE state = 'open'"), 0);

    // An earlier version left such an iteration to go on.
    let answered = [WorkKind::Generate, WorkKind::Score, WorkKind::Logprobs];
    let t = flow.start(10, 4);
    flow.bench.render(flow.run);
    trained.into_iter().for_each(|kind| flow.work(kind));
    let made = flow.bench.store.iteration(flow.run, t).unwrap().policy_out.unwrap();
    let mark = "UPDATE checkpoints SET sound = 0 WHERE id = ?1";
    flow.bench.store.transact(|conn| Ok(conn.execute(mark, [made.get()])?)).unwrap();
    answered.into_iter().for_each(|kind| flow.work(kind));
    flow.summarise(t);
    assert_eq!(places(&flow), ("initial".into(), None));
    assert_eq!(flow.bench.number("SELECT count(*) FROM events WHERE kind = 'head_kept'"), 1);
}

#[test]
fn repeated_texts_and_entropy_are_figures_of_an_evaluation() {
    let mut flow = flow();
    let t = flow.start(10, 10);
    to_the_end(&mut flow, t);
    let rows = flow.bench.store.evaluations(flow.run).unwrap();
    // Of 20 responses the tenth prompt's two are one text; each has −3 nats over 3 tokens.
    assert!((rows[0].repeated_share - 0.05).abs() < 1e-12, "{rows:?}");
    assert_eq!(rows[0].entropy, Some(1.0));
}
