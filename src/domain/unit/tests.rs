//! Tests of the unit's state machine: deaths, splits, trainings that go on or go wrong, and any events.

use proptest::prelude::*;

use super::*;

const A: AttemptId = AttemptId(1);

fn unit(work: WorkKind, plan: Option<BatchPlan>) -> Unit {
    Unit {
        id: UnitId(7),
        work,
        plan,
        micro_batch: work.trains().then_some(4),
        state: State::Open,
        deaths: 0,
        outside_deaths: 0,
        last_step: None,
    }
}

fn items(from: u64, to: u64) -> Option<BatchPlan> {
    Some(BatchPlan::new(from, to, 4).unwrap())
}

fn run(unit: Unit, events: &[Event]) -> Transition {
    let mut at = quiet(unit);
    for event in events {
        at = next(at.unit, *event).unwrap();
    }
    at
}

#[test]
fn the_second_counted_death_splits_along_a_batch() {
    let deaths = [
        Event::Leased(A),
        Event::Died(A, Cause::Killed), // Not counted.
        Event::Leased(A),
        Event::Died(A, Cause::Signal),
        Event::Leased(A),
        Event::Died(A, Cause::Crashed),
    ];
    let end = run(unit(WorkKind::Generate, items(0, 12)), &deaths);
    assert_eq!(end.unit.state, State::Split);
    let Effect::Split(left, right) = end.effect else { panic!("{:?}", end.effect) };
    assert_eq!((left.from, left.to, right.from, right.to), (0, 8, 8, 12));
    let alone = run(unit(WorkKind::Score, items(3, 4)), &deaths);
    assert_eq!(alone.unit.state, State::SetAside);
    assert_eq!(alone.effect, Effect::SetAside(Blame::Deaths(Cause::Crashed)));
}

const NO_MEMORY: [Event; 2] = [Event::Leased(A), Event::Died(A, Cause::OutOfMemory)];

#[test]
fn what_runs_out_of_memory_is_tried_with_half_as_much_until_one_item_is_too_much() {
    let mut at = unit(WorkKind::Generate, items(0, 12));
    for together in [2, 1] {
        let tried = run(at, &NO_MEMORY);
        assert_eq!(tried.effect, Effect::Smaller(together));
        let plan = tried.unit.plan.unwrap();
        assert_eq!((plan.from, plan.to, plan.batch_items, plan.replanned), (0, 12, together, true));
        assert_eq!((tried.unit.state, tried.unit.deaths), (State::Open, 0));
        at = tried.unit;
    }
    // One by one it counts as any other death: split, and in the end one item is set aside.
    let end = run(at, &[NO_MEMORY, NO_MEMORY].concat());
    assert!(matches!(end.effect, Effect::Split(..)), "{:?}", end.effect);
    let alone = run(unit(WorkKind::Score, items(3, 4)), &[NO_MEMORY, NO_MEMORY].concat());
    assert_eq!(alone.effect, Effect::SetAside(Blame::Deaths(Cause::OutOfMemory)));
}

#[test]
fn a_training_that_runs_out_of_memory_has_its_micro_batch_halved_and_pauses_at_one() {
    let mut at = unit(WorkKind::TrainDpo, None);
    for together in [2, 1] {
        let tried = run(at, &NO_MEMORY);
        assert_eq!(
            (tried.effect, tried.unit.micro_batch),
            (Effect::Smaller(together), Some(together))
        );
        at = tried.unit;
    }
    let end = run(at, &[NO_MEMORY, NO_MEMORY].concat());
    assert_eq!(end.effect, Effect::Pause(Blame::Deaths(Cause::OutOfMemory)));
}

#[test]
fn training_goes_on_while_it_saves_new_steps_and_pauses_when_not() {
    let mut at = unit(WorkKind::TrainDpo, None);
    for step in 1..=10 {
        let turn = [Event::Leased(A), Event::Progressed(A, step), Event::Died(A, Cause::Crashed)];
        at = run(at, &turn).unit;
        assert_eq!((at.state, at.deaths), (State::Open, 1));
    }
    let stuck = [Event::Leased(A), Event::Progressed(A, 10), Event::Died(A, Cause::Crashed)];
    let end = run(at, &stuck);
    assert_eq!(end.unit.state, State::Open);
    assert_eq!(end.effect, Effect::Pause(Blame::Deaths(Cause::Crashed)));
}

