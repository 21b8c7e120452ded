//! The scheduler's devices: looked at again and again, chosen by the configuration, recorded.
//!
//! In: inventories of a probe. Out: devices on the board and in the table. May not enter: placements.

use std::sync::Arc;

use actix::prelude::*;
use rlhfd_config::{CheckedConfig, UseDevices};
use rlhfd_domain::device::{DeviceKind, DeviceSeen, Mib};

use super::SchedulerActor;
use crate::gpu::{self, DeviceFact};
use crate::handles::now_ms;
use crate::live::LiveBoard;

impl SchedulerActor {
    pub(super) fn look_at_devices(&mut self, own: &mut Context<Self>) {
        let probe = Arc::clone(&self.probe);
        let looked = actix_rt::task::spawn_blocking(move || probe.look());
        own.spawn(looked.into_actor(self).map(|looked, scheduler, own| {
            if let Ok(inventory) = looked {
                scheduler.take_inventory(&inventory, own);
            }
        }));
    }

    fn take_inventory(&mut self, inventory: &gpu::Inventory, own: &mut Context<Self>) {
        let wanted = match &self.ctx.config.borrow().devices.use_devices {
            UseDevices::Auto => Vec::new(),
            UseDevices::Named(names) => names.clone(),
        };
        let devices = match chosen(&wanted, inventory) {
            Ok(devices) => devices,
            Err(sentence) => {
                self.live.change(|live| {
                    live.faults.insert("devices".into(), sentence);
                    live.devices.clear();
                });
                // Leases on what is not there end by themselves, or by their deadlines.
                self.devices.clear();
                return;
            }
        };
        let changed = uuids(&devices) != uuids(&self.devices);
        self.devices = devices;
        let shown = self.devices.clone();
        self.live.change(|live| {
            live.faults.remove("devices");
            live.devices = shown;
        });
        if changed {
            self.record();
            self.consider(own);
        }
    }

    fn record(&self) {
        let seen: Vec<DeviceSeen> = self
            .devices
            .iter()
            .map(|device| DeviceSeen {
                uuid: device.uuid.clone(),
                kind: if device.is_cuda() { DeviceKind::Cuda } else { DeviceKind::Cpu },
                name: device.name.clone(),
                memory: device.memory_mib.map(Mib),
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

/// The devices of the configuration; else why there are none. A driver that does not answer is a
/// fault: the CPU never takes over for GPUs in silence.
fn chosen(wanted: &[String], inventory: &gpu::Inventory) -> Result<Vec<DeviceFact>, String> {
    let wants_cpu_alone = wanted == [gpu::CPU];
    if let (gpu::Inventory::DriverFault(fault), false) = (inventory, wants_cpu_alone) {
        return Err(format!(
            "the GPU driver does not answer ({fault}); mend it (see `nvidia-smi`), or set [devices] \
             use = [\"cpu\"]"
        ));
    }
    gpu::choose(wanted, inventory).map_err(|missing| {
        format!(
            "[devices] use names {}, which is not there; put it back, or change the configuration",
            missing.join(", ")
        )
    })
}

fn uuids(devices: &[DeviceFact]) -> Vec<(&str, bool)> {
    devices.iter().map(|device| (device.uuid.as_str(), device.fault.is_none())).collect()
}

/// The kind of devices in use, for the sizes of units.
#[must_use]
pub fn uses_cuda(live: &LiveBoard, config: &CheckedConfig) -> bool {
    match &config.devices.use_devices {
        UseDevices::Named(names) => names.iter().any(|name| name != gpu::CPU),
        UseDevices::Auto => live.now().devices.iter().any(DeviceFact::is_cuda),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_takes_over_only_where_there_is_no_driver_or_it_is_asked_for() {
        let fault = gpu::Inventory::DriverFault("driver mismatch".into());
        let said = chosen(&[], &fault).unwrap_err();
        assert!(said.contains("driver mismatch") && said.contains("cpu"), "{said}");
        assert_eq!(chosen(&["cpu".into()], &fault).unwrap(), [DeviceFact::cpu()]);
        assert_eq!(chosen(&[], &gpu::Inventory::NoDriver).unwrap(), [DeviceFact::cpu()]);
        assert!(chosen(&["3".into()], &gpu::Inventory::NoDriver).unwrap_err().contains('3'));
    }
}
