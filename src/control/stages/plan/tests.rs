//! Tests of the plan: what each kind of work covers.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

pub(super) fn config() -> CheckedConfig {
    let text = "[run]\npolicy = \"p\"\n[generate]\nmax_new_tokens = 64\n\
                [scheduler]\nunit_tokens_cpu = 4096\n";
    CheckedConfig::from_text(text, Path::new("/")).unwrap()
}

pub(super) fn drawn(prompts: u64, evaluate: u64) -> Drawn {
    Drawn {
        iteration: 1,
        prompts,
        evaluate,
        evaluate_rendered: 0,
        policy_in: CheckpointId(1),
        arms: vec![arm("t1.0", 1, 0), arm("t0.7", 1, 4)],
        offline: rlhfd_store::OfflineDrawn::default(),
        replayed: Vec::new(),
    }
}

fn arm(name: &str, policy: i64, first_sample: u32) -> Arm {
    Arm {
        name: name.to_owned(),
        policy: CheckpointId(policy),
        policy_name: format!("policy-{policy}"),
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        n: 4,
        first_sample,
    }
}

pub(super) fn given(done: u64) -> Given {
    let sizes = Sizes::of(&config(), false);
    let scorers = vec![scores("reward", 3, done)];
    Given { scorers, initial: CheckpointId(1), previous: None, answered: done, sizes }
}

fn scores(name: &str, id: i64, initial: u64) -> Scores {
    Scores { id: ScorerId(id), kind: ScorerKind::Reward, name: name.to_owned(), initial }
}

#[test]
fn keys_are_unique_and_every_ordinal_is_covered_once_by_each_work() {
    let units = iteration(&config(), &drawn(37, 5), &given(0)).unwrap();
    let keys: BTreeSet<_> = units.iter().map(|unit| unit.key.clone()).collect();
    assert_eq!(keys.len(), units.len());
    for (stage, work) in [
        (Stage::Prompts, WorkKind::Render),
        (Stage::Generate, WorkKind::Generate),
        (Stage::Label, WorkKind::Score),
        (Stage::Train, WorkKind::Logprobs),
    ] {
        let mut at = 0;
        for unit in units.iter().filter(|unit| (unit.stage, unit.work) == (stage, work)) {
            let plan = unit.plan.unwrap();
            assert_eq!(plan.from, at, "{}", unit.key);
            at = plan.to;
        }
        assert_eq!(at, 37, "{stage} {work}");
    }
}

#[test]
fn a_score_unit_covers_what_a_generate_unit_covers() {
    let units = iteration(&config(), &drawn(37, 0), &given(0)).unwrap();
    let ranges = |work| -> Vec<_> {
        units
            .iter()
            .filter(|unit| unit.work == work && unit.stage <= Stage::Label)
            .filter_map(|unit| unit.plan.map(|plan| (plan.from, plan.to)))
            .collect()
    };
    assert_eq!(ranges(WorkKind::Generate), ranges(WorkKind::Score));
    // 8 responses of 64 tokens are 512 a prompt: 4096 hold 8 prompts, two batches of 4.
    assert_eq!(ranges(WorkKind::Generate)[0], (0, 8));
}

#[test]
fn every_policy_answers_the_same_ranges_and_one_that_two_arms_name_does_so_once() {
    let ranges = |arms: Vec<Arm>| {
        let units = iteration(&config(), &Drawn { arms, ..drawn(37, 0) }, &given(0)).unwrap();
        let mut found = std::collections::BTreeMap::<_, Vec<_>>::new();
        for unit in units {
            let name = match unit.work {
                WorkKind::Generate => unit.key.rsplit_once('/').unwrap().0.to_owned(),
                WorkKind::Score => "score".to_owned(),
                _ => continue,
            };
            let plan = unit.plan.unwrap();
            found.entry((name, unit.policy)).or_default().push((plan.from, plan.to));
        }
        found
    };
    let three = vec![arm("a", 7, 0), arm("b", 8, 4), arm("c", 7, 8)];
    let found = ranges(three);
    let names: Vec<_> = found.keys().map(|(name, policy)| (name.as_str(), *policy)).collect();
    let (seven, eight) = (Some(CheckpointId(7)), Some(CheckpointId(8)));
    let keys = ["1/generate/policy-7", "1/generate/policy-8"];
    assert_eq!(names, [(keys[0], seven), (keys[1], eight), ("score", None)]);
    let all: Vec<_> = found.values().collect();
    assert!(all[0] == all[1] && all[1] == all[2], "{all:?}");
    // Eight responses of 64 tokens by policy 7, as of both arms of one policy.
    assert_eq!(all[0][0], (0, 8));
    let one = ranges(vec![arm("a", 7, 0), arm("b", 7, 4)]);
    assert_eq!(one.keys().next().unwrap(), &("1/generate".to_owned(), seven));
}

