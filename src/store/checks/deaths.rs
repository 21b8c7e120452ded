//! Deaths, refusals and restarts: the journal keeps them, the laws still hold.

use rlhfd_domain::{Cause, Effect};

use super::flow::Flow;
use super::*;
use crate::{Generated, Scored, StoreError};

fn die(flow: &mut Flow, key: &str, cause: Cause) -> Effect {
    let unit = flow.bench.unit(flow.run, key);
    let attempt = flow.bench.store.lease_unit(unit.id, None, NOW).unwrap();
    flow.bench.store.unit_died(unit.id, attempt.id, cause, "it fell over", NOW).unwrap()
}

#[test]
fn one_prompt_that_does_harm_is_found_and_set_aside() {
    let mut flow = Flow::new(8);
    flow.start(8, 0);
    flow.bench.render(flow.run);
    // Whatever holds item 5 dies; the rest goes on.
    for _ in 0..100 {
        let ready = flow.bench.store.ready_units(flow.run, 1_000).unwrap();
        let next = ready.into_iter().find(|unit| unit.work == WorkKind::Generate);
        let Some(unit) = next else { break };
        let plan = unit.plan.unwrap();
        if (plan.from..plan.to).contains(&5) {
            die(&mut flow, &unit.key, Cause::Signal);
        } else {
            flow.one(&unit);
        }
    }
    let alone = flow.bench.unit(flow.run, "0001/generate/5-6");
    assert_eq!(alone.state, "set_aside");
    assert!(alone.reason.unwrap().starts_with("signal: 2 counted deaths"), "the reason is kept");
    assert!(alone.plan.unwrap().replanned, "its batch of two was cut");
    assert_eq!(flow.bench.unit(flow.run, "0001/generate/4-8").state, "split");
    assert!(!flow.bench.unit(flow.run, "0001/generate/6-8").plan.unwrap().replanned);
    assert_eq!(flow.bench.number("SELECT count(*) FROM responses"), 14);
    assert_eq!(flow.bench.number("SELECT sum(replanned) FROM responses"), 2);
    flow.work(WorkKind::Score);
    flow.work(WorkKind::Pair);
    let row = &flow.bench.store.history("main", 1).unwrap()[0];
    // Of ordinals 0..8: 4 ties, 5 is set aside, the others are paired.
    assert_eq!((row.preferences, row.ties, row.set_aside), (Some(6), Some(1), Some(1)));
    assert_eq!(
        flow.bench
            .store
            .logprob_items(flow.bench.unit(flow.run, "0001/train/logprobs/0-8").id)
            .unwrap()
            .len(),
        12
    );
    assert_eq!(flow.bench.store.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_response_that_cannot_be_scored_is_counted() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    let unit = flow.bench.unit(flow.run, "0001/label/help/0-4");
    let end = flow.bench.begin(&unit);
    let items: Vec<Scored> = flow
        .bench
        .store
        .score_items(unit.id)
        .unwrap()
        .iter()
        .map(|item| Scored {
            response: item.response,
            outcome: match (item.ordinal, item.sample) {
                (0, 0) => Outcome::SetAside("over_long".into(), "9000 tokens".into()),
                (1, _) => Outcome::Done(f64::NAN),
                (_, sample) => Outcome::Done(f64::from(sample)),
            },
        })
        .collect();
    flow.bench.store.finish_score(&end, &items, NOW).unwrap();
    assert_eq!(flow.bench.number("SELECT count(*) FROM labels WHERE set_aside IS NOT NULL"), 3);
    flow.work(WorkKind::Pair);
    let reasons = flow.bench.number(
        "SELECT count(*) FROM unpaired WHERE (ordinal, kind, reason) IN
         (VALUES (0, 'without_pair', 'one_response'), (1, 'without_pair', 'unlabelled'))",
    );
    assert_eq!(reasons, 2);
    assert_eq!(flow.bench.number("SELECT count(*) FROM preferences"), 2);
}

#[test]
fn a_score_unit_that_kills_leaves_its_responses_set_aside() {
    let mut flow = Flow::new(1);
    flow.start(1, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    die(&mut flow, "0001/label/help/0-1", Cause::OutOfMemory);
    assert!(matches!(
        die(&mut flow, "0001/label/help/0-1", Cause::OutOfMemory),
        Effect::SetAside(_)
    ));
    assert_eq!(
        flow.bench.number("SELECT count(*) FROM labels WHERE set_aside = 'out_of_memory'"),
        2
    );
    flow.work(WorkKind::Pair);
    assert_eq!(flow.bench.number("SELECT count(*) FROM unpaired WHERE reason = 'unlabelled'"), 1);
}

#[test]
fn a_prompt_that_is_refused_gives_no_responses_and_is_told() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    let unit = flow.bench.unit(flow.run, "0001/prompts/render/0-4");
    let end = flow.bench.begin(&unit);
    let items: Vec<Rendered> = flow
        .bench
        .store
        .render_items(unit.id)
        .unwrap()
        .iter()
        .map(|item| Rendered {
            ordinal: item.ordinal,
            prompt: item.prompt,
            outcome: if item.ordinal == 2 {
                Outcome::SetAside("template".into(), "no such role".into())
            } else {
                Outcome::Done(vec![u32::try_from(item.ordinal).unwrap()])
            },
        })
        .collect();
    flow.bench.store.finish_render(&end, &items, NOW).unwrap();
    let unit = flow.bench.unit(flow.run, "0001/generate/0-4");
    let items = flow.bench.store.generate_items(unit.id).unwrap();
    assert_eq!(items.iter().map(|i| i.ordinal).collect::<Vec<_>>(), [0, 1, 3]);
    let end = flow.bench.begin(&unit);
    let empty: Vec<Generated> = items
        .iter()
        .map(|item| Generated {
            ordinal: item.ordinal,
            prompt: item.prompt,
            outcome: Outcome::SetAside("empty".into(), "nothing was written".into()),
        })
        .collect();
    flow.bench.store.finish_generate(&end, &empty, NOW).unwrap();
    flow.work(WorkKind::Score);
    flow.work(WorkKind::Pair);
    assert_eq!(flow.bench.number("SELECT count(*) FROM unpaired WHERE kind = 'set_aside'"), 4);
    assert_eq!(flow.bench.number("SELECT count(*) FROM events WHERE kind = 'items_set_aside'"), 2);
}

#[test]
fn a_restart_reopens_what_ran_and_counts_against_nobody() {
    let mut flow = Flow::new(8);
    flow.start(8, 0);
    flow.bench.render(flow.run);
    let lease = flow.bench.store.open_lease(Stage::Generate, &["cpu".into()], NOW).unwrap();
    flow.bench.store.lease_hello(lease, Some(42), "0.1.0").unwrap();
    let unit = flow.bench.unit(flow.run, "0001/generate/0-4");
    let old = flow.bench.store.lease_unit(unit.id, Some(lease), NOW).unwrap();
    assert_eq!(flow.bench.store.status(flow.run).unwrap().running.len(), 1);
    let mut bench = flow.bench.after_a_kill();
    let recovered = bench.store.recover(NOW + 1).unwrap();
    assert_eq!((recovered.units, recovered.leases), (1, 1));
    assert_eq!(bench.store.recover(NOW + 2).unwrap().units, 0, "once is enough");
    let unit = bench.unit(flow.run, "0001/generate/0-4");
    assert_eq!((unit.state.as_str(), unit.deaths, unit.outside_deaths), ("open", 0, 1));
    let attempts = bench.store.attempts_of(unit.id).unwrap();
    assert_eq!(attempts[0].cause.as_deref(), Some("restart"));
    assert!(bench.store.open_leases().unwrap().is_empty());
    // What the old attempt says now is refused.
    let late = Finish { unit: unit.id, attempt: old.id, tokens: 1, seconds: 1.0 };
    let error = bench.store.finish_generate(&late, &[], NOW).unwrap_err();
    assert!(matches!(error, StoreError::Illegal(_)), "{error:?}");
    assert_eq!(bench.store.lease_unit(unit.id, None, NOW).unwrap().number, 2);
}

#[test]
fn training_pauses_the_run_at_the_second_death_without_a_new_step() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    for step in [2, 4] {
        let unit = flow.bench.unit(flow.run, "0001/train");
        let attempt = flow.bench.store.lease_unit(unit.id, None, NOW).unwrap().id;
        flow.bench.store.unit_progressed(unit.id, attempt, step).unwrap();
        let effect =
            flow.bench.store.unit_died(unit.id, attempt, Cause::Crashed, "x", NOW).unwrap();
        assert_eq!(effect, Effect::Nothing);
    }
    assert_eq!(die(&mut flow, "0001/train", Cause::Killed), Effect::Nothing);
    assert!(matches!(die(&mut flow, "0001/train", Cause::Crashed), Effect::Pause(_)));
    let unit = flow.bench.unit(flow.run, "0001/train");
    assert_eq!((unit.state.as_str(), unit.last_step), ("open", Some(4)));
    let paused = flow.bench.store.run(flow.run).unwrap().paused.unwrap();
    assert!(paused.reason.contains("crashed: 2 counted deaths"), "{}", paused.reason);
    assert_eq!(flow.bench.store.history("main", 1).unwrap()[0].status, "paused");
}

