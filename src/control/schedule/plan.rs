//! The plan itself: a greedy matching that is the same for the same inputs.

use super::spread::{self, Reserved};
use super::{DeviceState, Duty, Lease, LeaseState, PASSES_MAX, Placement, QUEUE_DEPTH, ReadyUnit};

#[cfg(test)]
mod tests;

/// Decides what happens now.
///
/// A lease without work is served before one that is only short of its next unit. Among the
/// possible pairs the one wins that needs no loading (or whose unit was passed over too often),
/// then the unit's priority, then the oldest lease. A free device gets a lease as long as a unit waits
/// that fits there and no other lease opens for; those units are not queued behind others meanwhile.
/// A unit that no device holds alone gets a lease over several; once it is first in line these are kept
/// for it. A lease over several takes no other units, and ends when such ones wait.
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
    let reserved = spread::reserve(devices, leases, &waiting);
    if let Some(reserved) = &reserved {
        let kept: Vec<Lease>;
        (kept, open) = open.into_iter().partition(|lease| reserved.touches(lease));
        let idle = kept.iter().filter(|lease| lease.queued == 0);
        placements.extend(idle.map(|lease| Placement::Drain { lease: lease.id }));
    }

    hand_out(devices, &mut open, &mut waiting, 1, &mut placements);
    placements.extend(openings(devices, leases, reserved.as_ref(), &mut waiting));
    placements.extend(broken_up(devices, &open, &waiting));
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
/// free device that gets a lease now, the smallest that has room for it, or for several that hold it
/// together.
fn openings(
    devices: &[DeviceState],
    leases: &[Lease],
    reserved: Option<&Reserved>,
    waiting: &mut Vec<&ReadyUnit>,
) -> Vec<Placement> {
    for lease in leases.iter().filter(|lease| lease.state == LeaseState::Opening) {
        if let Some(first) = waiting.iter().position(|unit| fits(devices, lease, unit)) {
            waiting.remove(first);
        }
    }
    let mut free = spread::free(devices, leases);
    let mut opened = Vec::new();
    if let Some(reserved) = reserved {
        let own: Vec<&DeviceState> = reserved.among(&free);
        free.retain(|device| !own.iter().any(|kept| kept.uuid == device.uuid));
        if own.len() == reserved.devices.len() {
            opened.push(spread::open(&own));
            waiting.retain(|unit| unit.id != reserved.unit);
        }
    }
    waiting.retain(|unit| {
        let Some(chosen) = chosen(devices, &free, unit) else { return true };
        free.retain(|device| !chosen.iter().any(|own| own.uuid == device.uuid));
        opened.push(spread::open(&chosen));
        false
    });
    opened
}

/// The free devices that a unit gets a lease on; none where it has to wait.
fn chosen<'a>(
    devices: &[DeviceState],
    free: &[&'a DeviceState],
    unit: &ReadyUnit,
) -> Option<Vec<&'a DeviceState>> {
    if spread::needs_several(devices, unit) {
        return spread::together(free, unit);
    }
    let smallest = free.iter().filter(|device| has_room(device, unit));
    smallest.min_by_key(|device| device.memory_free_mib).map(|device| vec![*device])
}

/// Leases over several devices that nobody needs as such while a unit waits for one of them.
fn broken_up(devices: &[DeviceState], open: &[Lease], waiting: &[&ReadyUnit]) -> Vec<Placement> {
    let idle = open.iter().filter(|lease| lease.devices.len() > 1 && lease.queued == 0);
    let wanted = |lease: &&Lease| {
        let mut own = devices.iter().filter(|device| lease.devices.contains(&device.uuid));
        own.any(|device| {
            let single = waiting.iter().filter(|unit| !spread::needs_several(devices, unit));
            single.into_iter().any(|unit| has_room(device, unit))
        })
    };
    idle.filter(wanted).map(|lease| Placement::Drain { lease: lease.id }).collect()
}

fn is_loaded(lease: &Lease, unit: &ReadyUnit) -> bool {
    unit.models.iter().all(|model| lease.loaded.contains(model))
}

/// What is due on a lease: the gravest of what is due on its devices. One that is not ours any more is
/// left.
pub(super) fn duty(devices: &[DeviceState], lease: &Lease) -> Duty {
    let of = |uuid: &String| devices.iter().find(|device| device.uuid == *uuid);
    let duties = lease.devices.iter().map(|uuid| of(uuid).map_or(Duty::Leave, |d| d.duty));
    duties.max().unwrap_or(Duty::Leave)
}

fn has_room(device: &DeviceState, unit: &ReadyUnit) -> bool {
    covers(device.memory_free_mib, unit)
}

/// What our own worker holds is free for its next unit, and counts as free in `memory_free_mib`: a lease
/// that stands is asked only whether its devices have the memory at all. One over several takes what no
/// single device holds, and what needs no memory.
pub(super) fn fits(devices: &[DeviceState], lease: &Lease, unit: &ReadyUnit) -> bool {
    let free = |uuid: &String| devices.iter().find(|d| d.uuid == *uuid)?.memory_free_mib;
    let all: Option<Vec<u64>> = lease.devices.iter().map(free).collect();
    match (lease.devices.len(), all) {
        (0 | 1, all) => covers(all.and_then(|all| all.first().copied()), unit),
        (_, None) => false,
        (_, Some(all)) => {
            unit.memory_mib.is_none()
                || spread::needs_several(devices, unit)
                    && spread::holds(&lease.rooms_mib, &all, unit)
        }
    }
}

/// What is not known cannot refuse: a worker that runs out of memory has its batch halved.
pub(super) fn covers(free_mib: Option<u64>, unit: &ReadyUnit) -> bool {
    match (free_mib, unit.memory_mib) {
        (Some(free), Some(needs)) => needs <= free,
        (None, _) | (_, None) => true,
    }
}
