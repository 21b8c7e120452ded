//! The plan itself: a greedy matching that is the same for the same inputs.

use std::collections::BTreeSet;

use super::{DeviceState, Duty, Lease, LeaseState, PASSES_MAX, Placement, QUEUE_DEPTH, ReadyUnit};

/// Decides what happens now.
///
/// A lease without work is served before one that is only short of its next unit. Among the
/// possible pairs the one wins that needs no loading (or whose unit was passed over too often),
/// then the unit's priority, then the oldest lease. A free device gets a lease as long as a unit waits
/// that fits there and no other lease opens for; those units are not queued behind others meanwhile.
#[must_use]
pub fn plan(devices: &[DeviceState], leases: &[Lease], ready: &[ReadyUnit]) -> Vec<Placement> {
    let mut placements = Vec::new();
    let mut open = Vec::new();
    for lease in leases {
        match (duty(devices, lease), lease.state) {
            (Duty::End, _) => placements.push(Placement::End { lease: lease.id }),
            (_, LeaseState::Draining) => {}
            (Duty::Leave, _) => placements.push(Placement::Drain { lease: lease.id }),
            (Duty::Work, LeaseState::Open) => open.push(lease.clone()),
            (Duty::Work | Duty::Rest, _) => {}
        }
    }
    let mut waiting: Vec<&ReadyUnit> = ready.iter().collect();
    waiting.sort_by_key(|unit| unit.priority);

    hand_out(devices, &mut open, &mut waiting, 1, &mut placements);
    placements.extend(openings(devices, leases, &mut waiting));
    for depth in 2..=QUEUE_DEPTH {
        hand_out(devices, &mut open, &mut waiting, depth, &mut placements);
    }
    placements
}

/// Fills every lease up to `depth` units.
fn hand_out(
    devices: &[DeviceState],
    leases: &mut [Lease],
    waiting: &mut Vec<&ReadyUnit>,
    depth: usize,
    placements: &mut Vec<Placement>,
) {
    while let Some((unit, lease)) = best_pair(devices, leases, waiting, depth) {
        let unit = waiting.remove(unit);
        let lease = &mut leases[lease];
        lease.queued += 1;
        lease.alone |= unit.alone;
        if !unit.models.is_empty() {
            lease.loaded.clone_from(&unit.models);
        }
        placements.push(Placement::Hand { unit: unit.id, lease: lease.id });
    }
}

fn best_pair(
    devices: &[DeviceState],
    leases: &[Lease],
    waiting: &[&ReadyUnit],
    depth: usize,
) -> Option<(usize, usize)> {
    let mut best = None;
    for (l, lease) in leases.iter().enumerate() {
        if lease.alone || lease.queued >= depth {
            continue;
        }
        for (u, unit) in waiting.iter().enumerate() {
            if !fits(devices, lease, unit) {
                continue;
            }
            let waits = unit.passed < PASSES_MAX && !is_loaded(lease, unit);
            let rank = (waits, unit.priority, lease.id);
            if best.is_none_or(|(found, _, _)| rank < found) {
                best = Some((rank, u, l));
            }
        }
    }
    best.map(|(_, unit, lease)| (unit, lease))
}

/// Takes the first in line out of `waiting`: a unit for each lease that is opening, then one for each
/// free device that gets a lease now, the smallest that has room for it.
fn openings(
    devices: &[DeviceState],
    leases: &[Lease],
    waiting: &mut Vec<&ReadyUnit>,
) -> Vec<Placement> {
    for lease in leases.iter().filter(|lease| lease.state == LeaseState::Opening) {
        if let Some(first) = waiting.iter().position(|unit| fits(devices, lease, unit)) {
            waiting.remove(first);
        }
    }
    let held: BTreeSet<&str> =
        leases.iter().flat_map(|lease| lease.devices.iter().map(String::as_str)).collect();
    let is_free =
        |device: &&DeviceState| device.duty == Duty::Work && !held.contains(device.uuid.as_str());
    let mut free: Vec<&DeviceState> = devices.iter().filter(is_free).collect();
    free.sort_by_key(|device| device.memory_free_mib);
    let mut opened = Vec::new();
    waiting.retain(|unit| match free.iter().position(|device| has_room(device, unit)) {
        Some(place) => {
            opened.push(Placement::Open { devices: vec![free.remove(place).uuid.clone()] });
            false
        }
        None => true,
    });
    opened
}

fn is_loaded(lease: &Lease, unit: &ReadyUnit) -> bool {
    unit.models.iter().all(|model| lease.loaded.contains(model))
}

/// What is due on a lease: the gravest of what is due on its devices. One that is not ours any more is
/// left.
fn duty(devices: &[DeviceState], lease: &Lease) -> Duty {
    let of = |uuid: &String| devices.iter().find(|device| device.uuid == *uuid);
    let duties = lease.devices.iter().map(|uuid| of(uuid).map_or(Duty::Leave, |d| d.duty));
    duties.max().unwrap_or(Duty::Leave)
}

fn has_room(device: &DeviceState, unit: &ReadyUnit) -> bool {
    covers(device.memory_free_mib, unit)
}

/// What our own worker holds is free for its next unit, and counts as free in `memory_free_mib`: a lease
/// that stands is asked only whether its devices have the memory at all.
fn fits(devices: &[DeviceState], lease: &Lease, unit: &ReadyUnit) -> bool {
    let free = |uuid: &String| devices.iter().find(|d| d.uuid == *uuid)?.memory_free_mib;
    covers(lease.devices.iter().map(free).sum(), unit)
}

