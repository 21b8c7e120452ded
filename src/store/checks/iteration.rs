//! A whole iteration by hand: every unit becomes ready in its turn, gives its rows once, and the two
//! views tell it.

use rlhfd_domain::checkpoint::CheckpointKind;
use rlhfd_domain::train::{HeldOut, History, ReferenceRule, Replay};

use super::flow::{Flow, INITIAL, checkpoint, response, step, to_the_end};
use super::*;
use crate::{Generated, NewCheckpoint, NewIteration, NewResponse, StoreError};

#[test]
fn every_unit_is_ready_in_its_turn() {
    let mut flow = Flow::new(10);
    flow.start(10, 0);
    assert_eq!(flow.ready(), ["0001/prompts/render/0-8", "0001/prompts/render/8-10"]);
    flow.bench.render(flow.run);
    let generate = ["0001/generate/0-4", "0001/generate/4-8", "0001/generate/8-10"];
    assert_eq!(flow.ready(), generate);
    let first = flow.bench.unit(flow.run, generate[0]);
    flow.one(&first);
    // Scoring what is written comes before writing more.
    assert_eq!(flow.ready(), ["0001/label/help/0-4", generate[1], generate[2]]);
    flow.work(WorkKind::Generate);
    assert_eq!(flow.ready().len(), 3);
    let second = flow.bench.unit(flow.run, "0001/label/help/4-8");
    flow.one(&second);
    flow.work(WorkKind::Score);
    assert_eq!(flow.ready(), ["0001/pair"]);
    flow.work(WorkKind::Pair);
    assert_eq!(flow.ready(), ["0001/train/logprobs/0-8", "0001/train/logprobs/8-10"]);
    flow.work(WorkKind::Logprobs);
    assert_eq!(flow.ready(), ["0001/train"]);
    flow.work(WorkKind::TrainDpo);
    assert_eq!(flow.ready(), ["0001/checkpoint"]);
    flow.work(WorkKind::Checkpoint);
    assert!(flow.ready().is_empty());
}

#[test]
fn two_iterations_and_what_the_views_tell() {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.5, &texts(100, 130));
    let t = flow.start(20, 10);
    assert!(flow.ready().iter().any(|key| key.starts_with("0001/evaluate/render")));
    to_the_end(&mut flow, t);
    let t = flow.start(20, 10);
    let keys = flow.bench.store.units_of(flow.run, t, None, 1_000).unwrap();
    assert!(!keys.iter().any(|u| u.key.contains("/initial-") || u.key.contains("evaluate/render")));
    to_the_end(&mut flow, t);

    let store = &flow.bench.store;
    let history = store.history("main", 10).unwrap();
    assert_eq!(history.len(), 2);
    let (one, two) = (&history[0], &history[1]);
    assert_eq!((one.status.as_str(), two.status.as_str()), ("done", "done"));
    assert_eq!((one.policy_in.as_str(), two.policy_in.as_str()), ("initial", "iteration-0001"));
    assert_eq!(two.policy_out.as_deref(), Some("iteration-0002"));
    // Of 20 prompts, 4, 9, 14, 19 tie; of these 9 and 19 have one text only, which is no tie.
    assert_eq!((one.prompts, one.responses), (Some(20), Some(40)));
    assert_eq!((one.preferences, one.ties, one.without_pair), (Some(16), Some(2), Some(2)));
    assert_eq!((one.set_aside, one.score_gap_mean), (Some(0), Some(1.0)));
    // 16 prompts with scores 0 and 1, 4 with 2 and 2: (16·1 + 4·4) / 40.
    assert!((one.score_mean.unwrap() - 0.8).abs() < 1e-12);
    assert_eq!((one.response_tokens_mean, one.length_penalty), (Some(3.0), Some(0.0)));
    assert_eq!((one.truncated_share, one.loss_last), (Some(0.5), Some(0.6)));
    assert_eq!((one.accuracy_last, one.margin_last, one.kl_k3), (Some(0.75), Some(0.1), Some(0.0)));
    // The trained policy scores one more everywhere: it wins every pair.
    assert_eq!(one.eval_win_rate, Some(1.0));
    assert_eq!(one.ended_ms, Some(NOW + 9_000));
    assert!(one.generate_s.unwrap() > 0.0 && one.evaluate_s.unwrap() > 0.0);

    let lineage = store.lineage("main", "iteration-0002").unwrap();
    let ancestors: Vec<&str> = lineage.iter().map(|row| row.ancestor.as_str()).collect();
    assert_eq!(ancestors, ["main/iteration-0002", "main/iteration-0001", "main/initial"]);
    assert_eq!(lineage.iter().map(|row| row.depth).collect::<Vec<_>>(), [0, 1, 2]);
    // The socket asks for one line alone, and tells what the view tells of it.
    let told = store.lineage_table("main", "head").unwrap();
    let text = |name: &str| crate::sql::SqlValue::Text(name.to_owned());
    let expected: Vec<_> = ancestors.iter().map(|name| text(name)).collect();
    assert_eq!(told.rows.iter().map(|row| row[1].clone()).collect::<Vec<_>>(), expected);
    assert_eq!(store.evaluations(flow.run).unwrap()[0].gain.value, 1.0);
    assert_eq!(
        store.run(flow.run).unwrap().head,
        store.iteration(flow.run, 2).unwrap().policy_out.unwrap()
    );
    assert_eq!(store.iterations_so_far(flow.run).unwrap(), (2, 2));
    assert!(store.integrity().unwrap().is_empty());
    assert_eq!(flow.bench.number("SELECT count(*) FROM units u WHERE 1 < (SELECT count(*) FROM attempts a WHERE a.unit_id = u.id AND a.outcome = 'finished')"), 0);
}

