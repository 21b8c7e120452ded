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
//!
//!   done ──▶ open: a training whose checkpoint was altered before its row was written
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
    /// What it gave is altered or gone before anything came of it.
    Spoiled,
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
        (State::Done, Event::Spoiled) if unit.work.trains() => {
            Ok(quiet(Unit { state: State::Open, ..unit }))
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
mod tests;
