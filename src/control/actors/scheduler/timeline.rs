//! The devices' timeline in words: what was seen, what is decided, why.
//!
//! In: changes of a device's standing, leases, errors of the driver. Out: rows of `device_events` and
//! log lines. May not enter: decisions.

use rlhfd_domain::UnitId;
use rlhfd_store::NewDeviceEvent;

use super::SchedulerActor;
use super::devices::Tracked;
use crate::gpu::xids::DriverError;
use crate::gpu::{DeviceFact, Inventory};
use crate::handles::now_ms;
use crate::schedule::Duty;
use crate::schedule::standing::{COOLER_C, Hold, REST_MS, Rules};

/// Where something concerns the driver and not one device.
const DRIVER: &str = "driver";

/// A hold in few words, for people.
pub(super) fn in_words(hold: &Hold) -> String {
    match hold {
        Hold::Lost(why) => format!("lost: {why}"),
        Hold::Broken(why) => format!("broken: {why}"),
        Hold::Yielded => "left to others".to_owned(),
        Hold::Quiet => "quiet hours".to_owned(),
        Hold::Silent(why) => format!("does not answer: {why}"),
        Hold::Hot => "too hot".to_owned(),
    }
}

impl SchedulerActor {
    pub(super) fn tell_found(&self, fact: &DeviceFact) {
        let memory = fact.memory_mib.map_or(String::new(), |mib| format!(", {mib} MiB"));
        self.tell(NewDeviceEvent {
            device: fact.uuid.clone(),
            kind: "found".into(),
            seen: format!("{}{memory}", fact.name),
            decision: Duty::Work.words().into(),
            reason: "[devices] use names it".into(),
            lease: None,
            unit: None,
        });
    }

    /// A device's standing is another than it was.
    pub(super) fn tell_standing(&self, device: &Tracked, before: Option<&Hold>, rules: &Rules) {
        let (lease, unit) = self.touched(&device.fact.uuid);
        let hold = device.standing.hold.as_ref();
        self.tell(NewDeviceEvent {
            device: device.fact.uuid.clone(),
            kind: hold.map_or("free", Hold::label).into(),
            seen: seen(device, hold.or(before)),
            decision: device.standing.duty().words().into(),
            reason: match hold {
                Some(hold) => reason(hold, rules),
                None => format!("{} no longer", before.map_or("held", Hold::label)),
            },
            lease,
            unit,
        });
    }

    /// The driver: its version, or why it does not answer.
    pub(super) fn tell_driver(&mut self, inventory: &Inventory) {
        let (seen, decision) = match inventory {
            Inventory::NoDriver => ("no driver".to_owned(), "the CPU is used where it may be"),
            Inventory::DriverFault(fault) => (fault.clone(), Duty::Rest.words()),
            Inventory::Gpus(gpus) => {
                let version = gpus.iter().find_map(|gpu| gpu.driver.clone());
                let version = version.unwrap_or_else(|| "unknown".to_owned());
                (format!("version {version}"), "its GPUs are used")
            }
        };
        if self.driver.as_ref() == Some(&seen) {
            return;
        }
        let reason = match self.driver.replace(seen.clone()) {
            Some(before) => format!("it was: {before}"),
            None => "the daemon starts".to_owned(),
        };
        self.tell(NewDeviceEvent {
            device: DRIVER.into(),
            kind: "driver".into(),
            seen,
            decision: decision.into(),
            reason,
            lease: None,
            unit: None,
        });
    }

    pub(super) fn tell_error(&self, error: &DriverError) {
        let (lease, unit) = self.touched(&error.uuid);
        let (decision, reason) = match error.is_of_hardware() {
            true => (Duty::End.words(), "its hardware failed"),
            false => ("none", "such errors are a program's own, or mended by the driver"),
        };
        self.tell(NewDeviceEvent {
            device: error.uuid.clone(),
            kind: "xid".into(),
            seen: format!("Xid {}", error.xid),
            decision: decision.into(),
            reason: reason.into(),
            lease,
            unit,
        });
    }

    /// A lease is opened on a device, or ended there.
    pub(super) fn tell_lease(&self, uuid: &str, seen: String, decision: &str, reason: &str) {
        let (lease, unit) = self.touched(uuid);
        self.tell(NewDeviceEvent {
            device: uuid.to_owned(),
            kind: "lease".into(),
            seen,
            decision: decision.into(),
            reason: reason.into(),
            lease,
            unit,
        });
    }

    /// The lease's row and the unit that runs on a device.
    fn touched(&self, uuid: &str) -> (Option<i64>, Option<UnitId>) {
        let on_it = |devices: &[String]| devices.iter().any(|on| on == uuid);
        let found = self.leases.iter().find(|(_, lease)| on_it(&lease.devices));
        let Some((number, lease)) = found else { return (None, None) };
        let row = self.live.now().workers.get(number).and_then(|worker| worker.lease);
        (row, lease.queue.front().map(|(unit, _)| *unit))
    }

    fn tell(&self, event: NewDeviceEvent) {
        tracing::info!(
            device = event.device,
            kind = event.kind,
            "{}: {} ({})",
            event.seen,
            event.decision,
            event.reason
        );
        let ctx = self.ctx.clone();
        actix_rt::spawn(async move {
            let events = [event];
            if let Err(error) =
                ctx.write_patiently(move |s| s.tell_devices(&events, now_ms())).await
            {
                tracing::warn!("a device's event is lost: {error}");
            }
        });
    }
}

/// What was seen, as far as it matters to this hold.
fn seen(device: &Tracked, hold: Option<&Hold>) -> String {
    let fact = &device.fact;
    match hold {
        Some(Hold::Lost(why) | Hold::Broken(why) | Hold::Silent(why)) => match &fact.fault {
            None if device.standing.hold.is_none() => "it answers".to_owned(),
            _ => why.clone(),
        },
        Some(Hold::Yielded) => format!("others use {} MiB", device.foreign_mib.unwrap_or(0)),
        Some(Hold::Quiet) => "the time of day".to_owned(),
        Some(Hold::Hot) => format!("{} °C", fact.temperature_c.unwrap_or(0)),
        None => fact.name.clone(),
    }
}

fn reason(hold: &Hold, rules: &Rules) -> String {
    match hold {
        Hold::Lost(_) => "nothing on it computes any more".to_owned(),
        Hold::Broken(_) => {
            format!("it rests for {} minutes, or until it was reset", REST_MS / 60_000)
        }
        Hold::Yielded => format!("more than [devices] yield_above_mib = {}", rules.yield_above_mib),
        Hold::Quiet => "[devices] quiet_hours".to_owned(),
        Hold::Silent(_) => "it may come back; what runs goes on".to_owned(),
        Hold::Hot => {
            let max = rules.temperature_max_c;
            let again = max.saturating_sub(COOLER_C);
            format!("above [devices] temperature_max_c = {max}; again at {again}")
        }
    }
}