#[test]
fn fifty_deaths_from_outside_are_too_many() {
    let mut at = quiet(unit(WorkKind::Render, items(0, 1)));
    for _ in 0..limits::OUTSIDE_DEATHS_MAX {
        assert_eq!(at.unit.state, State::Open);
        at = run(at.unit, &[Event::Leased(A), Event::Died(A, Cause::Restart)]);
    }
    assert_eq!(at.effect, Effect::SetAside(Blame::OutsideDeaths(Cause::Restart)));
    assert_eq!(at.unit.deaths, 0);
}

#[test]
fn a_refused_input_is_not_tried_again_and_a_failing_disk_blames_nobody() {
    let refused = run(unit(WorkKind::Render, items(0, 2)), &[Event::Leased(A), Event::Refused(A)]);
    assert!(matches!(refused.effect, Effect::Split(..)));
    let disk = run(unit(WorkKind::TrainDpo, None), &[Event::Leased(A), Event::DiskFailed(A)]);
    assert_eq!(disk.effect, Effect::PlaceFailed);
    assert_eq!(disk.unit, unit(WorkKind::TrainDpo, None));
}

#[test]
fn a_training_that_went_wrong_is_at_its_end_and_nothing_else_can_go_wrong_so() {
    let diverged = [Event::Leased(A), Event::Diverged(A)];
    let end = run(unit(WorkKind::TrainDpo, None), &diverged);
    assert_eq!((end.unit.state, end.effect), (State::SetAside, Effect::Nothing));
    assert_eq!(end.unit.deaths, 0);
    let score = run(unit(WorkKind::Score, items(0, 4)), &[Event::Leased(A)]).unit;
    next(score, Event::Diverged(A)).unwrap_err();
}

#[test]
fn an_old_attempt_cannot_finish_a_unit() {
    let running = run(unit(WorkKind::Pair, None), &[Event::Leased(AttemptId(2))]).unit;
    let late = next(running.clone(), Event::Finished(A)).unwrap_err();
    assert_eq!(late.state, State::Running(AttemptId(2)));
    let done = run(running, &[Event::Finished(AttemptId(2))]).unit;
    assert!(next(done, Event::Finished(AttemptId(2))).is_err());
}

fn any_event() -> impl Strategy<Value = Event> {
    let attempt = (1_i64..3).prop_map(AttemptId);
    prop_oneof![
        attempt.clone().prop_map(Event::Leased),
        (attempt.clone(), 0_u64..6).prop_map(|(a, s)| Event::Progressed(a, s)),
        attempt.clone().prop_map(Event::Finished),
        (attempt.clone(), 0..Cause::ALL.len()).prop_map(|(a, c)| Event::Died(a, Cause::ALL[c])),
        attempt.clone().prop_map(Event::Refused),
        attempt.clone().prop_map(Event::Diverged),
        attempt.clone().prop_map(Event::DiskFailed),
        attempt.prop_map(Event::Returned),
        Just(Event::Cancelled),
    ]
}

proptest! {
    #[test]
    fn any_events_give_a_state_or_an_illegal_event(
        work in 0..WorkKind::ALL.len(),
        plan in proptest::option::of((0_u64..5, 1_u64..9, 1_u64..4)),
        events in proptest::collection::vec(any_event(), 0..200),
    ) {
        let plan = plan.map(|(from, n, b)| BatchPlan::new(from, from + n, b).unwrap());
        let mut at = unit(WorkKind::ALL[work], plan);
        for event in events {
            match next(at.clone(), event) {
                Ok(step) => {
                    prop_assert!(!at.state.is_closed(), "a closed unit stays as it is");
                    if let Effect::Split(left, right) = step.effect {
                        let whole = at.plan.unwrap();
                        prop_assert_eq!((left.from, right.to), (whole.from, whole.to));
                        prop_assert_eq!(left.to, right.from);
                        prop_assert!(!at.work.trains() || at.plan.is_some());
                    }
                    if matches!(step.effect, Effect::Split(..)) {
                        prop_assert_eq!(step.unit.state, State::Split);
                    }
                    at = step.unit;
                }
                Err(illegal) => prop_assert_eq!(illegal.state, at.state),
            }
        }
    }
}

#[test]
fn only_a_training_is_done_again_when_what_it_gave_is_spoiled() {
    let done = |work, plan| run(unit(work, plan), &[Event::Leased(A), Event::Finished(A)]).unit;
    let again = next(done(WorkKind::TrainDpo, None), Event::Spoiled).unwrap();
    assert_eq!((again.unit.state, again.effect), (State::Open, Effect::Nothing));
    next(done(WorkKind::Generate, items(0, 4)), Event::Spoiled).unwrap_err();
    next(unit(WorkKind::TrainDpo, None), Event::Spoiled).unwrap_err();
}
