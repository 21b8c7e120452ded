//! The scheduler's devices: looked at again and again, chosen by the configuration, recorded.
//!
//! In: inventories of a probe, errors of the driver, what workers hold. Out: devices on the board, in
//! the table and in the timeline. May not enter: placements, the rules of a device's standing
//! (`schedule::standing`).

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use rlhfd_config::{CheckedConfig, DevicesConfig, UseDevices};
use rlhfd_domain::device::{DeviceKind, DeviceSeen, Mib};

use super::{Lease, SchedulerActor};
use crate::gpu::xids::DriverError;
use crate::gpu::{self, DeviceFact, Fault, Inventory};
use crate::handles::now_ms;
use crate::live::{LiveBoard, LiveDevice};
use crate::schedule::standing::{Hold, Rules, Seen, Standing, stand};

/// So many looks may pass without an answer until the driver is taken to hang.
const UNANSWERED_MAX: u32 = 6;

/// A device that the configuration names, for as long as it does.
#[derive(Debug, Clone, Default)]
pub(super) struct Tracked {
    pub(super) fact: DeviceFact,
    pub(super) standing: Standing,
    /// What others use of it.
    pub(super) foreign_mib: Option<u64>,
    /// The same when no lease of ours stood on it.
    foreign_before_mib: u64,
    /// What was used at the look before.
    used_before_mib: Option<u64>,
    /// An error of its hardware, since the last look.
    broke: Option<String>,
}

impl Tracked {
    /// What of its memory may be planned with: our own worker's part counts as free.
    pub(super) fn memory_for_us_mib(&self, reserve_mib: u64) -> Option<u64> {
        let others = reserve_mib.saturating_add(self.foreign_mib.unwrap_or(0));
        Some(self.fact.memory_mib?.saturating_sub(others))
    }
}

/// The rules of the configuration.
pub(super) fn rules(devices: &DevicesConfig) -> Rules {
    Rules {
        temperature_max_c: devices.temperature_max_c,
        yield_above_mib: devices.yield_above_mib,
        yield_for_ms: i64::try_from(devices.yield_for_s).unwrap_or(i64::MAX).saturating_mul(1000),
    }
}

impl SchedulerActor {
    /// Looks, and again after `[devices] look_ms`.
    pub(super) fn keep_looking(&mut self, own: &mut Context<Self>) {
        match self.unanswered {
            None => self.look_at_devices(own),
            Some(looks) => self.miss_look(looks.saturating_add(1), own),
        }
        let pause = Duration::from_millis(self.ctx.config.borrow().devices.look_ms);
        own.run_later(pause, |scheduler, own| {
            // A nudge that met a full mailbox is made up for here.
            scheduler.consider(own);
            scheduler.keep_looking(own);
        });
    }

    /// A look was due while the one before is not answered yet.
    fn miss_look(&mut self, unanswered: u32, own: &mut Context<Self>) {
        self.unanswered = Some(unanswered);
        if unanswered >= UNANSWERED_MAX {
            self.take_inventory(&Inventory::DriverFault("it hangs".to_owned()), own);
        }
    }

    /// One look at a time: a driver that hangs holds one thread, not one a look.
    fn look_at_devices(&mut self, own: &mut Context<Self>) {
        if self.unanswered.is_some() {
            return;
        }
        self.unanswered = Some(0);
        let probe = Arc::clone(&self.probe);
        let looked = actix_rt::task::spawn_blocking(move || probe.look());
        own.spawn(looked.into_actor(self).map(|looked, scheduler, own| {
            scheduler.unanswered = None;
            if let Ok(inventory) = looked {
                scheduler.take_inventory(&inventory, own);
            }
        }));
    }

    fn take_inventory(&mut self, inventory: &Inventory, own: &mut Context<Self>) {
        let config = self.ctx.config.borrow().devices.clone();
        let before = self.standings();
        self.tell_driver(inventory);
        let missing = match self.meet(&config.use_devices, inventory) {
            Ok(missing) => missing,
            Err(sentence) => {
                self.live.change(|live| {
                    live.faults.insert("devices".into(), sentence);
                    live.devices.clear();
                });
                // What stood on devices that are not named any more leaves them.
                self.settle_leases();
                return;
            }
        };
        self.look_at_each(&config);
        self.show(&missing);
        if before != self.standings() {
            self.record();
            self.settle_leases();
            self.consider(own);
        }
    }

    /// UUIDs, and why each takes no units.
    fn standings(&self) -> Vec<(String, Option<Hold>)> {
        let of = |device: &Tracked| (device.fact.uuid.clone(), device.standing.hold.clone());
        self.devices.iter().map(of).collect()
    }

