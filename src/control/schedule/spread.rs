//! Units that no device holds alone: which devices hold one together, and what is kept for it.
//!
//! In: what the plan looks at. Out: sets of devices. Pure, as the plan is. May not enter: which unit goes to
//! which lease (`plan`).

use rlhfd_domain::split::{Demand, fewest};

use super::plan::{covers, duty, fits};
use super::{DeviceState, Duty, Lease, LeaseState, PASSES_MAX, Placement, ReadyUnit};

/// What a unit needs of several devices, by the memory plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// By parts of its model.
    pub demand: Demand,
    /// The correction of the plan, in thousandths.
    pub per_mille: u64,
}

impl Spread {
    /// MiB on each of several devices, split by `rooms`.
    #[must_use]
    pub fn shares_mib(&self, rooms: &[u64]) -> Vec<u64> {
        let corrected = |mib: u64| (mib.saturating_mul(self.per_mille)).div_ceil(1000);
        self.demand.planned_mib(rooms).into_iter().map(corrected).collect()
    }
}

/// Devices that are kept for one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reserved {
    pub(super) unit: i64,
    /// In the order of its model's blocks.
    pub(super) devices: Vec<String>,
}

impl Reserved {
    /// Whether the lease stands on one of them.
    pub(super) fn touches(&self, lease: &Lease) -> bool {
        lease.devices.iter().any(|uuid| self.devices.contains(uuid))
    }

    /// Those of them that are among these, in their own order.
    pub(super) fn among<'a>(&self, devices: &[&'a DeviceState]) -> Vec<&'a DeviceState> {
        let find = |uuid: &String| devices.iter().find(|device| device.uuid == *uuid).copied();
        self.devices.iter().filter_map(find).collect()
    }
}

/// Whether a unit fits none of the devices alone. One that rests comes back, and is waited for.
pub(super) fn needs_several(devices: &[DeviceState], unit: &ReadyUnit) -> bool {
    let mut usable = devices.iter().filter(|device| device.duty <= Duty::Rest);
    unit.spread.is_some() && !usable.any(|device| covers(device.memory_free_mib, unit))
}

/// Whether devices with so much free hold the unit, split by `rooms`: each its own share.
pub(super) fn holds(rooms: &[u64], free_mib: &[u64], unit: &ReadyUnit) -> bool {
    let Some(spread) = &unit.spread else { return false };
    let shares = spread.shares_mib(rooms);
    shares.len() == free_mib.len() && shares.iter().zip(free_mib).all(|(share, free)| share <= free)
}

/// As few of the devices as hold the unit together, the largest first.
pub(super) fn together<'a>(
    devices: &[&'a DeviceState],
    unit: &ReadyUnit,
) -> Option<Vec<&'a DeviceState>> {
    let spread = unit.spread.as_ref()?;
    let mut known: Vec<&DeviceState> =
        devices.iter().filter(|device| device.memory_free_mib.is_some()).copied().collect();
    // By whole GiB: what others use a little of now shall not change which devices are kept.
    known.sort_by_key(|device| std::cmp::Reverse(device.memory_free_mib.map(|mib| mib >> 10)));
    let shares = fewest(&rooms(&known), |rooms| spread.shares_mib(rooms))?;
    known.truncate(shares.len());
    Some(known)
}

fn rooms(devices: &[&DeviceState]) -> Vec<u64> {
    devices.iter().filter_map(|device| device.memory_free_mib).collect()
}

/// A lease on these; over several, with the rooms by which models are split there.
pub(super) fn open(devices: &[&DeviceState]) -> Placement {
    Placement::Open {
        devices: devices.iter().map(|device| device.uuid.clone()).collect(),
        rooms_mib: if devices.len() > 1 { rooms(devices) } else { Vec::new() },
    }
}

/// The devices that take units and that no lease holds.
pub(super) fn free<'a>(devices: &'a [DeviceState], leases: &[Lease]) -> Vec<&'a DeviceState> {
    let held = |device: &DeviceState| leases.iter().any(|l| l.devices.contains(&device.uuid));
    devices.iter().filter(|device| device.duty == Duty::Work && !held(device)).collect()
}

/// What is kept for a unit that needs several devices, once it was passed over too often, or is the first in
/// line that fits at all; else a stream of units that need one would starve it. The one passed over most
/// often comes first, and where a lease takes it now nothing is kept for another: two that each drained what
/// stands for the other would never end.
pub(super) fn reserve(
    devices: &[DeviceState],
    leases: &[Lease],
    waiting: &[&ReadyUnit],
) -> Option<Reserved> {
    let mut due: Vec<&ReadyUnit> =
        waiting.iter().filter(|unit| unit.passed >= PASSES_MAX).copied().collect();
    due.sort_by_key(|unit| std::cmp::Reverse(unit.passed));
    due.extend(waiting.iter().find(|unit| ever_fits(devices, unit)));
    due.retain(|unit| needs_several(devices, unit));
    for unit in due {
        match kept(devices, leases, unit) {
            Kept::Devices(chosen) => {
                let devices = chosen.iter().map(|device| device.uuid.clone()).collect();
                return Some(Reserved { unit: unit.id, devices });
            }
            Kept::TakenNow => return None,
            Kept::Nothing => {}
        }
    }
    None
}

/// What there is to keep for a unit.
enum Kept<'a> {
    Devices(Vec<&'a DeviceState>),
    /// A lease that stands takes it at once.
    TakenNow,
    /// It fits nowhere, or the lease that takes it is at work.
    Nothing,
}

/// The devices to keep for a unit. Those that are free come first. Others are kept only where no lease that
/// stands will take the unit, and one where a training runs only where nothing else does.
fn kept<'a>(devices: &'a [DeviceState], leases: &[Lease], unit: &ReadyUnit) -> Kept<'a> {
    let takes = |lease: &&Lease| {
        let stands = lease.state != LeaseState::Draining && duty(devices, lease) == Duty::Work;
        lease.devices.len() > 1 && stands && fits(devices, lease, unit)
    };
    let now = |lease: &&Lease| lease.state == LeaseState::Opening || lease.queued == 0;
    let taking: Vec<&Lease> = leases.iter().filter(takes).collect();
    if taking.iter().any(now) {
        return Kept::TakenNow;
    }
    let trainings: Vec<Lease> = leases.iter().filter(|lease| lease.alone).cloned().collect();
    let held: &[&[Lease]] = if taking.is_empty() { &[leases, &trainings, &[]] } else { &[leases] };
    let chosen = held.iter().find_map(|held| together(&free(devices, held), unit));
    chosen.map_or(Kept::Nothing, Kept::Devices)
}

/// Whether the devices, all free of leases, would hold the unit, alone or several together.
#[must_use]
pub fn ever_fits(devices: &[DeviceState], unit: &ReadyUnit) -> bool {
    let all: Vec<&DeviceState> = devices.iter().collect();
    devices.iter().any(|device| covers(device.memory_free_mib, unit))
        || together(&all, unit).is_some()
}
