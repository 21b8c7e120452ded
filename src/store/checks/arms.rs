//! Arms of several policies: what is frozen, in which order their units run, and what becomes of a prompt
//! that one of them cannot answer.

use rlhfd_domain::checkpoint::PolicyChoice;
use rlhfd_domain::{Cause, Effect};

use super::flow::{Flow, an_arm, to_the_end};
use super::*;
use crate::{Arm, Generated, StoreError};

/// The head writes samples 0, 1 and 4, the policy before it 2 and 3.
fn two_policies(flow: &mut Flow) {
    flow.arms = vec![
        an_arm("warm", PolicyChoice::Current, 2),
        an_arm("old", PolicyChoice::Previous, 2),
        an_arm("cool", PolicyChoice::Named("iteration-0001".into()), 1),
    ];
}

/// A run whose first iteration is done, and whose second has two policies.
fn second(prompts: u64) -> Flow {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 110));
    flow.start(8, 2);
    to_the_end(&mut flow, 1);
    two_policies(&mut flow);
    flow.start(prompts, 0);
    flow.bench.render(flow.run);
    flow
}

fn refused(flow: &mut Flow) -> String {
    let iterations = flow.bench.number("SELECT count(*) FROM iterations");
    let error = flow.try_start(4, 0).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    assert_eq!(flow.bench.number("SELECT count(*) FROM iterations"), iterations);
    error.to_string()
}

#[test]
fn words_become_checkpoints_and_samples_count_over_all_arms() {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 110));
    flow.arms = vec![
        an_arm("a", PolicyChoice::Previous, 1),
        an_arm("b", PolicyChoice::Initial, 1),
        an_arm("c", PolicyChoice::Current, 1),
    ];
    flow.start(8, 2);
    let told = |flow: &Flow, iteration| -> Vec<(String, u32)> {
        let arms = flow.bench.store.iteration_arms(flow.run, iteration).unwrap();
        arms.into_iter()
            .map(|Arm { policy_name, first_sample, .. }| (policy_name, first_sample))
            .collect()
    };
    let of = |rows: &[(&str, u32)]| -> Vec<(String, u32)> {
        rows.iter().map(|(name, sample)| ((*name).to_owned(), *sample)).collect()
    };
    // In the first iteration they are all one.
    assert_eq!(told(&flow, 1), of(&[("initial", 0), ("initial", 1), ("initial", 2)]));
    to_the_end(&mut flow, 1);
    two_policies(&mut flow);
    flow.start(8, 2);
    let second = [("iteration-0001", 0), ("initial", 2), ("iteration-0001", 4)];
    assert_eq!(told(&flow, 2), of(&second));
    to_the_end(&mut flow, 2);
    flow.start(8, 2);
    // What is named stays, what is before the head moves with it.
    let third = [("iteration-0002", 0), ("iteration-0001", 2), ("iteration-0001", 4)];
    assert_eq!(told(&flow, 3), of(&third));
}

#[test]
fn an_unknown_or_broken_policy_starts_nothing_and_says_what_to_do() {
    let mut flow = Flow::new(40);
    flow.bench.add("held", 0.9, &texts(100, 110));
    flow.start(8, 2);
    to_the_end(&mut flow, 1);
    flow.arms = vec![an_arm("cold", PolicyChoice::Named("iteration-0009".into()), 2)];
    let said = refused(&mut flow);
    assert!(said.contains("no policy iteration-0009"), "{said}");
    assert!(said.contains("arm cold") && said.contains("newest is iteration-0001"), "{said}");
    flow.arms = vec![an_arm("cold", PolicyChoice::Initial, 2)];
    flow.bench
        .store
        .conn
        .execute("UPDATE checkpoints SET sound = 0 WHERE name = 'initial'", [])
        .unwrap();
    let said = refused(&mut flow);
    assert!(
        said.contains("initial` is not sound") && said.contains("restore its folder"),
        "{said}"
    );
}

#[test]
fn all_of_one_policy_is_written_first_and_a_label_waits_for_every_policy() {
    let mut flow = second(8);
    let initial = ["0002/generate/initial/0-4", "0002/generate/initial/4-8"];
    let newest = ["0002/generate/iteration-0001/0-4", "0002/generate/iteration-0001/4-8"];
    assert_eq!(flow.ready(), [initial, newest].concat());
    for key in [initial[0], initial[1], newest[1]] {
        let unit = flow.bench.unit(flow.run, key);
        flow.one(&unit);
    }
    // The first range still lacks the answers of one policy.
    assert_eq!(flow.ready(), ["0002/label/help/4-8", newest[0]]);
    // Halves of a unit hold up what they cover, and nothing else.
    for _ in 0..2 {
        let unit = flow.bench.unit(flow.run, newest[0]);
        let end = flow.bench.begin(&unit);
        let store = &mut flow.bench.store;
        store.unit_died(unit.id, end.attempt, Cause::Signal, "x", NOW).unwrap();
    }
    let last = flow.bench.unit(flow.run, "0002/generate/iteration-0001/2-4");
    flow.one(&last);
    let label = "0002/label/help/4-8".to_owned();
    let first = "0002/generate/iteration-0001/0-2".to_owned();
    assert_eq!(flow.ready(), [label, first.clone()]);
    let first = flow.bench.unit(flow.run, &first);
    flow.one(&first);
    assert_eq!(flow.ready(), ["0002/label/help/0-4", "0002/label/help/4-8"]);
}