#[test]
fn the_training_set_is_in_order_and_the_same_again() {
    let mut flow = Flow::new(20);
    flow.bench.add("held", 0.9, &texts(100, 110));
    flow.start(10, 2);
    to_the_end(&mut flow, 1);
    flow.start(10, 2);
    flow.bench.render(flow.run);
    for kind in [WorkKind::Generate, WorkKind::Score, WorkKind::Pair, WorkKind::Logprobs] {
        flow.work(kind);
    }
    let train = flow.bench.unit(flow.run, "0002/train").id;
    let store = &mut flow.bench.store;
    let replay = |history| Replay { history, history_weight: 0.5 };
    assert_eq!(store.fix_training_set(train, replay(History::Newest), NOW).unwrap(), (8, 0));
    assert_eq!(store.fix_training_set(train, replay(History::All), NOW).unwrap(), (16, 0));
    let all = store.training_pairs(train, None, 1_000).unwrap();
    assert_eq!(all.len(), 16);
    let order: Vec<(u32, u64)> = all.iter().map(|pair| (pair.iteration, pair.ordinal)).collect();
    assert!(order.is_sorted());
    assert_eq!(all[0].chosen_ids, [5, 6, 8]);
    assert_eq!((all[0].chosen_score, all[0].rejected_score), (Some(1.0), Some(0.0)));
    assert_eq!((all[0].weight, all[15].weight), (0.5, 1.0));
    let mut paged = store.training_pairs(train, None, 7).unwrap();
    while let Some(last) = paged.last().map(|pair| pair.position) {
        let next = store.training_pairs(train, Some(last), 7).unwrap();
        if next.is_empty() {
            break;
        }
        paged.extend(next);
    }
    assert_eq!(paged, all);
}

#[test]
fn a_unit_gives_its_rows_once() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    flow.bench.render(flow.run);
    let unit = flow.bench.unit(flow.run, "0001/generate/0-4");
    let end = flow.one(&unit);
    let again = flow.end(&unit, &end).unwrap_err();
    assert!(matches!(again, StoreError::AlreadyFinished { .. }), "{again:?}");
    assert_eq!(flow.bench.number("SELECT count(*) FROM responses"), 8);
    assert!(flow.bench.store.lease_unit(unit.id, None, NOW).is_err());
    assert_eq!(flow.bench.number("SELECT count(*) FROM attempts WHERE unit_id = (SELECT id FROM units WHERE key = '0001/generate/0-4')"), 1);
}

