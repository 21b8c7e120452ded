//! A device's standing: whether it takes units now, and why not.
//!
//! In: what is seen of a device at a look, the rules of `[devices]`, the time as a number. Out: a
//! [`Standing`] with what it must remember: a limit is left only some degrees lower, and a device that
//! was yielded comes back only after it was free for a while. Pure. May not enter: leases, units.

use crate::gpu::Fault;

/// So much cooler than the limit a device must be to take units again.
pub const COOLER_C: u32 = 5;
/// So long a device rests after an error of its hardware, in milliseconds; or until it was away.
pub const REST_MS: i64 = 10 * 60 * 1000;
/// A device that does not answer at so many looks in a row is lost.
pub const SILENT_LOOKS_MAX: u32 = 3;

/// The rules of `[devices]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// No new unit above it; 0: no such limit.
    pub temperature_max_c: u32,
    /// Yields where others use more than this; 0: never.
    pub yield_above_mib: u64,
    /// Comes back after it was free for so long.
    pub yield_for_ms: i64,
}

/// What is seen of a device at a look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// What is wrong with it.
    pub fault: Option<Fault>,
    /// An error of its hardware that the driver reported since the last look.
    pub broke: Option<String>,
    /// Memory errors that could not be corrected.
    pub ecc_uncorrected: Option<u64>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// What others use of its memory.
    pub foreign_mib: Option<u64>,
    /// Whether these are quiet hours.
    pub quiet: bool,
}

/// Why a device takes no new unit; the gravest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// It is gone.
    Lost(String),
    /// Its hardware failed: what it computes is not to be trusted.
    Broken(String),
    /// Others use it.
    Yielded,
    /// Quiet hours.
    Quiet,
    /// It does not answer.
    Silent(String),
    /// It is too hot.
    Hot,
}

impl Hold {
    /// The word of rows.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Lost(_) => "lost",
            Self::Broken(_) => "broken",
            Self::Yielded => "yielded",
            Self::Quiet => "quiet",
            Self::Silent(_) => "silent",
            Self::Hot => "hot",
        }
    }

    /// What becomes of the lease on it.
    #[must_use]
    pub const fn duty(&self) -> Duty {
        match self {
            Self::Lost(_) | Self::Broken(_) => Duty::End,
            Self::Yielded | Self::Quiet => Duty::Leave,
            Self::Silent(_) | Self::Hot => Duty::Rest,
        }
    }
}

/// What is due on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Take units.
    Work,
    /// Take no new unit; what runs goes on, and models stay loaded.
    Rest,
    /// Finish the unit that runs (a training: stop at a step), then leave the device.
    Leave,
    /// End at once; the unit goes to another device.
    End,
}

impl Duty {
    /// In words, for the timeline.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Work => "takes units",
            Self::Rest => "no new unit",
            Self::Leave => "finish the unit, then leave",
            Self::End => "end the lease at once",
        }
    }
}

/// Where a device stands, and what it must remember for the next look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Why it takes no new unit; none: it takes them.
    pub hold: Option<Hold>,
    hot: bool,
    yielded: bool,
    free_since_ms: Option<i64>,
    rests_until_ms: Option<(i64, String)>,
    ecc_uncorrected: Option<u64>,
    silent_looks: u32,
}

impl Standing {
    /// What is due on it.
    #[must_use]
    pub fn duty(&self) -> Duty {
        self.hold.as_ref().map_or(Duty::Work, Hold::duty)
    }
}

/// The standing after a look.
#[must_use]
pub fn stand(before: &Standing, seen: &Seen, rules: &Rules, now_ms: i64) -> Standing {
    let mut after = before.clone();
    // The driver tells it once: it counts also where the device does not answer at this look.
    if let Some(why) = &seen.broke {
        rest(&mut after, why, now_ms);
    }
    let fault = match &seen.fault {
        Some(Fault::Lost(why)) => Some(Hold::Lost(why.clone())),
        Some(Fault::Silent(why)) => {
            after.silent_looks = after.silent_looks.saturating_add(1);
            let lost = after.silent_looks >= SILENT_LOOKS_MAX;
            Some(if lost { Hold::Lost(why.clone()) } else { Hold::Silent(why.clone()) })
        }
        Some(Fault::Driver(why)) => Some(Hold::Silent(why.clone())),
        None => {
            after.silent_looks = 0;
            None
        }
    };
    if matches!(fault, Some(Hold::Lost(_))) {
        // Whatever comes back was reset.
        return Standing { hold: fault, silent_looks: after.silent_looks, ..Standing::default() };
    }
    if fault.is_none() {
        look_at(&mut after, seen, rules, now_ms);
    }
    let broken = after.rests_until_ms.as_ref().map(|(_, why)| Hold::Broken(why.clone()));
    let holds = [
        broken,
        fault,
        after.hot.then_some(Hold::Hot),
        after.yielded.then_some(Hold::Yielded),
        seen.quiet.then_some(Hold::Quiet),
    ];
    after.hold = holds.into_iter().flatten().min();
    after
}

