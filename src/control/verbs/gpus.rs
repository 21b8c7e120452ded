//! `gpus`: the devices as they were last seen, and their timeline.

use actix_web::{HttpRequest, web};
use rlhfd_protocol::control::{DeviceEvent, DeviceStatus, Devices, DevicesQuery};
use rlhfd_store::DeviceEventRow;

use super::{Shared, asked};
use crate::gpu::Fault;
use crate::listener::answer::ok;
use crate::listener::{Answer, Refusal};
use crate::live::{Live, LiveDevice};

/// `GET /v1/devices`
pub async fn get(
    shared: web::Data<Shared>,
    query: web::Query<DevicesQuery>,
    request: HttpRequest,
) -> Answer {
    let rows = query.history.unwrap_or(0);
    let history = shared.app.store.read(move |reader| reader.device_events(rows)).await;
    let history = history.map_err(|error| Refusal::ask(asked(&request), &error))?;
    ok(&Devices {
        devices: devices(&shared.app.live.now()),
        history: history.into_iter().map(event).collect(),
    })
}

/// The devices as `status` and `gpus` show them.
pub(super) fn devices(live: &Live) -> Vec<DeviceStatus> {
    let mut shown: Vec<DeviceStatus> = live.devices.iter().map(device).collect();
    for device in &mut shown {
        let mut leases = live.workers.values().map(|worker| &worker.devices);
        let own = leases.find(|devices| devices.contains(&device.uuid));
        let others = own.into_iter().flatten().filter(|uuid| **uuid != device.uuid);
        device.together_with = others.cloned().collect();
    }
    shown
}

fn device(device: &LiveDevice) -> DeviceStatus {
    let fact = &device.fact;
    DeviceStatus {
        uuid: fact.uuid.clone(),
        name: fact.name.clone(),
        present: !matches!(fact.fault, Some(Fault::Lost(_))),
        memory_mib: fact.memory_mib,
        memory_free_mib: fact.memory_free_mib,
        foreign_mib: device.foreign_mib,
        utilisation_percent: fact.utilisation_percent,
        temperature_c: fact.temperature_c,
        power_w: fact.power_w,
        ecc_uncorrected: fact.ecc_uncorrected,
        driver: fact.driver.clone(),
        slice_of: fact.slice_of.clone(),
        hold: device.hold.clone(),
        together_with: Vec::new(),
    }
}

fn event(row: DeviceEventRow) -> DeviceEvent {
    let event = row.event;
    DeviceEvent {
        at_ms: row.at_ms,
        device: event.device,
        kind: event.kind,
        seen: event.seen,
        decision: event.decision,
        reason: event.reason,
        lease: event.lease,
        unit: event.unit.map(rlhfd_domain::UnitId::get),
    }
}