#[test]
fn a_result_that_does_not_fit_changes_nothing() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    let render = flow.bench.unit(flow.run, "0001/prompts/render/0-4");
    let end = flow.bench.begin(&render);
    let none = flow.bench.store.finish_render(&end, &[], NOW).unwrap_err();
    assert!(matches!(none, StoreError::Misfit { .. }), "{none:?}");
    let attempt = flow.bench.store.unit_returned(render.id, end.attempt, "again", NOW).unwrap();
    assert_eq!(attempt, rlhfd_domain::Effect::Nothing);
    flow.bench.render(flow.run);
    let unit = flow.bench.unit(flow.run, "0001/generate/0-4");
    let end = flow.bench.begin(&unit);
    let prompt = flow.bench.store.generate_items(unit.id).unwrap()[0].prompt;
    let strange =
        |ordinal, response| [Generated { ordinal, prompt, outcome: Outcome::Done(vec![response]) }];
    let short = NewResponse { logprobs: vec![-1.0], ..response(0, 0) };
    let nan = NewResponse { logprob: f64::NAN, ..response(0, 0) };
    let rest = |items: &[Generated]| -> Vec<Generated> {
        let others = (1..4).map(|ordinal| Generated {
            ordinal,
            prompt,
            outcome: Outcome::SetAside("empty".into(), String::new()),
        });
        items.iter().cloned().chain(others).collect()
    };
    let twice = Generated {
        ordinal: 0,
        prompt,
        outcome: Outcome::Done(vec![response(0, 0), response(0, 0)]),
    };
    for items in [
        rest(&strange(0, short)),
        rest(&strange(0, nan)),
        rest(&strange(4, response(4, 0))),
        rest(&[twice]),
        strange(0, response(0, 0)).to_vec(),
        Vec::new(),
    ] {
        let error = flow.bench.store.finish_generate(&end, &items, NOW).unwrap_err();
        assert!(matches!(error, StoreError::Misfit { .. }), "{error:?}");
    }
    assert_eq!(flow.bench.number("SELECT count(*) FROM responses"), 0);
    assert_eq!(flow.bench.unit(flow.run, "0001/generate/0-4").state, "running");
    flow.end(&unit, &end).unwrap();
    let label = flow.bench.unit(flow.run, "0001/label/help/0-4");
    let end = flow.bench.begin(&label);
    let missing = flow.bench.store.finish_score(&end, &[], NOW).unwrap_err();
    assert!(matches!(missing, StoreError::Misfit { .. }), "{missing:?}");
    let train = flow.bench.unit(flow.run, "0001/train");
    let end = flow.bench.begin(&train);
    let gap = [step(1, 0.7), step(3, 0.7)];
    assert!(flow.bench.store.finish_train(&end, &gap, 1, NOW).is_err());
}

#[test]
fn equal_prompts_of_a_draw_are_told_apart() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    // All these texts have the same length, so that the bench renders them to the same ids.
    bench.add("s", 0.0, &texts(10, 20));
    let new = NewIteration {
        run,
        config: String::new(),
        config_sha256: String::new(),
        prompts_max: 10,
        reuse_prompts: false,
        arms: Vec::new(),
        evaluate_prompts_max: 0,
        offline: crate::OfflineUse::default(),
        reference: ReferenceRule::Fixed,
        history: History::All,
    };
    let render = a_unit(Stage::Prompts, WorkKind::Render, "0001/prompts/render");
    let generate = NewUnit {
        policy: Some(bench.store.run(run).unwrap().head),
        ..a_unit(Stage::Generate, WorkKind::Generate, "0001/generate")
    };
    let plan = |_: &crate::Drawn| {
        let mut all = units(&render, 10, 1, 5);
        all.extend(units(&generate, 10, 1, 10));
        all
    };
    bench.store.start_iteration(&new, NOW, plan).unwrap();
    bench.render(run);
    let unit = bench.unit(run, "0001/generate/0-10");
    let items = bench.store.generate_items(unit.id).unwrap();
    assert_eq!(items.iter().map(|i| i.occurrence).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_law_that_does_not_hold_stops_the_iteration() {
    let mut flow = Flow::new(8);
    flow.start(8, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    flow.work(WorkKind::Score);
    // A defect is planted: one label vanishes.
    flow.bench.store.conn.execute("DELETE FROM labels WHERE id = 3", []).unwrap();
    let pair = flow.bench.unit(flow.run, "0001/pair");
    let end = flow.bench.begin(&pair);
    let error = flow.end(&pair, &end).unwrap_err();
    assert!(
        error.to_string().contains("16 responses were kept, but scorer help labelled 15"),
        "{error}"
    );
    assert_eq!(flow.bench.number("SELECT count(*) FROM preferences"), 0);
    assert_eq!(flow.bench.unit(flow.run, "0001/pair").state, "running");
}

#[test]
fn a_checkpoint_that_is_not_sound_hands_the_head_to_its_parent() {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 110));
    for _ in 0..2 {
        let t = flow.start(10, 2);
        to_the_end(&mut flow, t);
    }
    let store = &mut flow.bench.store;
    let by_name =
        |store: &Store, name: &str| store.checkpoint_by_name(flow.run, name).unwrap().unwrap().id;
    let (one, two) = (by_name(store, "iteration-0001"), by_name(store, "iteration-0002"));
    assert_eq!(store.mark_unsound(one, "a file is cut short", NOW).unwrap(), None);
    let initial = store.run(flow.run).unwrap().initial;
    assert_eq!(store.mark_unsound(two, "it is gone", NOW).unwrap(), Some(initial));
    assert!(store.roll_back(flow.run, 2, "asked", NOW).is_err());
    store.mark_sound(one, NOW).unwrap();
    assert_eq!(store.roll_back(flow.run, 1, "asked", NOW).unwrap(), "iteration-0001");
    assert_eq!(store.run(flow.run).unwrap().head, one);
}

