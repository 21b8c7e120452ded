//! The unit's state machine: one total function that decides every change of a unit's state.
//!
//! ```text
//!             leased                finished
//!   open ───────────────▶ running ───────────────▶ done
//!    ▲                       │
//!    │  returned, died from outside, disk failed, first counted death
//!    └───────────────────────┤
//!                            ├── out of memory: open again, in batches of half the size
//!                            ├── second counted death, or input refused:
//!                            │     several items → split in halves
//!                            │     one item      → set_aside
//!                            │     in one piece  → open, and the run pauses
//!                            ├── its training went wrong: set_aside
//!                            └── cancelled (from open too)
//! ```
//!
//! In: a unit and what happened to it. Out: the unit as it is now and what else must be done, or
//! `IllegalEvent`. Live events and recovery after a crash both come through here.
//! May not enter: rows, time, workers.

use crate::cause::Cause;
use crate::ids::{AttemptId, UnitId};
use crate::limits;
use crate::plan::BatchPlan;
use crate::work::WorkKind;

/// A unit as far as its rules go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its row.
    pub id: UnitId,
    /// What it does.
    pub work: WorkKind,
    /// The items that it covers; none where the work is in one piece (training, pairing, …).
    pub plan: Option<BatchPlan>,
    /// Of a train unit: examples of a micro-batch.
    pub micro_batch: Option<u64>,
    /// Where it stands.
    pub state: State,
    /// Deaths that the worker caused, since the last progress.
    pub deaths: u32,
    /// Deaths from outside.
    pub outside_deaths: u32,
    /// Of a train unit: the last saved step.
    pub last_step: Option<u64>,
}

/// Where a unit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits, for its inputs or for a worker.
    Open,
    /// This attempt is on.
    Running(AttemptId),
    /// What it gives is in the store.
    Done,
    /// It does harm and was left out, with a reason.
    SetAside,
    /// Two halves stand for it.
    Split,
    /// Nobody wants it any more.
    Cancelled,
}

impl State {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Running(_) => "running",
            Self::Done => "done",
            Self::SetAside => "set_aside",
            Self::Split => "split",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can happen to it any more.
    #[must_use]
    pub const fn is_closed(self) -> bool {
        !matches!(self, Self::Open | Self::Running(_))
    }
}

/// What happened to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An attempt began.
    Leased(AttemptId),
    /// A train unit's attempt saved its state at this step.
    Progressed(AttemptId, u64),
    /// The attempt gave all that it should.
    Finished(AttemptId),
    /// The attempt's worker died.
    Died(AttemptId, Cause),
    /// The worker refused the input as a whole: trying again cannot mend that.
    Refused(AttemptId),
    /// Its training went wrong: the same steps would again.
    Diverged(AttemptId),
    /// A write failed: a matter of the place, not of the unit.
    DiskFailed(AttemptId),
    /// The attempt was given back on purpose (drain, pause, a device handed over).
    Returned(AttemptId),
    /// Nobody wants the unit any more.
    Cancelled,
}

/// A unit after an event, and what else follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The unit as it is now.
    pub unit: Unit,
    /// What must be done in the same transaction.
    pub effect: Effect,
}

/// What follows from an event beside the unit's own state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// It is tried again with so many items computed together, half as many as before.
    Smaller(u64),
    /// Two units with these plans stand for it now.
    Split(BatchPlan, BatchPlan),
    /// Its item is recorded as set aside.
    SetAside(Blame),
    /// The run pauses with the reason: this work cannot be cut.
    Pause(Blame),
    /// The stage pauses until the place can be written again.
    PlaceFailed,
}

/// Why a unit is at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// So many counted deaths, the last of this cause.
    Deaths(Cause),
    /// The ceiling of deaths from outside, the last of this cause.
    OutsideDeaths(Cause),
    /// The input was refused.
    Refused,
}

impl Blame {
    /// A word that SQL can group by.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Deaths(cause) => cause.label(),
            Self::OutsideDeaths(_) => "outside_deaths",
            Self::Refused => "input",
        }
    }
}

/// An event that cannot happen to a unit in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to unit {unit}, which is {}", state.label())]
pub struct IllegalEvent {
    /// The unit.
    pub unit: UnitId,
    /// Where it stands.
    pub state: State,
    /// What was said to have happened.
    pub event: Event,
}

