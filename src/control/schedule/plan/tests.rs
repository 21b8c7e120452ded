//! The plan's own tests: single decisions by hand, and the rules that every plan keeps.

use std::collections::BTreeSet;

use proptest::prelude::*;

use rlhfd_domain::split::{Demand, Learning, Sizes, Weights};

use super::*;
use crate::schedule::{Priority, Spread, ever_fits};

fn device(uuid: &str) -> DeviceState {
    DeviceState { uuid: uuid.into(), memory_free_mib: None, duty: Duty::Work }
}

fn lease(id: i64, on: &str, loaded: &str, queued: usize) -> Lease {
    Lease {
        id,
        devices: vec![on.into()],
        rooms_mib: Vec::new(),
        loaded: vec![loaded.into()],
        queued,
        alone: false,
        state: LeaseState::Open,
    }
}

fn unit(id: i64, model: &str, class: u8) -> ReadyUnit {
    ReadyUnit {
        id,
        models: vec![model.into()],
        priority: Priority { class, ordinal: id, unit: id },
        memory_mib: None,
        spread: None,
        alone: false,
        passed: 0,
    }
}

fn with_free(uuid: &str, mib: u64) -> DeviceState {
    DeviceState { memory_free_mib: Some(mib), ..device(uuid) }
}

/// A unit of so many MiB, in four blocks that may lie apart.
fn large(id: i64, mib: u64) -> ReadyUnit {
    let sizes = Sizes {
        layers: 4,
        vocabulary: 0,
        width: 2,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        mlp_width: 2,
        tied: false,
        scores: false,
    };
    let weights = Weights { sizes, bytes: 1, learning: Learning::Nothing };
    let demand = Demand { weights, block_bytes: (mib / 4) << 20, device_bytes: 0, head_bytes: 0 };
    let spread = Some(Spread { demand, per_mille: 1000 });
    ReadyUnit { memory_mib: Some(mib), spread, ..unit(id, "policy", 0) }
}

fn over(id: i64, on: &[(&str, u64)]) -> Lease {
    Lease {
        devices: on.iter().map(|(uuid, _)| (*uuid).to_owned()).collect(),
        rooms_mib: on.iter().map(|(_, room)| *room).collect(),
        ..lease(id, "", "", 0)
    }
}

fn opened(devices: &[&str], rooms_mib: &[u64]) -> Placement {
    let devices = devices.iter().map(|uuid| (*uuid).to_owned()).collect();
    Placement::Open { devices, rooms_mib: rooms_mib.to_vec() }
}

fn hand(unit: i64, lease: i64) -> Placement {
    Placement::Hand { unit, lease }
}

#[test]
fn a_lease_keeps_to_the_models_that_it_has_and_is_handed_the_next_unit_early() {
    let ready = [unit(1, "scorer", 0), unit(2, "policy", 1), unit(3, "policy", 1)];
    let placements = plan(&[device("cpu")], &[lease(7, "cpu", "policy", 0)], &ready);
    assert_eq!(placements, [hand(2, 7), hand(3, 7)]);
}

#[test]
fn a_unit_passed_over_too_often_goes_first() {
    let mut ready = [unit(1, "scorer", 0), unit(2, "policy", 1)];
    ready[0].passed = PASSES_MAX;
    let placements = plan(&[device("cpu")], &[lease(7, "cpu", "policy", 0)], &ready);
    assert_eq!(placements, [hand(1, 7), hand(2, 7)]);
}

#[test]
fn nothing_queues_behind_training() {
    let mut ready = [unit(1, "policy", 0), unit(2, "policy", 1)];
    ready[0].alone = true;
    let placements = plan(&[device("cpu")], &[lease(7, "cpu", "policy", 0)], &ready);
    assert_eq!(placements, [hand(1, 7)]);
}

#[test]
fn a_free_device_is_opened_rather_than_a_second_unit_queued() {
    let devices = [device("a"), device("b")];
    let ready = [unit(1, "policy", 0), unit(2, "policy", 0)];
    let placements = plan(&devices, &[lease(7, "a", "policy", 0)], &ready);
    assert_eq!(placements, [hand(1, 7), opened(&["b"], &[])]);
}