/// What is not known cannot refuse: a worker that runs out of memory has its batch halved.
fn covers(free_mib: Option<u64>, unit: &ReadyUnit) -> bool {
    match (free_mib, unit.memory_mib) {
        (Some(free), Some(needs)) => needs <= free,
        (None, _) | (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::Priority;

    fn device(uuid: &str) -> DeviceState {
        DeviceState { uuid: uuid.into(), memory_free_mib: None, duty: Duty::Work }
    }

    fn lease(id: i64, on: &str, loaded: &str, queued: usize) -> Lease {
        Lease {
            id,
            devices: vec![on.into()],
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
            alone: false,
            passed: 0,
        }
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
        assert_eq!(placements, [hand(1, 7), Placement::Open { devices: vec!["b".into()] }]);
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

    prop_compose! {
        fn world()(
            devices in prop::collection::vec((0usize..6, 0u64..8), 1..5),
            leases in prop::collection::vec((0usize..5, 0u8..3, 0usize..3, any::<bool>(), 0u8..3), 0..5),
            units in prop::collection::vec((0u8..3, 0u8..4, any::<bool>(), 0u32..40, 0u64..8), 0..12),
        ) -> (Vec<DeviceState>, Vec<Lease>, Vec<ReadyUnit>) {
            let duties = [Duty::Work, Duty::Work, Duty::Work, Duty::Rest, Duty::Leave, Duty::End];
            let devices: Vec<_> = devices.into_iter().enumerate()
                .map(|(i, (duty, free))| DeviceState {
                    uuid: i.to_string(), memory_free_mib: Some(free), duty: duties[duty],
                }).collect();
            let mut held = BTreeSet::new();
            let leases = leases.into_iter().enumerate()
                .filter(|(_, (on, ..))| held.insert(*on))
                .map(|(i, (on, loaded, queued, alone, state))| Lease {
                    queued, alone,
                    state: [LeaseState::Opening, LeaseState::Open, LeaseState::Draining][state as usize],
                    ..lease(i as i64, &on.to_string(), &loaded.to_string(), queued)
                }).collect();
            let units = units.into_iter().enumerate()
                .map(|(i, (model, class, alone, passed, needs))| ReadyUnit {
                    alone, passed, memory_mib: Some(needs), ..unit(i as i64, &model.to_string(), class)
                }).collect();
            (devices, leases, units)
        }
    }

    proptest! {
        #[test]
        fn every_plan_keeps_the_rules((devices, leases, units) in world()) {
            let placements = plan(&devices, &leases, &units);
            let (mut given, mut opened, mut ended) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let free = |uuid: &str| devices.iter().find(|d| d.uuid == uuid).and_then(|d| d.memory_free_mib);
            for placement in &placements {
                match placement {
                    Placement::Hand { unit, lease } => {
                        prop_assert!(given.insert(*unit), "unit {unit} was given twice");
                        let lease = leases.iter().find(|l| l.id == *lease).unwrap();
                        prop_assert!(lease.state == LeaseState::Open && !lease.alone);
                        prop_assert_eq!(duty(&devices, lease), Duty::Work);
                        let now = placements.iter().filter(|p| matches!(p, Placement::Hand { lease: l, .. } if *l == lease.id)).count();
                        prop_assert!(lease.queued + now <= QUEUE_DEPTH);
                        let needs = units.iter().find(|u| u.id == *unit).unwrap().memory_mib;
                        prop_assert!(needs <= free(&lease.devices[0]), "over memory");
                    }
                    Placement::Open { devices: on } => for uuid in on {
                        prop_assert!(opened.insert(uuid.clone()));
                        prop_assert!(leases.iter().all(|l| !l.devices.contains(uuid)));
                        let least = units.iter().filter_map(|u| u.memory_mib).min();
                        prop_assert!(least <= free(uuid), "nothing that waits fits there");
                    },
                    Placement::Drain { lease } | Placement::End { lease } => {
                        prop_assert!(ended.insert(*lease));
                        let lease = leases.iter().find(|l| l.id == *lease).unwrap();
                        prop_assert!(duty(&devices, lease) >= Duty::Leave);
                    }
                }
            }
            for lease in &leases {
                // A lost device's lease always ends, wherever it stands.
                let end = Placement::End { lease: lease.id };
                prop_assert_eq!(placements.contains(&end), duty(&devices, lease) == Duty::End);
                // No idling beside work: an open, empty lease on a good device gets a unit if one waits
                // that fits.
                let idle = lease.state == LeaseState::Open && lease.queued == 0 && !lease.alone;
                let waits = units.iter().any(|u| !given.contains(&u.id) && u.memory_mib <= free(&lease.devices[0]));
                if idle && duty(&devices, lease) == Duty::Work && waits {
                    let served = placements.iter().any(|p| matches!(p, Placement::Hand { lease: l, .. } if *l == lease.id));
                    prop_assert!(served);
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
                        Placement::Open { devices } => {
                            leases.push(Lease { devices, loaded: Vec::new(), ..lease(turn as i64 * 10 + leases.len() as i64, "", "", 0) });
                        }
                        Placement::Drain { .. } | Placement::End { .. } => {}
                    }
                }
                waiting.iter_mut().for_each(|unit| unit.passed += 1);
            }
            let room = devices.iter().filter(|d| d.duty == Duty::Work).filter_map(|d| d.memory_free_mib).max();
            for unit in waiting {
                prop_assert!(unit.memory_mib > room, "{unit:?} starves");
            }
        }
    }
}