fn rest(after: &mut Standing, why: &str, now_ms: i64) {
    after.rests_until_ms = Some((now_ms.saturating_add(REST_MS), why.to_owned()));
}

/// A look at a device that answers.
fn look_at(after: &mut Standing, seen: &Seen, rules: &Rules, now_ms: i64) {
    let known = after.ecc_uncorrected.or(seen.ecc_uncorrected);
    let risen = seen.ecc_uncorrected.zip(known).is_some_and(|(now, known)| now > known);
    after.ecc_uncorrected = seen.ecc_uncorrected.or(known);
    if risen {
        rest(after, "a memory error that could not be corrected", now_ms);
    } else if after.rests_until_ms.as_ref().is_some_and(|(until, _)| *until <= now_ms) {
        after.rests_until_ms = None;
    }
    if let Some(celsius) = seen.temperature_c {
        let limit = rules.temperature_max_c;
        let cool = limit.saturating_sub(COOLER_C);
        after.hot = limit > 0 && (celsius > limit || after.hot && celsius > cool);
    }
    let foreign = rules.yield_above_mib > 0
        && seen.foreign_mib.is_some_and(|foreign| foreign > rules.yield_above_mib);
    if foreign {
        (after.yielded, after.free_since_ms) = (true, None);
    } else if after.yielded {
        let since = *after.free_since_ms.get_or_insert(now_ms);
        // A clock that was set back begins the wait anew.
        after.free_since_ms = Some(since.min(now_ms));
        let over = rules.yield_above_mib == 0 || now_ms.saturating_sub(since) >= rules.yield_for_ms;
        after.yielded = !over;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules =
        Rules { temperature_max_c: 80, yield_above_mib: 1000, yield_for_ms: 60_000 };

    fn after(looks: &[(i64, Seen)]) -> Standing {
        looks.iter().fold(Standing::default(), |at, (now, seen)| stand(&at, seen, &RULES, *now))
    }

    fn at(celsius: u32) -> Seen {
        Seen { temperature_c: Some(celsius), ..Seen::default() }
    }

    fn used_by_others(mib: u64) -> Seen {
        Seen { foreign_mib: Some(mib), ..Seen::default() }
    }

    fn faulty(fault: Fault) -> Seen {
        Seen { fault: Some(fault), ..Seen::default() }
    }

    #[test]
    fn a_hot_device_takes_units_again_only_some_degrees_lower() {
        assert_eq!(after(&[(0, at(80))]).hold, None);
        assert_eq!(after(&[(0, at(81))]).hold, Some(Hold::Hot));
        assert_eq!(after(&[(0, at(81)), (1, at(76))]).duty(), Duty::Rest);
        assert_eq!(after(&[(0, at(81)), (1, at(75)), (2, at(79))]).hold, None);
    }

    #[test]
    fn a_yielded_device_comes_back_after_it_was_free_for_a_while() {
        let (busy, free) = (used_by_others(1001), used_by_others(1000));
        assert_eq!(after(&[(0, busy.clone())]).duty(), Duty::Leave);
        let waits = [(0, busy.clone()), (10_000, free.clone()), (69_999, free.clone())];
        assert_eq!(after(&waits).hold, Some(Hold::Yielded));
        assert_eq!(after(&[&waits[..], &[(70_000, free.clone())]].concat()).hold, None);
        // Someone came again meanwhile: the wait begins anew.
        let again = [&waits[..], &[(69_999, busy), (70_000, free)]].concat();
        assert_eq!(after(&again).hold, Some(Hold::Yielded));
    }

    #[test]
    fn a_device_that_fails_to_answer_once_rests_and_thrice_is_lost() {
        let silent = || faulty(Fault::Silent("unknown error".into()));
        assert_eq!(after(&[(0, silent())]).duty(), Duty::Rest);
        assert_eq!(after(&[(0, silent()), (1, silent())]).duty(), Duty::Rest);
        assert_eq!(after(&[(0, silent()), (1, silent()), (2, silent())]).duty(), Duty::End);
        assert_eq!(
            after(&[(0, silent()), (1, silent()), (2, at(30)), (3, silent())]).duty(),
            Duty::Rest
        );
    }

    #[test]
    fn a_broken_device_rests_until_its_time_is_over_or_it_was_away() {
        let broke = Seen { broke: Some("Xid 94".into()), ..Seen::default() };
        let broken = after(&[(0, broke.clone()), (REST_MS - 1, at(30))]);
        assert_eq!(broken.duty(), Duty::End);
        assert_eq!(after(&[(0, broke.clone()), (REST_MS, at(30))]).hold, None);
        let lost = faulty(Fault::Lost("gone".into()));
        assert_eq!(after(&[(0, broke), (1, lost), (2, at(30))]).hold, None);
    }

    #[test]
    fn an_error_of_the_hardware_counts_also_where_the_device_does_not_answer() {
        for fault in [Fault::Silent("unknown error".into()), Fault::Driver("mismatch".into())] {
            let both = Seen { broke: Some("Xid 79".into()), ..faulty(fault) };
            let broken = Some(Hold::Broken("Xid 79".into()));
            assert_eq!(after(&[(0, both.clone())]).hold, broken);
            assert_eq!(after(&[(0, both), (1, at(30))]).hold, broken);
        }
    }

    #[test]
    fn only_new_memory_errors_break_a_device() {
        let ecc = |errors| Seen { ecc_uncorrected: Some(errors), ..Seen::default() };
        assert_eq!(after(&[(0, ecc(3)), (1, ecc(3))]).hold, None);
        assert_eq!(after(&[(0, ecc(3)), (1, ecc(4))]).duty(), Duty::End);
    }

    #[test]
    fn the_gravest_reason_is_told() {
        let all = Seen { quiet: true, ..Seen { foreign_mib: Some(9999), ..at(99) } };
        assert_eq!(after(&[(0, all)]).hold, Some(Hold::Yielded));
    }

    #[test]
    fn a_driver_that_does_not_answer_ends_nothing_however_long_it_lasts() {
        let looks: Vec<_> =
            (0..9).map(|now| (now, faulty(Fault::Driver("mismatch".into())))).collect();
        assert_eq!(after(&looks).duty(), Duty::Rest);
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let fault = prop_oneof![
            4 => Just(None),
            1 => Just(Some(Fault::Lost("lost".into()))),
            1 => Just(Some(Fault::Silent("silent".into()))),
        ];
        (fault, any::<bool>(), 0u32..120, 0u64..3000, 0u64..3, any::<bool>()).prop_map(
            |(fault, quiet, celsius, foreign, ecc, broke)| Seen {
                fault,
                broke: (broke && ecc == 2).then(|| "Xid".to_owned()),
                ecc_uncorrected: Some(ecc),
                temperature_c: Some(celsius),
                foreign_mib: Some(foreign),
                quiet,
            },
        )
    }

    proptest! {
        #[test]
        fn no_device_is_held_for_ever_once_all_is_well(looks in prop::collection::vec((0i64..100_000, any_seen()), 0..20)) {
            let mut now = 0;
            let mut standing = Standing::default();
            for (later, seen) in looks {
                now += later;
                standing = stand(&standing, &seen, &RULES, now);
                if matches!(seen.fault, Some(Fault::Lost(_))) {
                    prop_assert_eq!(standing.duty(), Duty::End);
                }
                if seen.quiet || seen.temperature_c > Some(80) && seen.fault.is_none() {
                    prop_assert!(standing.duty() > Duty::Work);
                }
            }
            let well = Seen { ecc_uncorrected: Some(2), ..at(30) };
            for step in [0, REST_MS, RULES.yield_for_ms] {
                now += step;
                standing = stand(&standing, &well, &RULES, now);
            }
            // A last new memory error may have been seen at the first of these looks.
            standing = stand(&standing, &well, &RULES, now + REST_MS);
            prop_assert_eq!(standing.hold, None);
        }
    }
}