#[test]
fn the_initial_policy_answers_only_what_it_has_not_answered() {
    let units = iteration(&config(), &drawn(4, 9), &given(9)).unwrap();
    assert!(units.iter().all(|unit| !unit.lane.starts_with("initial")));
    let units = iteration(&config(), &drawn(4, 9), &given(8)).unwrap();
    let initial: Vec<_> =
        units.iter().filter(|unit| unit.lane == initial_lane(&config())).collect();
    assert_eq!(initial.len(), 2);
    assert!(initial.iter().all(|unit| unit.plan.is_some_and(|p| (p.from, p.to) == (8, 9))));
}

#[test]
fn every_scorer_scores_everything_and_a_new_one_the_answers_that_stand() {
    let mut given = given(9);
    given.scorers.push(scores("canary", 4, 0));
    let units = iteration(&config(), &drawn(37, 9), &given).unwrap();
    let covered = |prefix: &str, id: i64| -> u64 {
        let of = units.iter().filter(|unit| unit.key.starts_with(prefix));
        let items = of.map(|unit| {
            assert_eq!(unit.scorer, Some(ScorerId(id)), "{}", unit.key);
            unit.plan.map_or(0, |plan| plan.items())
        });
        items.sum()
    };
    assert_eq!((covered("1/label/reward/", 3), covered("1/label/canary/", 4)), (37, 37));
    let lane = |policy: &str| format!("1/evaluate/{policy}/score");
    let (policy, initial) = (lane("iteration-0001"), lane(&initial_lane(&config())));
    assert_eq!(covered(&format!("{policy}/reward/"), 3), 9);
    assert_eq!(covered(&format!("{policy}/canary/"), 4), 9);
    assert_eq!(covered(&format!("{initial}/reward/"), 3), 0);
    assert_eq!(covered(&format!("{initial}/canary/"), 4), 9);
}

#[test]
fn a_preference_model_compares_the_draw_and_the_new_policy_with_its_baselines() {
    let mut given = given(9);
    let judge = Scores { kind: ScorerKind::Preference, ..scores("judge", 4, 0) };
    given.scorers.push(judge);
    given.previous = Some("iteration-0003".to_owned());
    let units = iteration(&config(), &drawn(37, 9), &given).unwrap();
    let of = |prefix: &str| -> Vec<_> {
        let compares = |unit: &&NewUnit| unit.work == WorkKind::Prefer;
        units.iter().filter(compares).filter(|unit| unit.key.starts_with(prefix)).collect()
    };
    let items = |units: &[&NewUnit]| -> u64 {
        units.iter().filter_map(|unit| unit.plan).map(|plan| plan.items()).sum()
    };
    let label = of("1/label/judge/");
    assert_eq!(items(&label), 37);
    assert!(label.iter().all(|unit| unit.detail.is_none() && unit.scorer == Some(ScorerId(4))));
    let lane = "1/evaluate/iteration-0001";
    for (key, baseline) in
        [("initial", initial_lane(&config())), ("previous", "iteration-0003".to_owned())]
    {
        let units = of(&format!("{lane}/prefer-{key}/judge/"));
        assert_eq!(items(&units), 9, "{key}");
        assert!(units.iter().all(|unit| unit.detail.as_ref() == Some(&baseline)));
        assert!(units.iter().all(|unit| unit.lane == "iteration-0001"));
    }
    let all = units.iter().filter(|unit| unit.work == WorkKind::Prefer).count();
    assert_eq!(all, label.len() + of(lane).len());
}