    /// Brings the devices that are tracked in line with what was found. Gives what the configuration
    /// names in vain.
    ///
    /// Errors: why there is no device at all. A driver that does not answer is a fault: the CPU never
    /// takes over for GPUs in silence.
    fn meet(&mut self, wanted: &UseDevices, inventory: &Inventory) -> Result<Vec<String>, String> {
        let names = match wanted {
            UseDevices::Auto => Vec::new(),
            UseDevices::Named(names) => names.clone(),
        };
        let same_wish = self.wanted.replace(names.clone()).is_none_or(|before| before == names);
        let computes_on_gpus = self.devices.iter().any(|device| device.fact.is_cuda());
        let fault = match inventory {
            Inventory::DriverFault(fault) => Some(fault.clone()),
            Inventory::NoDriver if computes_on_gpus => Some("its library is gone".to_owned()),
            Inventory::NoDriver | Inventory::Gpus(_) => None,
        };
        if let Some(fault) = fault.filter(|_| names != [gpu::CPU]) {
            for device in &mut self.devices {
                device.fact.fault = Some(Fault::Driver(fault.clone()));
            }
            return if self.devices.is_empty() { Err(no_driver(&fault)) } else { Ok(Vec::new()) };
        }
        let (mut found, missing) = gpu::choose(&names, inventory);
        if names.is_empty() && computes_on_gpus {
            found.retain(DeviceFact::is_cuda);
        }
        let known = std::mem::take(&mut self.devices);
        let lost = known.iter().filter(|device| {
            let here = found.iter().any(|fact| fact.uuid == device.fact.uuid);
            let named = device.fact.is_cuda() && !device.fact.uuid.starts_with("index-");
            same_wish && named && !here
        });
        let mut tracked: Vec<Tracked> = lost.cloned().map(gone).collect();
        for fact in found {
            let old = known.iter().find(|device| device.fact.uuid == fact.uuid).cloned();
            if old.is_none() {
                self.tell_found(&fact);
            }
            let used_before_mib = old.as_ref().and_then(|old| old.fact.memory_used_mib);
            // One that is lost keeps the name by which it was known.
            let name =
                old.as_ref().filter(|_| fact.fault.is_some()).map(|old| old.fact.name.clone());
            let fact = DeviceFact { name: name.unwrap_or_else(|| fact.name.clone()), ..fact };
            tracked.push(Tracked { fact, used_before_mib, ..old.unwrap_or_default() });
        }
        tracked.sort_by_key(|device| place_of(&known, device));
        self.devices = tracked;
        match missing.as_slice() {
            [_, ..] if self.devices.is_empty() => Err(not_there(&missing)),
            _ => Ok(missing),
        }
    }

    fn look_at_each(&mut self, config: &DevicesConfig) {
        let now = now_ms();
        let (rules, quiet) =
            (rules(config), config.quiet_hours.iter().any(|hours| hours.hold(now)));
        let mut devices = std::mem::take(&mut self.devices);
        for device in &mut devices {
            let held = self.held_by_us_mib(&device.fact.uuid);
            foreign_use(device, held);
            let seen = Seen {
                fault: device.fact.fault.clone(),
                broke: device.broke.take(),
                ecc_uncorrected: device.fact.ecc_uncorrected,
                temperature_c: device.fact.temperature_c,
                foreign_mib: device.foreign_mib,
                quiet,
            };
            let standing = stand(&device.standing, &seen, &rules, now);
            let before = std::mem::replace(&mut device.standing, standing);
            if before.hold != device.standing.hold {
                self.tell_standing(device, before.hold.as_ref(), &rules);
            }
        }
        self.devices = devices;
    }

    /// What our workers hold of a device: nothing where no lease stands on it, none where one does that
    /// does not say.
    fn held_by_us_mib(&self, uuid: &str) -> Option<u64> {
        let on_it = self.leases.values().filter(|lease| lease.devices.iter().any(|on| on == uuid));
        let of = |lease: &Lease| {
            let place = lease.devices.iter().position(|on| on == uuid)?;
            lease.device_mib.as_ref()?.get(place).copied()
        };
        on_it.map(of).sum()
    }

    /// The board, and a sentence where not all is well.
    fn show(&self, missing: &[String]) {
        let shown: Vec<LiveDevice> = self.devices.iter().map(live).collect();
        let mut sentences: Vec<String> = Vec::new();
        if !missing.is_empty() {
            sentences.push(not_there(missing));
        }
        if self.devices.iter().all(|device| device.standing.hold.is_some()) {
            let held = shown.iter().map(|device| {
                format!("{}: {}", device.fact.name, device.hold.as_deref().unwrap_or_default())
            });
            let held: Vec<String> = held.collect();
            sentences.push(format!("no device takes units now ({})", held.join("; ")));
        }
        self.live.change(|live| {
            live.devices = shown;
            match sentences.is_empty() {
                true => drop(live.faults.remove("devices")),
                false => drop(live.faults.insert("devices".into(), sentences.join("; "))),
            }
        });
    }

