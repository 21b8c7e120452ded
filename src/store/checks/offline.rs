//! Offline preferences: uploads of them, what an iteration freezes of a set, and that nothing of it is
//! lost on the way to the update.

use rlhfd_domain::train::{History, ReferenceRule, Replay};

use super::flow::{Flow, to_the_end};
use super::*;
use crate::{
    Appended, NewOffline, OfflineUse, PairIds, PairLogprobs, RenderedPair, StoreError, TrainingPair,
};

const REPLAY: Replay = Replay { history: History::All, history_weight: 0.5 };

fn offline_upload(set: &str) -> NewUpload {
    NewUpload {
        client_key: None,
        kind: UploadKind::OfflinePreferences,
        name: Name::parse(set, "set").unwrap(),
        set: crate::SetAsked::default(),
    }
}

pub(super) fn pair(n: u32) -> NewOffline {
    let messages = serde_json::json!([{"role": "user", "content": format!("q {n}")}]).to_string();
    let mut sha256 = [0; 32];
    sha256[..4].copy_from_slice(&n.to_le_bytes());
    let folded = a_prompt(&format!("q {n}")).folded;
    NewOffline { messages, chosen: format!("good {n}"), rejected: "bad".into(), sha256, folded }
}

impl Bench {
    pub(super) fn open_offline(&mut self, set: &str) -> UploadId {
        match self.store.open_upload(&offline_upload(set), NOW).unwrap() {
            UploadOpened::Fresh(upload) => upload.id,
            UploadOpened::Done(upload) => panic!("{upload:?} is done already"),
        }
    }

    fn add_offline(&mut self, set: &str, from: u32, to: u32) -> Upload {
        let upload = self.open_offline(set);
        let rows: Vec<NewOffline> = (from..to).map(pair).collect();
        self.store.append_offline(upload, &rows).unwrap();
        self.publish(upload)
    }
}

impl Flow {
    /// A flow whose iterations train on these sets.
    fn with_offline(prompts: u32, sets: &[&str]) -> Self {
        let mut flow = Self::new(prompts);
        flow.offline = OfflineUse {
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
            weight: 2.0,
            tokens_max: 8,
            prompt_tokens_max: None,
        };
        flow
    }

    /// Renders and scores ready units of offline pairs: pair 3 of the list is over-long, 5 has no ids,
    /// and 6 no log-probs.
    fn work_offline(&mut self) {
        for kind in [WorkKind::RenderPairs, WorkKind::LogprobsPairs] {
            for unit in self.bench.store.ready_units(self.run, 1_000).unwrap() {
                if unit.work == kind {
                    let end = self.bench.begin(&unit);
                    self.end_offline(&unit, &end).unwrap();
                }
            }
        }
    }

    fn end_offline(&mut self, unit: &UnitRow, end: &Finish) -> crate::Result<()> {
        let store = &mut self.bench.store;
        let refused = |reason: &str| (reason.to_owned(), "as planned".to_owned());
        if unit.work == WorkKind::RenderPairs {
            let rendered = |item: crate::OfflineRenderItem| {
                let length = if item.ordinal == 3 { 9 } else { 2 };
                let ids =
                    PairIds { prompt: vec![1, 2], chosen: vec![3; length], rejected: vec![4] };
                let outcome = match item.ordinal {
                    5 => {
                        let (reason, message) = refused("template");
                        Outcome::SetAside(reason, message)
                    }
                    _ => Outcome::Done(ids),
                };
                RenderedPair { ordinal: item.ordinal, outcome }
            };
            let items: Vec<_> =
                store.offline_render_items(unit)?.into_iter().map(rendered).collect();
            return store.finish_render_pairs(end, &items, NOW);
        }
        let known = |item: crate::OfflineLogprobItem| {
            let side = |ids: &[u32], sum: f64| (vec![-1.0; ids.len()], sum);
            let sum = -f64::from(u32::try_from(item.ordinal).unwrap());
            let outcome = match item.ordinal {
                6 => {
                    let (reason, message) = refused("non_finite");
                    Outcome::SetAside(reason, message)
                }
                _ => Outcome::Done([side(&item.ids.chosen, sum), side(&item.ids.rejected, -9.0)]),
            };
            PairLogprobs { ordinal: item.ordinal, outcome }
        };
        let items: Vec<_> = store.offline_logprob_items(unit)?.into_iter().map(known).collect();
        store.finish_logprobs_pairs(end, &items, NOW)
    }
}