#[test]
fn a_failing_disk_and_a_drain_leave_the_unit_as_it_was() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    let unit = flow.bench.unit(flow.run, "0001/prompts/render/0-4");
    let store = &mut flow.bench.store;
    let attempt = store.lease_unit(unit.id, None, NOW).unwrap().id;
    let effect = store.unit_disk_failed(unit.id, attempt, "no space left", NOW).unwrap();
    assert_eq!(effect, Effect::PlaceFailed);
    let attempt = store.lease_unit(unit.id, None, NOW).unwrap().id;
    assert_eq!(store.unit_returned(unit.id, attempt, "drained", NOW).unwrap(), Effect::Nothing);
    let after = store.unit(unit.id).unwrap();
    assert_eq!((after.state.as_str(), after.deaths, after.outside_deaths), ("open", 0, 0));
    let attempt = store.lease_unit(unit.id, None, NOW).unwrap().id;
    assert!(matches!(store.unit_refused(unit.id, attempt, "bad", NOW).unwrap(), Effect::Split(..)));
}

#[test]
fn a_cancelled_iteration_ends_its_attempts() {
    let mut flow = Flow::new(8);
    flow.start(8, 0);
    let unit = flow.bench.unit(flow.run, "0001/prompts/render/0-8");
    let end = flow.bench.begin(&unit);
    flow.bench.store.cancel_iteration(flow.run, 1, NOW).unwrap();
    assert!(flow.ready().is_empty());
    assert_eq!(flow.bench.number("SELECT count(*) FROM attempts WHERE ended_ms IS NULL"), 0);
    let late = flow.bench.store.finish_render(&end, &[], NOW).unwrap_err();
    assert!(matches!(late, StoreError::Illegal(_)), "{late:?}");
    assert_eq!(flow.start(8, 0), 2);
}