    fn record(&self) {
        let here = self.devices.iter().filter(|device| device.fact.fault.is_none());
        let seen: Vec<DeviceSeen> = here
            .map(|device| DeviceSeen {
                uuid: device.fact.uuid.clone(),
                kind: if device.fact.is_cuda() { DeviceKind::Cuda } else { DeviceKind::Cpu },
                name: device.fact.name.clone(),
                memory: device.fact.memory_mib.map(Mib),
            })
            .collect();
        let ctx = self.ctx.clone();
        actix_rt::spawn(async move {
            let recorded = ctx.write_patiently(move |s| s.record_devices(&seen, now_ms())).await;
            if let Err(error) = recorded {
                tracing::warn!("devices are not recorded: {error}");
            }
        });
    }
}

/// The driver reported an error of a GPU.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Heard(pub DriverError);

impl Handler<Heard> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, Heard(error): Heard, own: &mut Self::Context) {
        self.tell_error(&error);
        if !error.is_of_hardware() {
            return;
        }
        for device in &mut self.devices {
            let fact = &device.fact;
            if fact.uuid == error.uuid || fact.slice_of.as_ref() == Some(&error.uuid) {
                device.broke = Some(format!("Xid {}", error.xid));
            }
        }
        self.look_at_devices(own);
    }
}

/// What others use: what is used less what our own workers hold. A worker's word is some moments old, and
/// what it took since is not others': so the less of this look and the one before counts. Where one of ours
/// does not say, it is what others used before that one came.
fn foreign_use(device: &mut Tracked, held_by_us_mib: Option<u64>) {
    let Some(used) = device.fact.memory_used_mib else {
        device.foreign_mib = None;
        return;
    };
    let used = device.used_before_mib.map_or(used, |before| before.min(used));
    let foreign = match held_by_us_mib {
        Some(held) => used.saturating_sub(held),
        None => device.foreign_before_mib.min(used),
    };
    if held_by_us_mib == Some(0) {
        device.foreign_before_mib = foreign;
    }
    device.foreign_mib = Some(foreign);
}

fn gone(device: Tracked) -> Tracked {
    let fault = Some(Fault::Lost("it is not there any more".to_owned()));
    Tracked { fact: DeviceFact { fault, ..device.fact }, ..device }
}

/// The order in which devices were met.
fn place_of(known: &[Tracked], device: &Tracked) -> usize {
    known.iter().position(|old| old.fact.uuid == device.fact.uuid).unwrap_or(usize::MAX)
}

fn live(device: &Tracked) -> LiveDevice {
    LiveDevice {
        fact: device.fact.clone(),
        foreign_mib: device.foreign_mib,
        hold: device.standing.hold.as_ref().map(super::timeline::in_words),
    }
}

fn no_driver(fault: &str) -> String {
    format!(
        "the GPU driver does not answer ({fault}); mend it (see `nvidia-smi`), or set [devices] use = \
         [\"cpu\"]"
    )
}

fn not_there(missing: &[String]) -> String {
    format!(
        "[devices] use names {}, which is not there; put it back, or change the configuration",
        missing.join(", ")
    )
}

/// The kind of devices in use, for the sizes of units.
#[must_use]
pub fn uses_cuda(live: &LiveBoard, config: &CheckedConfig) -> bool {
    match &config.devices.use_devices {
        UseDevices::Named(names) => names.iter().any(|name| name != gpu::CPU),
        UseDevices::Auto => live.now().devices.iter().any(|device| device.fact.is_cuda()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(mib: u64, before: u64) -> Tracked {
        let fact = DeviceFact {
            memory_mib: Some(10_000),
            memory_used_mib: Some(mib),
            ..DeviceFact::default()
        };
        Tracked { fact, foreign_before_mib: before, ..Tracked::default() }
    }

    fn foreign(mut device: Tracked, held: Option<u64>) -> (Option<u64>, Option<u64>) {
        foreign_use(&mut device, held);
        (device.foreign_mib, device.memory_for_us_mib(1000))
    }

    #[test]
    fn what_others_use_is_what_is_used_less_what_our_workers_hold() {
        assert_eq!(foreign(used(3000, 0), Some(0)), (Some(3000), Some(6000)));
        assert_eq!(foreign(used(3000, 0), Some(2500)), (Some(500), Some(8500)));
        assert_eq!(foreign(used(3000, 0), Some(3500)), (Some(0), Some(9000)));
        // It took 2000 since it last said what it holds; then it gave them back.
        let grows = Tracked { used_before_mib: Some(1000), ..used(3000, 0) };
        assert_eq!(foreign(grows, Some(1000)), (Some(0), Some(9000)));
        let shrinks = Tracked { used_before_mib: Some(3000), ..used(1000, 0) };
        assert_eq!(foreign(shrinks, Some(1000)), (Some(0), Some(9000)));
        // A worker that does not say: what was there before it came.
        assert_eq!(foreign(used(3000, 200), None), (Some(200), Some(8800)));
        assert_eq!(foreign(Tracked::default(), Some(0)), (None, None));
    }
}