#[test]
fn duplicates_are_known_within_a_set_and_not_across_sets() {
    let mut bench = Bench::new();
    let upload = bench.open_offline("a");
    let rows = [pair(1), pair(2), pair(1)];
    let got = bench.store.append_offline(upload, &rows).unwrap();
    assert_eq!(got, Appended { kept: 2, reserved: 0, duplicates: 1 });
    assert!(bench.store.preference_sets().unwrap().is_empty(), "nothing is seen yet");
    bench.publish(upload);
    let again = bench.open_offline("a");
    assert_eq!(bench.store.append_offline(again, &rows[..2]).unwrap().duplicates, 2);
    bench.publish(again);
    let other = bench.open_offline("b");
    assert_eq!(bench.store.append_offline(other, &rows[..2]).unwrap().kept, 2);
    bench.publish(other);
    let sets = bench.store.preference_sets().unwrap();
    let counts: Vec<_> = sets.iter().map(|set| (set.name.as_str(), set.preferences)).collect();
    assert_eq!(counts, [("a", 2), ("b", 2)]);
    assert!(bench.store.append_prompts(other, &[a_prompt("x")]).is_err());
}

#[test]
fn of_twins_the_second_published_loses_and_what_failed_is_swept() {
    let mut bench = Bench::new();
    let (one, two, three) =
        (bench.open_offline("a"), bench.open_offline("a"), bench.open_offline("c"));
    let rows: Vec<NewOffline> = (0..10).map(pair).collect();
    bench.store.append_offline(one, &rows).unwrap();
    bench.store.append_offline(two, &rows[4..]).unwrap();
    bench.store.append_offline(three, &rows).unwrap();
    assert_eq!(bench.publish(two).kept, 6);
    let lost = bench.publish(one);
    assert_eq!((lost.kept, lost.duplicates), (4, 6));
    assert_eq!(bench.store.preference_set("a").unwrap().unwrap().preferences, 10);
    // A kill leaves the third upload open: it goes with its rows and its set.
    let mut bench = bench.after_a_kill();
    assert_eq!(bench.store.recover(NOW).unwrap().uploads, 1);
    while bench.store.sweep_uploads().unwrap() {}
    assert_eq!(bench.number("SELECT count(*) FROM offline_preferences"), 10);
    assert_eq!(bench.number("SELECT count(*) FROM preference_sets"), 1, "no empty set is left");
    assert!(bench.store.integrity().unwrap().is_empty());
}

fn order(pairs: &[TrainingPair]) -> Vec<(u32, u64)> {
    pairs.iter().map(|pair| (pair.iteration, pair.ordinal)).collect()
}

/// Works an iteration to its train unit and fixes what it trains on.
fn to_the_update(flow: &mut Flow, iteration: u32) -> Vec<TrainingPair> {
    flow.bench.render(flow.run);
    flow.work_offline();
    for kind in [WorkKind::Generate, WorkKind::Score, WorkKind::Pair, WorkKind::Logprobs] {
        flow.work(kind);
    }
    let train = flow.bench.unit(flow.run, &format!("{iteration:04}/train")).id;
    let (kept, left_out) = flow.bench.store.fix_training_set(train, REPLAY, NOW).unwrap();
    assert_eq!(left_out, 0);
    let pairs = flow.bench.store.training_pairs(train, None, 1_000).unwrap();
    assert_eq!(pairs.len() as u64, kept);
    pairs
}