#[test]
fn every_response_knows_its_arm_its_policy_and_its_sample() {
    let mut flow = second(8);
    flow.work(WorkKind::Generate);
    let own = "SELECT count(*) FROM responses x JOIN checkpoints c ON c.id = x.policy_id
               WHERE x.iteration = 2 AND c.name = iif(x.sample IN (2, 3), 'initial', 'iteration-0001')";
    assert_eq!(flow.bench.number(own), 40);
    let samples = "SELECT count(*) FROM (SELECT ordinal FROM responses WHERE iteration = 2
                   AND purpose = 'generate' GROUP BY ordinal HAVING count(DISTINCT sample) = 5)";
    assert_eq!(flow.bench.number(samples), 8);
}

/// Works off a unit whose worker refuses the first of its prompts.
fn refuse_first(flow: &mut Flow, key: &str) {
    let unit = flow.bench.unit(flow.run, key);
    let end = flow.bench.begin(&unit);
    let samples = super::flow::samples_of(&flow.bench.store, &unit).unwrap();
    let items = flow.bench.store.generate_items(unit.id).unwrap();
    let written = |ordinal: u64| {
        Outcome::Done(
            samples.iter().map(|sample| super::flow::response(ordinal, *sample)).collect(),
        )
    };
    let items: Vec<Generated> = items
        .iter()
        .enumerate()
        .map(|(place, item)| Generated {
            ordinal: item.ordinal,
            prompt: item.prompt,
            outcome: match place {
                0 => Outcome::SetAside("non_finite".into(), "x".into()),
                _ => written(item.ordinal),
            },
        })
        .collect();
    flow.bench.store.finish_generate(&end, &items, NOW).unwrap();
}

/// What the second iteration holds once pairing is done.
fn outcome(flow: &mut Flow) -> [i64; 5] {
    flow.work(WorkKind::Generate);
    flow.work(WorkKind::Score);
    flow.work(WorkKind::Pair);
    let of = "FROM responses x WHERE x.purpose = 'generate' AND x.iteration = 2";
    [
        flow.bench.number(&format!("SELECT count(*) {of}")),
        flow.bench.number(&format!("SELECT count(*) {of} AND x.ordinal = 0")),
        flow.bench.number(&format!(
            "SELECT count(*) {of} AND EXISTS (SELECT 1 FROM labels l WHERE l.response_id = x.id)"
        )),
        flow.bench.number("SELECT count(*) FROM preferences WHERE iteration = 2"),
        flow.bench.number(
            "SELECT count(*) FROM unpaired WHERE iteration = 2 AND kind = 'set_aside'
             AND ordinal = 0 AND reason = 'non_finite'",
        ),
    ]
}

#[test]
fn a_prompt_that_one_policy_refuses_gives_no_label_and_no_pair_whoever_is_first() {
    // Of 40 responses the head's three to prompt 0 are missing; the two of the other policy stay.
    // Ordinals 4 ties, and 0 is set aside.
    let expected = [37, 2, 35, 6, 1];
    let mut first = second(8);
    refuse_first(&mut first, "0002/generate/iteration-0001/0-4");
    assert_eq!(outcome(&mut first), expected);
    let mut last = second(8);
    let others = last.bench.unit(last.run, "0002/generate/initial/0-4");
    last.one(&others);
    refuse_first(&mut last, "0002/generate/iteration-0001/0-4");
    assert_eq!(outcome(&mut last), expected);
}

#[test]
fn a_unit_that_is_set_aside_under_one_policy_leaves_the_laws_whole() {
    let mut flow = second(8);
    let mut keys = vec!["0002/generate/iteration-0001/0-4".to_owned()];
    while let Some(key) = keys.pop() {
        let unit = flow.bench.unit(flow.run, &key);
        let mut last = Effect::Nothing;
        for _ in 0..2 {
            let end = flow.bench.begin(&unit);
            let store = &mut flow.bench.store;
            last = store.unit_died(unit.id, end.attempt, Cause::Signal, "x", NOW).unwrap();
        }
        if let Effect::Split(left, right) = last {
            let stem = "0002/generate/iteration-0001";
            keys.extend([left, right].map(|half| format!("{stem}/{}-{}", half.from, half.to)));
        }
    }
    flow.work(WorkKind::Generate);
    // The other policy answered all eight, and four of them give nothing.
    let told = "SELECT count(*) FROM responses WHERE iteration = 2 AND sample IN (2, 3)
                AND purpose = 'generate'";
    assert_eq!(flow.bench.number(told), 16);
    flow.work(WorkKind::Score);
    flow.work(WorkKind::Pair);
    let aside = "SELECT count(*) FROM unpaired WHERE iteration = 2 AND kind = 'set_aside'";
    assert_eq!(flow.bench.number(aside), 4);
    let labelled = "SELECT count(*) FROM labels l JOIN responses x ON x.id = l.response_id
                    WHERE x.iteration = 2 AND x.purpose = 'generate' AND x.ordinal < 4";
    assert_eq!(flow.bench.number(labelled), 0);
}