#[test]
fn a_unit_that_a_lease_opens_for_is_not_queued_elsewhere_meanwhile() {
    let devices = [device("a"), device("b")];
    let mut opening = lease(8, "b", "", 0);
    opening.state = LeaseState::Opening;
    let placements =
        plan(&devices, &[lease(7, "a", "policy", 1), opening], &[unit(1, "policy", 0)]);
    assert_eq!(placements, []);
}

#[test]
fn a_lost_device_ends_its_lease_and_one_that_is_left_or_not_ours_drains_it() {
    let on = |duty| DeviceState { duty, ..device("a") };
    let one = [lease(7, "a", "policy", 1)];
    assert_eq!(plan(&[on(Duty::End)], &one, &[]), [Placement::End { lease: 7 }]);
    assert_eq!(plan(&[on(Duty::Leave)], &one, &[]), [Placement::Drain { lease: 7 }]);
    assert_eq!(plan(&[device("b")], &one, &[]), [Placement::Drain { lease: 7 }]);
}

#[test]
fn a_resting_device_keeps_its_lease_and_gets_nothing() {
    let rests = DeviceState { duty: Duty::Rest, ..device("a") };
    let ready = [unit(1, "policy", 0)];
    assert_eq!(plan(std::slice::from_ref(&rests), &[lease(7, "a", "policy", 0)], &ready), []);
    assert_eq!(plan(&[rests], &[], &ready), []);
}

#[test]
fn memory_is_never_over_committed() {
    let mut small = device("a");
    small.memory_free_mib = Some(100);
    let mut large = unit(1, "policy", 0);
    large.memory_mib = Some(101);
    assert_eq!(plan(&[small.clone()], &[lease(7, "a", "policy", 0)], &[large.clone()]), []);
    assert_eq!(plan(&[small], &[], &[large]), []);
}

#[test]
fn as_few_devices_as_hold_a_unit_get_a_lease_the_largest_first() {
    let devices = [with_free("a", 3200), with_free("b", 6000), with_free("c", 5000)];
    // Two blocks, a tenth for rounding, and 500 for each process: 2 × 2000 × 1.1 + 500 = 4900.
    assert_eq!(plan(&devices, &[], &[large(1, 8000)]), [opened(&["b", "c"], &[6000, 5000])]);
    // Two blocks of 2400 are too much for the second, so that all three are needed.
    let three = opened(&["b", "c", "a"], &[6000, 5000, 3200]);
    assert_eq!(plan(&devices, &[], &[large(1, 9600)]), [three]);
    assert_eq!(plan(&devices, &[], &[large(1, 6000)]), [opened(&["b"], &[])]);
    assert_eq!(plan(&devices, &[], &[large(1, 20_000)]), []);
    assert!(!ever_fits(&devices, &large(1, 20_000)) && ever_fits(&devices, &large(1, 9600)));
    // Together they have the memory, but the smaller one not its own share.
    let uneven = [with_free("a", 9000), with_free("b", 1500)];
    assert_eq!(plan(&uneven, &[], &[large(1, 9200)]), []);
}

#[test]
fn devices_are_kept_for_a_unit_that_needs_both_until_both_are_free() {
    let devices = [with_free("a", 5000), with_free("b", 5000)];
    let small = || ReadyUnit { memory_mib: Some(1000), ..unit(2, "policy", 1) };
    let ready = [large(1, 8000), small()];
    let busy = [lease(7, "a", "policy", 1), lease(8, "b", "policy", 1)];
    assert_eq!(plan(&devices, &busy, &ready), [], "nothing new behind what runs");
    let one = [lease(7, "a", "policy", 0), lease(8, "b", "policy", 1)];
    assert_eq!(plan(&devices, &one, &ready), [Placement::Drain { lease: 7 }]);
    let rest = [lease(8, "b", "policy", 1)];
    assert_eq!(plan(&devices, &rest, &ready), [], "the free one is kept");
    assert_eq!(plan(&devices, &[], &ready), [opened(&["a", "b"], &[5000, 5000])]);
}

#[test]
fn a_unit_that_needs_two_is_not_starved_by_those_before_it() {
    let devices = [with_free("a", 5000), with_free("b", 5000)];
    let before = ReadyUnit { memory_mib: Some(1000), ..unit(0, "policy", 0) };
    let mut ready = [before, large(1, 8000)];
    let one = [lease(7, "a", "policy", 0), lease(8, "b", "policy", 1)];
    assert_eq!(plan(&devices, &one, &ready), [hand(0, 7)]);
    ready[1].passed = PASSES_MAX;
    assert_eq!(plan(&devices, &one, &ready), [Placement::Drain { lease: 7 }]);
}