#[test]
fn offline_pairs_come_first_each_with_its_weight_and_those_set_aside_are_told() {
    let mut flow = Flow::with_offline(20, &["b", "a"]);
    flow.bench.add_offline("a", 0, 4);
    flow.bench.add_offline("b", 10, 14);
    flow.bench.add("held", 0.9, &texts(100, 110));
    let before = flow.start(10, 2);
    // The list is b's pairs (0..4), then a's (4..8): 3 is over-long, 5 and 6 are refused.
    let pairs = to_the_update(&mut flow, before);
    assert_eq!(order(&pairs)[..5], [(0, 0), (0, 1), (0, 2), (0, 4), (0, 7)]);
    assert!(pairs[5..].iter().all(|pair| pair.iteration == 1 && pair.weight == 1.0));
    assert!(pairs[..5].iter().all(|pair| pair.weight == 2.0 && pair.chosen_score.is_none()));
    assert_eq!((pairs[3].reference_chosen, pairs[3].reference_rejected), (-4.0, -9.0));
    assert_eq!((&pairs[3].prompt_ids[..], &pairs[3].chosen_ids[..]), (&[1, 2][..], &[3, 3][..]));
    let train = flow.bench.unit(flow.run, "0001/train");
    rescored_in_order(&flow, &train);
    let told = "SELECT message FROM events WHERE kind = 'offline_set_aside'";
    let told: String = flow.bench.store.conn.query_row(told, [], |row| row.get(0)).unwrap();
    assert_eq!(
        told,
        "of 8 offline preferences, 5 are trained on; set aside: non_finite 1, over_long 1, template 1"
    );
    assert_eq!(flow.bench.number("SELECT offline FROM iteration_history"), 5);
    flow.one(&train);
    finish(&mut flow);
    // More is brought while nothing runs: the next iteration takes it up, and computes only that.
    flow.bench.add_offline("a", 4, 6);
    flow.start(10, 2);
    let keys: Vec<_> = flow.ready().into_iter().filter(|key| key.contains("pairs")).collect();
    assert_eq!(keys, ["0002/train/render_pairs/8-10"]);
    let pairs = to_the_update(&mut flow, 2);
    assert_eq!(order(&pairs)[5..7], [(0, 8), (0, 9)]);
    // Own pairs of the past have their weight, those of this iteration 1.
    let weights: Vec<f64> = pairs[7..].iter().map(|pair| pair.weight).collect();
    assert_eq!(weights, [[0.5; 8], [1.0; 8]].concat());
    assert!(order(&pairs).is_sorted());
}

/// What is scored again before the first step: own pairs, then offline ones, which no policy wrote.
fn rescored_in_order(flow: &Flow, train: &UnitRow) {
    let stored = flow.bench.store.stored_pairs(train.id, 10).unwrap();
    let places: Vec<_> =
        stored.iter().map(|stored| (stored.pair.iteration, stored.pair.ordinal)).collect();
    assert_eq!((places.len(), places[7].0, &places[8..]), (10, 1, &[(0, 0), (0, 1)][..]));
    assert!(stored[..8].iter().all(|own| own.samples.is_some() && own.policy[0].is_some()));
    let offline = &stored[8];
    assert_eq!((offline.samples, &offline.policy), (None, &[None, None]));
    assert_eq!(offline.reference, [vec![-1.0; 2], vec![-1.0]]);
}

/// The rest of an iteration behind its update.
fn finish(flow: &mut Flow) {
    for kind in [WorkKind::Checkpoint, WorkKind::Generate, WorkKind::Score, WorkKind::Logprobs] {
        flow.work(kind);
    }
    flow.summarise(1);
}

#[test]
fn what_comes_after_the_start_is_not_used_and_newest_keeps_the_offline_ones() {
    let mut flow = Flow::with_offline(10, &["a"]);
    let missing = start_refused(&mut flow);
    assert!(missing.contains("rlhfctl preferences add FILE --set a"), "{missing}");
    assert_eq!(flow.bench.number("SELECT count(*) FROM iterations"), 0);
    flow.bench.add_offline("a", 0, 2);
    flow.start(10, 0);
    flow.bench.add_offline("a", 2, 3);
    let pairs = to_the_update(&mut flow, 1);
    assert_eq!(order(&pairs)[..2], [(0, 0), (0, 1)]);
    assert_eq!(flow.bench.number("SELECT count(*) FROM offline_pairs"), 2);
    let train = flow.bench.unit(flow.run, "0001/train").id;
    let newest = Replay { history: History::Newest, ..REPLAY };
    let kept = flow.bench.store.fix_training_set(train, newest, NOW).unwrap().0;
    assert_eq!(kept, pairs.len() as u64);
}