#[test]
fn a_roll_back_goes_to_any_iteration_but_not_while_one_is_under_way() {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 110));
    let t = flow.start(10, 2);
    let error = flow.bench.store.roll_back(flow.run, 0, "asked", NOW).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    to_the_end(&mut flow, t);
    let store = &mut flow.bench.store;
    assert_eq!(store.roll_back(flow.run, 0, "asked", NOW).unwrap(), "initial");
    let run = store.run(flow.run).unwrap();
    assert_eq!(run.head, run.initial);
    let error = store.roll_back(flow.run, 7, "asked", NOW).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

#[test]
fn another_model_under_a_scorers_name_scores_the_initial_policy_anew() {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 110));
    let t = flow.start(10, 2);
    to_the_end(&mut flow, t);
    let name = flow.bench.store.scorer_by_id(flow.scorer).unwrap().name;
    let other = flow.bench.store.scorer(&name, "reward", "elsewhere", &"f".repeat(64)).unwrap();
    let done = |work, scorer| flow.bench.store.lane_done(flow.run, INITIAL, work, scorer).unwrap();
    let answered = done(WorkKind::Generate, None);
    assert!(answered > 0);
    assert_eq!(done(WorkKind::Score, Some(flow.scorer)), answered);
    assert_eq!(done(WorkKind::Score, Some(other)), 0);
}

