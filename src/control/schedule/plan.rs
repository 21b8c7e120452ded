//! The plan itself: a greedy matching that is the same for the same inputs.

use std::collections::BTreeSet;

use super::{DeviceState, Lease, LeaseState, PASSES_MAX, Placement, QUEUE_DEPTH, ReadyUnit};

/// Decides what happens now.
///
/// A lease without work is served before one that is only short of its next unit. Among the
/// possible pairs the one wins that needs no loading (or whose unit was passed over too often),
/// then the unit's priority, then the oldest lease. A free device gets a lease as long as more units
/// wait than leases are opening; those units are not queued behind others meanwhile.
#[must_use]
pub fn plan(devices: &[DeviceState], leases: &[Lease], ready: &[ReadyUnit]) -> Vec<Placement> {
    let mut placements = Vec::new();
    let mut open = Vec::new();
    for lease in leases.iter().filter(|lease| lease.state != LeaseState::Draining) {
        if !stands_on_usable(devices, lease) {
            placements.push(Placement::Drain { lease: lease.id });
        } else if lease.state == LeaseState::Open {
            open.push(lease.clone());
        }
    }
    let mut waiting: Vec<&ReadyUnit> = ready.iter().collect();
    waiting.sort_by_key(|unit| unit.priority);

    hand_out(devices, &mut open, &mut waiting, 1, &mut placements);
    let opening = leases.iter().filter(|lease| lease.state == LeaseState::Opening).count();
    let opened = openings(devices, leases, &waiting, opening);
    // The first in line wait for the leases that open now.
    let mut rest = waiting.split_off((opening + opened.len()).min(waiting.len()));
    placements.extend(opened);
    for depth in 2..=QUEUE_DEPTH {
        hand_out(devices, &mut open, &mut rest, depth, &mut placements);
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

fn openings(
    devices: &[DeviceState],
    leases: &[Lease],
    waiting: &[&ReadyUnit],
    opening: usize,
) -> Vec<Placement> {
    let held: BTreeSet<&str> =
        leases.iter().flat_map(|lease| lease.devices.iter().map(String::as_str)).collect();
    let mut wanting = waiting.iter().skip(opening);
    devices
        .iter()
        .filter(|device| device.usable && !held.contains(device.uuid.as_str()))
        .map_while(|device| {
            let unit = wanting.next()?;
            has_room(device, unit).then(|| Placement::Open { devices: vec![device.uuid.clone()] })
        })
        .collect()
}

fn is_loaded(lease: &Lease, unit: &ReadyUnit) -> bool {
    unit.models.iter().all(|model| lease.loaded.contains(model))
}

fn stands_on_usable(devices: &[DeviceState], lease: &Lease) -> bool {
    lease
        .devices
        .iter()
        .all(|uuid| devices.iter().any(|device| device.uuid == *uuid && device.usable))
}

fn has_room(device: &DeviceState, unit: &ReadyUnit) -> bool {
    match (device.memory_free_mib, unit.memory_mib) {
        (Some(free), Some(needs)) => needs <= free,
        // What is not known cannot refuse: an out-of-memory death is a counted one.
        (None, _) | (_, None) => true,
    }
}

fn fits(devices: &[DeviceState], lease: &Lease, unit: &ReadyUnit) -> bool {
    // What our own worker holds is free for its next unit, so a lease that stands is asked only
    // whether its devices have the memory at all; `memory_free_mib` counts our own use as free.
    let free: Option<u64> = lease
        .devices
        .iter()
        .map(|uuid| devices.iter().find(|d| d.uuid == *uuid).and_then(|d| d.memory_free_mib))
        .sum();
    match (free, unit.memory_mib) {
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
        DeviceState { uuid: uuid.into(), memory_free_mib: None, usable: true }
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
    fn a_lost_device_ends_its_lease() {
        let placements = plan(&[device("b")], &[lease(7, "a", "policy", 1)], &[]);
        assert_eq!(placements, [Placement::Drain { lease: 7 }]);
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
            devices in prop::collection::vec(any::<bool>(), 1..5),
            leases in prop::collection::vec((0usize..5, 0u8..3, 0usize..3, any::<bool>(), 0u8..3), 0..5),
            units in prop::collection::vec((0u8..3, 0u8..4, any::<bool>(), 0u32..40), 0..12),
        ) -> (Vec<DeviceState>, Vec<Lease>, Vec<ReadyUnit>) {
            let devices: Vec<_> = devices.into_iter().enumerate()
                .map(|(i, usable)| DeviceState { usable, ..device(&i.to_string()) }).collect();
            let mut held = BTreeSet::new();
            let leases = leases.into_iter().enumerate()
                .filter(|(_, (on, ..))| held.insert(*on))
                .map(|(i, (on, loaded, queued, alone, state))| Lease {
                    queued, alone,
                    state: [LeaseState::Opening, LeaseState::Open, LeaseState::Draining][state as usize],
                    ..lease(i as i64, &on.to_string(), &loaded.to_string(), queued)
                }).collect();
            let units = units.into_iter().enumerate()
                .map(|(i, (model, class, alone, passed))| ReadyUnit {
                    alone, passed, ..unit(i as i64, &model.to_string(), class)
                }).collect();
            (devices, leases, units)
        }
    }

    proptest! {
        #[test]
        fn every_plan_keeps_the_rules((devices, leases, units) in world()) {
            let placements = plan(&devices, &leases, &units);
            let mut given = BTreeSet::new();
            let mut opened = BTreeSet::new();
            for placement in &placements {
                match placement {
                    Placement::Hand { unit, lease } => {
                        prop_assert!(given.insert(*unit), "unit {unit} was given twice");
                        let lease = leases.iter().find(|l| l.id == *lease).unwrap();
                        prop_assert!(lease.state == LeaseState::Open && !lease.alone);
                        prop_assert!(stands_on_usable(&devices, lease));
                        let now = placements.iter().filter(|p| matches!(p, Placement::Hand { lease: l, .. } if *l == lease.id)).count();
                        prop_assert!(lease.queued + now <= QUEUE_DEPTH);
                    }
                    Placement::Open { devices: on } => for uuid in on {
                        prop_assert!(opened.insert(uuid.clone()));
                        prop_assert!(leases.iter().all(|l| !l.devices.contains(uuid)));
                    },
                    Placement::Drain { lease } => {
                        let lease = leases.iter().find(|l| l.id == *lease).unwrap();
                        prop_assert!(!stands_on_usable(&devices, lease));
                    }
                }
            }
            // No idling beside work: an open, empty lease on a good device gets a unit if one waits.
            if given.len() + opened.len() < units.len() {
                for lease in leases.iter().filter(|l| l.state == LeaseState::Open && l.queued == 0 && !l.alone) {
                    if stands_on_usable(&devices, lease) {
                        let served = placements.iter().any(|p| matches!(p, Placement::Hand { lease: l, .. } if *l == lease.id));
                        prop_assert!(served);
                    }
                }
            }
        }
    }
}