fn start_refused(flow: &mut Flow) -> String {
    let new = crate::NewIteration {
        run: flow.run,
        config: String::new(),
        config_sha256: String::new(),
        prompts_max: 5,
        reuse_prompts: false,
        evaluate_prompts_max: 0,
        arms: Vec::new(),
        offline: flow.offline.clone(),
        reference: ReferenceRule::Fixed,
        history: History::All,
    };
    let error = flow.bench.store.start_iteration(&new, NOW, |_| Vec::new()).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_lost_pair_stops_the_update() {
    let mut flow = Flow::with_offline(10, &["a"]);
    flow.bench.add_offline("a", 0, 3);
    flow.start(10, 0);
    to_the_update(&mut flow, 1);
    // A defect is planted: the log-probs of one pair vanish.
    let lose = "DELETE FROM offline_logprobs WHERE ordinal = 1";
    flow.bench.store.conn.execute(lose, []).unwrap();
    let train = flow.bench.unit(flow.run, "0001/train").id;
    let error = flow.bench.store.fix_training_set(train, REPLAY, NOW).unwrap_err();
    assert!(
        error.to_string().contains("3 offline preferences are used, but 2 are trained on"),
        "{error}"
    );
    assert_eq!(error.disposition(), crate::Disposition::Pause);
}

#[test]
fn a_pair_that_kills_its_worker_is_set_aside_alone() {
    let mut flow = Flow::with_offline(10, &["a"]);
    flow.bench.add_offline("a", 0, 4);
    flow.start(10, 0);
    flow.bench.render(flow.run);
    // Whatever holds pair 2 dies: the unit is halved until it stands alone.
    for _ in 0..40 {
        let ready = flow.bench.store.ready_units(flow.run, 1_000).unwrap();
        let pairs = ready
            .into_iter()
            .find(|unit| matches!(unit.work, WorkKind::RenderPairs | WorkKind::LogprobsPairs));
        let Some(unit) = pairs else { break };
        let end = flow.bench.begin(&unit);
        let harmful = unit.work == WorkKind::LogprobsPairs
            && unit.plan.is_some_and(|plan| (plan.from..plan.to).contains(&2));
        if harmful {
            let cause = rlhfd_domain::Cause::Signal;
            flow.bench.store.unit_died(unit.id, end.attempt, cause, "by the check", NOW).unwrap();
        } else {
            flow.end_offline(&unit, &end).unwrap();
        }
    }
    let reason = "SELECT ordinal FROM offline_logprobs WHERE set_aside = 'signal'";
    assert_eq!(flow.bench.number(reason), 2);
    for kind in [WorkKind::Generate, WorkKind::Score, WorkKind::Pair, WorkKind::Logprobs] {
        flow.work(kind);
    }
    let train = flow.bench.unit(flow.run, "0001/train").id;
    flow.bench.store.fix_training_set(train, REPLAY, NOW).unwrap();
    let offline = "SELECT count(*) FROM training_set_members WHERE offline_id IS NOT NULL";
    assert_eq!(flow.bench.number(offline), 2, "pair 3 is over-long");
}

#[test]
fn a_cancelled_iteration_leaves_what_it_made_to_the_next() {
    let mut flow = Flow::with_offline(40, &["a"]);
    flow.bench.add_offline("a", 0, 3);
    flow.bench.add("held", 0.9, &texts(100, 110));
    flow.start(10, 2);
    flow.bench.render(flow.run);
    for unit in flow.bench.store.ready_units(flow.run, 1_000).unwrap() {
        if unit.work == WorkKind::RenderPairs {
            let end = flow.bench.begin(&unit);
            flow.end_offline(&unit, &end).unwrap();
        }
    }
    flow.bench.store.cancel_iteration(flow.run, 1, NOW).unwrap();
    flow.start(10, 2);
    flow.work_offline();
    let rendered = "SELECT count(*) FROM units WHERE work = 'render_pairs' AND iteration = 2";
    assert_eq!(flow.bench.number(rendered), 0);
    to_the_end(&mut flow, 2);
}