#[test]
fn a_training_job_ends_with_its_checkpoint() {
    let mut bench = Bench::new();
    let run = bench.run();
    let job = crate::NewJob {
        run: run.id,
        kind: rlhfd_domain::JobKind::Reward,
        name: "short".into(),
        upload: None,
        config: String::new(),
        config_sha256: String::new(),
        base: Some(ModelIdentity { path: "m".into(), sha256: "a".into() }),
    };
    let plan = |slug: &str| {
        let key = |last: &str| format!("job/reward/{slug}/{last}");
        vec![
            a_unit(Stage::Train, WorkKind::TrainReward, &key("train")),
            a_unit(Stage::Checkpoint, WorkKind::Checkpoint, &key("checkpoint")),
        ]
    };
    let id = bench.store.create_job(&job, plan, NOW).unwrap();
    assert!(bench.store.create_job(&job, plan, NOW).is_err());
    assert_eq!(bench.ready(run.id), ["job/reward/short/train"]);
    let train = bench.unit(run.id, "job/reward/short/train");
    let end = bench.begin(&train);
    let figures = |source: &str, accuracy| HeldOut {
        source: source.into(),
        pairs: 4,
        accuracy,
        calibration_error: 0.1,
        responses: 8,
        length_correlation: None,
    };
    bench.store.keep_reports(train.id, &[figures("", 0.5), figures("gone", 0.5)]).unwrap();
    // A second try takes the place of the first.
    let kept = [figures("", 0.75), figures("hh", 1.0)];
    bench.store.keep_reports(train.id, &kept).unwrap();
    assert_eq!(bench.store.reports(train.id).unwrap(), kept);
    bench.store.finish_train(&end, &[step(1, 0.7)], 1, NOW).unwrap();
    assert_eq!(bench.store.job_listings().unwrap()[0].held_out_accuracy, Some(0.75));
    assert_eq!(bench.ready(run.id), ["job/reward/short/checkpoint"]);
    let unit = bench.unit(run.id, "job/reward/short/checkpoint");
    let end = bench.begin(&unit);
    let new = NewCheckpoint {
        name: "reward-short".into(),
        kind: CheckpointKind::Reward,
        ..checkpoint(1, run.initial, run.reference)
    };
    let made = bench.store.finish_checkpoint(&end, &new, NOW).unwrap();
    let done = bench.store.job(id).unwrap();
    assert_eq!((done.status, done.checkpoint), (crate::JobStatus::Done, Some(made)));
    assert_eq!(bench.store.run(run.id).unwrap().head, run.head, "a reward model is no head");
    assert!(bench.store.end_job(id, crate::JobStatus::Cancelled, "late", NOW).is_err());
    assert!(bench.store.create_job(&job, plan, NOW).is_err(), "it is done");

    // A job that failed or was cancelled leaves its name, and stands in nobody's way.
    let other = crate::NewJob { name: "other".into(), ..job };
    for (number, status) in (1..).zip([crate::JobStatus::Cancelled, crate::JobStatus::Failed]) {
        let id = bench.store.create_job(&other, plan, NOW).unwrap();
        assert_eq!(bench.store.job(id).unwrap().number, number);
        assert!(bench.store.create_job(&other, plan, NOW).is_err(), "it is open");
        bench.store.end_job(id, status, "asked for", NOW).unwrap();
    }
    let third = bench.store.create_job(&other, plan, NOW).unwrap();
    let found = bench.store.job_by_name(run.id, other.kind, "other").unwrap().unwrap();
    assert_eq!((found.id, found.slug().as_str()), (third, "other~3"));
    assert_eq!(bench.ready(run.id), ["job/reward/other~3/train"]);
    assert_eq!(bench.store.jobs(run.id).unwrap().len(), 4, "every row stays");
}

/// Instructions of SQLite's machine that asking what is ready and how far it is takes, in hundreds.
fn asking_costs(flow: &mut Flow) -> u64 {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let ticks = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&ticks);
    let count = move || {
        counter.fetch_add(1, Ordering::Relaxed);
        false
    };
    flow.bench.store.conn_mut().progress_handler(100, Some(count)).unwrap();
    assert!(!flow.ready().is_empty());
    flow.bench.store.status(flow.run).unwrap();
    flow.bench.store.conn_mut().progress_handler(0, None::<fn() -> bool>).unwrap();
    ticks.load(Ordering::Relaxed)
}

#[test]
fn asking_what_is_ready_costs_by_what_waits_and_not_by_its_square() {
    let cost = |prompts: u32| -> u64 {
        let mut flow = Flow::new(prompts);
        flow.start(u64::from(prompts), 0);
        flow.bench.render(flow.run);
        asking_costs(&mut flow)
    };
    let (few, many) = (cost(400), cost(4_000));
    assert!(many < 15 * few, "100 units cost {few}, 1000 cost {many}");
}

#[test]
fn what_is_over_costs_nothing_any_more() {
    let mut flow = Flow::new(400);
    flow.start(200, 0);
    flow.bench.store.end_without_update(flow.run, 1, "a check", NOW).unwrap();
    flow.start(100, 0);
    flow.bench.render(flow.run);
    let young = asking_costs(&mut flow);
    flow.bench
        .store
        .conn
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO units (run_id, iteration, stage, work, key, from_item, to_item,
                                batch_items, state, created_ms)
             SELECT 1, 1, 'generate', 'generate', 'old/' || i, i, i + 1, 1, 'done', 0 FROM n;
             INSERT INTO attempts (unit_id, number, started_ms, ended_ms, outcome)
             SELECT id, 1, 0, 1, 'finished' FROM units WHERE key LIKE 'old/%';",
        )
        .unwrap();
    let old = asking_costs(&mut flow);
    assert!(old <= young + young / 5 + 5, "it cost {young}, and {old} after 20,000 units");
}