#[test]
fn a_lease_over_several_takes_what_needs_it_and_else_makes_room() {
    let devices = [with_free("a", 5000), with_free("b", 5000)];
    let both = [over(7, &[("a", 5000), ("b", 5000)])];
    let small = || ReadyUnit { memory_mib: Some(1000), ..unit(2, "policy", 1) };
    assert_eq!(plan(&devices, &both, &[large(1, 8000), small()]), [hand(1, 7)]);
    assert_eq!(plan(&devices, &both, &[small()]), [Placement::Drain { lease: 7 }]);
    assert_eq!(plan(&devices, &both, &[unit(3, "", 0)]), [hand(3, 7)], "it needs no memory");
    assert_eq!(plan(&devices, &both, &[]), [], "nobody waits for its devices");
    // What it was split by, not what is free now, says what each device holds.
    let shrunk = [with_free("a", 5000), with_free("b", 4000)];
    assert_eq!(plan(&shrunk, &both, &[large(1, 8000)]), []);
}

#[test]
fn one_lost_device_of_several_ends_the_lease_and_the_unit_waits() {
    let lost = DeviceState { duty: Duty::End, ..with_free("b", 5000) };
    let both = [over(7, &[("a", 5000), ("b", 5000)])];
    let devices = [with_free("a", 5000), lost];
    assert_eq!(plan(&devices, &both, &[large(1, 8000)]), [Placement::End { lease: 7 }]);
    assert_eq!(plan(&devices, &[], &[large(1, 8000)]), []);
}

#[test]
fn devices_under_a_training_are_not_kept_where_others_do() {
    let devices = [with_free("a", 6000), with_free("b", 5000), with_free("c", 5000)];
    let training = Lease { alone: true, ..lease(7, "a", "", 1) };
    let leases = [training, lease(8, "b", "policy", 0), lease(9, "c", "policy", 1)];
    let drained = [Placement::Drain { lease: 8 }];
    assert_eq!(plan(&devices, &leases, &[large(1, 8000)]), drained);
}

#[test]
fn two_that_need_several_do_not_take_turns_at_draining_the_other_s_lease() {
    let devices = [with_free("a", 3000), with_free("b", 6000), with_free("c", 5000)];
    let overdue = |id, needs, passed| ReadyUnit { passed, ..large(id, needs) };
    let ready = [overdue(0, 7000, PASSES_MAX + 1), overdue(1, 9000, PASSES_MAX + 9)];
    // The lease suits the first in line, and is drained once, for the one that waited longest.
    let two = over(7, &[("b", 6000), ("c", 5000)]);
    assert_eq!(plan(&devices, &[two], &ready), [Placement::Drain { lease: 7 }]);
    let opened = plan(&devices, &[], &ready);
    assert_eq!(opened, [self::opened(&["b", "c", "a"], &[6000, 5000, 3000])]);
    let three = over(8, &[("b", 6000), ("c", 5000), ("a", 3000)]);
    assert_eq!(plan(&devices, &[three], &ready), [hand(0, 8), hand(1, 8)]);
}

prop_compose! {
    fn world()(
        devices in prop::collection::vec((0usize..6, 0u64..8), 1..5),
        leases in prop::collection::vec(
            (0usize..5, prop::option::of(0usize..5), 0u8..3, 0usize..3, any::<bool>(), 0u8..3), 0..5),
        units in prop::collection::vec(
            (0u8..3, 0u8..4, any::<bool>(), 0u32..40, 0u64..16, any::<bool>()), 0..12),
    ) -> (Vec<DeviceState>, Vec<Lease>, Vec<ReadyUnit>) {
        let duties = [Duty::Work, Duty::Work, Duty::Work, Duty::Rest, Duty::Leave, Duty::End];
        let devices: Vec<_> = devices.into_iter().enumerate()
            .map(|(i, (duty, free))| DeviceState {
                duty: duties[duty], ..with_free(&i.to_string(), free * 1000)
            }).collect();
        let mut held = BTreeSet::new();
        let leases = leases.into_iter().enumerate()
            .filter_map(|(i, (on, second, loaded, queued, alone, state))| {
                let on: Vec<usize> = std::iter::once(on).chain(second.filter(|s| *s != on)).collect();
                if on.iter().any(|on| held.contains(on)) { return None }
                held.extend(on.iter().copied());
                let state = [LeaseState::Opening, LeaseState::Open, LeaseState::Draining][state as usize];
                let rooms_mib = if on.len() > 1 { vec![4000, 5000] } else { Vec::new() };
                let devices = on.iter().map(ToString::to_string).collect();
                let alone = alone && queued > 0;
                Some(Lease {
                    alone, state, devices, rooms_mib,
                    ..lease(i as i64, "", &loaded.to_string(), queued)
                })
            }).collect();
        let units = units.into_iter().enumerate()
            .map(|(i, (model, class, alone, passed, needs, splits))| ReadyUnit {
                alone, passed, memory_mib: Some(needs * 1000),
                spread: large(0, needs * 1000).spread.filter(|_| splits),
                ..unit(i as i64, &model.to_string(), class)
            }).collect();
        (devices, leases, units)
    }
}