/// The unit after `event`.
pub fn next(unit: Unit, event: Event) -> Result<Transition, IllegalEvent> {
    let illegal = IllegalEvent { unit: unit.id, state: unit.state, event };
    match (unit.state, event) {
        (State::Open, Event::Leased(attempt)) => {
            Ok(quiet(Unit { state: State::Running(attempt), ..unit }))
        }
        (State::Open | State::Running(_), Event::Cancelled) => {
            Ok(quiet(Unit { state: State::Cancelled, ..unit }))
        }
        (State::Running(on), Event::Finished(by)) if on == by => {
            Ok(quiet(Unit { state: State::Done, ..unit }))
        }
        (State::Running(on), Event::Progressed(by, step)) if on == by && unit.work.trains() => {
            Ok(quiet(progressed(unit, step)))
        }
        (State::Running(on), Event::Died(by, cause)) if on == by => Ok(died(unit, cause)),
        (State::Running(on), Event::Refused(by)) if on == by => Ok(hopeless(unit, Blame::Refused)),
        (State::Running(on), Event::Diverged(by)) if on == by && unit.work.trains() => {
            Ok(quiet(Unit { state: State::SetAside, ..unit }))
        }
        (State::Running(on), Event::DiskFailed(by)) if on == by => Ok(Transition {
            unit: Unit { state: State::Open, ..unit },
            effect: Effect::PlaceFailed,
        }),
        (State::Running(on), Event::Returned(by)) if on == by => {
            Ok(quiet(Unit { state: State::Open, ..unit }))
        }
        (_, _) => Err(illegal),
    }
}

fn quiet(unit: Unit) -> Transition {
    Transition { unit, effect: Effect::Nothing }
}

/// A newly saved step wipes the deaths out: the unit goes on from there, so it is not the harm.
fn progressed(unit: Unit, step: u64) -> Unit {
    if unit.last_step.is_some_and(|last| step <= last) {
        return unit;
    }
    Unit { last_step: Some(step), deaths: 0, ..unit }
}

fn died(unit: Unit, cause: Cause) -> Transition {
    if cause == Cause::OutOfMemory
        && let Some((unit, together)) = in_smaller_batches(&unit)
    {
        let unit = Unit { state: State::Open, ..unit };
        return Transition { unit, effect: Effect::Smaller(together) };
    }
    if cause.is_counted() {
        let deaths = unit.deaths.saturating_add(1);
        let unit = Unit { deaths, ..unit };
        if deaths < limits::COUNTED_DEATHS_MAX {
            return quiet(Unit { state: State::Open, ..unit });
        }
        return hopeless(unit, Blame::Deaths(cause));
    }
    let outside_deaths = unit.outside_deaths.saturating_add(1);
    let unit = Unit { outside_deaths, ..unit };
    if outside_deaths < limits::OUTSIDE_DEATHS_MAX {
        return quiet(Unit { state: State::Open, ..unit });
    }
    hopeless(unit, Blame::OutsideDeaths(cause))
}

/// What ran out of memory is tried with half as much at once, which counts against nobody; none where it
/// is one item at once already. It comes to an end: numbers cannot be halved for ever.
fn in_smaller_batches(unit: &Unit) -> Option<(Unit, u64)> {
    if let Some(plan) = unit.plan {
        let plan = plan.in_smaller_batches()?;
        return Some((Unit { plan: Some(plan), ..unit.clone() }, plan.batch_items));
    }
    let half = unit.micro_batch.filter(|together| *together > 1)? / 2;
    Some((Unit { micro_batch: Some(half), ..unit.clone() }, half))
}

/// Trying this unit again as it is has no point. Work in one piece goes back to open and the run
/// pauses, so that a person may mend what is wrong and resume.
fn hopeless(unit: Unit, blame: Blame) -> Transition {
    let Some(plan) = unit.plan else {
        let unit = Unit { state: State::Open, ..unit };
        return Transition { unit, effect: Effect::Pause(blame) };
    };
    match plan.halves() {
        Some((left, right)) => Transition {
            unit: Unit { state: State::Split, ..unit },
            effect: Effect::Split(left, right),
        },
        None => Transition {
            unit: Unit { state: State::SetAside, ..unit },
            effect: Effect::SetAside(blame),
        },
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(
                (plan.from, plan.to, plan.batch_items, plan.replanned),
                (0, 12, together, true)
            );
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
            let turn =
                [Event::Leased(A), Event::Progressed(A, step), Event::Died(A, Cause::Crashed)];
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
        let refused =
            run(unit(WorkKind::Render, items(0, 2)), &[Event::Leased(A), Event::Refused(A)]);
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
}