fn free_of(devices: &[DeviceState], uuid: &str) -> u64 {
    let found = devices.iter().find(|device| device.uuid == uuid);
    found.and_then(|device| device.memory_free_mib).unwrap_or(0)
}

/// Whether these devices, split by `rooms`, have the memory: each its own share.
fn have_room(devices: &[DeviceState], on: &[String], rooms: &[u64], unit: &ReadyUnit) -> bool {
    if let [one] = on {
        return unit.memory_mib <= Some(free_of(devices, one));
    }
    let Some(spread) = &unit.spread else { return false };
    let alone = |d: &DeviceState| d.duty <= Duty::Rest && unit.memory_mib <= d.memory_free_mib;
    let shares = spread.shares_mib(rooms);
    !devices.iter().any(alone)
        && shares.iter().zip(on).all(|(share, uuid)| *share <= free_of(devices, uuid))
}

proptest! {
    #[test]
    fn every_plan_keeps_the_rules((devices, leases, units) in world()) {
        let placements = plan(&devices, &leases, &units);
        let (mut given, mut opened, mut ended) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for placement in &placements {
            match placement {
                Placement::Hand { unit, lease } => {
                    prop_assert!(given.insert(*unit), "unit {unit} was given twice");
                    let lease = leases.iter().find(|l| l.id == *lease).unwrap();
                    prop_assert!(lease.state == LeaseState::Open && !lease.alone);
                    prop_assert_eq!(duty(&devices, lease), Duty::Work);
                    let now = placements.iter().filter(|p| matches!(p, Placement::Hand { lease: l, .. } if *l == lease.id)).count();
                    prop_assert!(lease.queued + now <= QUEUE_DEPTH);
                    let unit = units.iter().find(|u| u.id == *unit).unwrap();
                    prop_assert!(have_room(&devices, &lease.devices, &lease.rooms_mib, unit), "over memory");
                }
                Placement::Open { devices: on, rooms_mib } => {
                    for uuid in on {
                        prop_assert!(opened.insert(uuid.clone()));
                        prop_assert!(leases.iter().all(|l| !l.devices.contains(uuid)));
                        prop_assert!(devices.iter().any(|d| d.uuid == *uuid && d.duty == Duty::Work));
                    }
                    let fits = |u: &ReadyUnit| have_room(&devices, on, rooms_mib, u);
                    prop_assert!(units.iter().any(fits), "nothing that waits fits there");
                },
                Placement::Drain { lease } | Placement::End { lease } => {
                    prop_assert!(ended.insert(*lease));
                    let lease = leases.iter().find(|l| l.id == *lease).unwrap();
                    // Left without need only where nothing runs and something waits.
                    let made_room = lease.queued == 0 && !units.is_empty();
                    prop_assert!(duty(&devices, lease) >= Duty::Leave || made_room);
                }
            }
        }
        for lease in &leases {
            // A lost device's lease always ends, wherever it stands.
            let end = Placement::End { lease: lease.id };
            prop_assert_eq!(placements.contains(&end), duty(&devices, lease) == Duty::End);
            // No idling beside work: an open, empty lease on a good device gets a unit if one waits
            // that fits, or makes room for one that needs several devices.
            let idle = lease.state == LeaseState::Open && lease.queued == 0 && !lease.alone;
            let waits = units.iter().any(|u| !given.contains(&u.id) && have_room(&devices, &lease.devices, &lease.rooms_mib, u));
            if idle && duty(&devices, lease) == Duty::Work && waits {
                let served = placements.iter().any(|p| matches!(p, Placement::Hand { lease: l, .. } if *l == lease.id));
                prop_assert!(served || ended.contains(&lease.id));
            }
        }
    }

    #[test]
    fn every_unit_that_fits_somewhere_is_handed_out_in_the_end((devices, _, units) in world()) {
        let mut leases: Vec<Lease> = Vec::new();
        let mut waiting = units.clone();
        // Each turn every lease ends what it has, as if time passed.
        for turn in 0..(units.len() * PASSES_MAX as usize + 2) {
            for placement in plan(&devices, &leases, &waiting) {
                match placement {
                    Placement::Hand { unit, lease } => {
                        let at = waiting.iter().position(|u| u.id == unit).unwrap();
                        let unit = waiting.remove(at);
                        let lease = leases.iter_mut().find(|l| l.id == lease).unwrap();
                        lease.loaded = unit.models;
                    }
                    Placement::Open { devices, rooms_mib } => {
                        let id = turn as i64 * 10 + leases.len() as i64;
                        leases.push(Lease { devices, rooms_mib, loaded: Vec::new(), ..lease(id, "", "", 0) });
                    }
                    Placement::Drain { lease } | Placement::End { lease } => {
                        leases.retain(|own| own.id != lease);
                    }
                }
            }
            waiting.iter_mut().for_each(|unit| unit.passed += 1);
        }
        let working: Vec<_> = devices.iter().filter(|d| d.duty == Duty::Work).cloned().collect();
        for unit in waiting {
            let rests = |d: &DeviceState| d.duty == Duty::Rest && unit.memory_mib <= d.memory_free_mib;
            let waits_for_one = devices.iter().any(rests)
                && !working.iter().any(|d| unit.memory_mib <= d.memory_free_mib);
            prop_assert!(waits_for_one || !ever_fits(&working, &unit), "{unit:?} starves");
        }
    }

    /// However many units come before it and after it, one that needs two devices gets them.
    #[test]
    fn a_unit_that_needs_two_devices_is_never_starved(
        first in 0u8..3, rooms in prop::collection::vec(6000u64..9000, 2..4), lasts in 1usize..4,
    ) {
        let devices: Vec<_> =
            rooms.iter().enumerate().map(|(i, room)| with_free(&i.to_string(), *room)).collect();
        let mut own = ReadyUnit { priority: Priority { class: first, ordinal: 0, unit: 0 }, ..large(0, 9000) };
        prop_assume!(devices.iter().all(|d| d.memory_free_mib < own.memory_mib));
        let mut leases: Vec<(Lease, usize)> = Vec::new();
        for turn in 0..400_i64 {
            // Two new ones a device and turn, as urgent as can be and less so.
            let stream = (0..2 * devices.len() as i64).map(|n| ReadyUnit {
                memory_mib: Some(1000), ..unit(1 + turn * 100 + n, "policy", (n % 3) as u8)
            });
            let waiting: Vec<_> = std::iter::once(own.clone()).chain(stream).collect();
            let states: Vec<Lease> = leases.iter().map(|(lease, _)| lease.clone()).collect();
            for placement in plan(&devices, &states, &waiting) {
                match placement {
                    Placement::Hand { unit: 0, .. } => return Ok(()),
                    Placement::Hand { lease, .. } => {
                        let found = leases.iter_mut().find(|(own, _)| own.id == lease).unwrap();
                        found.0.queued += 1;
                        found.1 = found.1.max(lasts);
                    }
                    Placement::Open { devices, rooms_mib } => {
                        let id = turn * 10 + leases.len() as i64;
                        leases.push((Lease { devices, rooms_mib, ..lease(id, "", "", 0) }, 0));
                    }
                    Placement::Drain { lease } | Placement::End { lease } => {
                        leases.retain(|(own, _)| own.id != lease);
                    }
                }
            }
            for (lease, left) in &mut leases {
                *left = left.saturating_sub(1);
                if *left == 0 && lease.queued > 0 {
                    lease.queued -= 1;
                    *left = lasts;
                }
            }
            own.passed += 1;
        }
        prop_assert!(false, "it waits for ever");
    }
}
