//! `rlhfctl gpus`: the devices, what holds them, and with `--history` their timeline.

use rlhfd_protocol::control::{DeviceEvent, DeviceStatus, Devices};

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::{format, render};

/// Asks and prints.
pub async fn run(daemon: &Daemon, history: Option<u32>, json: bool) -> Result<(), ClientError> {
    let target = match history {
        Some(rows) => format!("/v1/devices?history={rows}"),
        None => "/v1/devices".to_owned(),
    };
    let devices: Devices = daemon.get(&target).await?;
    if json {
        return render::json(&devices);
    }
    if history.is_some() {
        let headers = ["when (UTC)", "device", "what", "seen", "decision", "reason"];
        let rows: Vec<Vec<String>> = devices.history.iter().map(event).collect();
        return render::table(&headers, &rows, "nothing happened to a device yet");
    }
    let headers =
        ["device", "name", "state", "memory", "free", "others", "busy", "heat", "power", "driver"];
    let rows: Vec<Vec<String>> = devices.devices.iter().map(device).collect();
    render::table(&headers, &rows, "no device: `rlhfctl status` says why")
}

fn device(device: &DeviceStatus) -> Vec<String> {
    let with = |value: Option<u64>, unit: &str| format::maybe(value.map(|v| format!("{v} {unit}")));
    let mut state = device.hold.clone().unwrap_or_else(|| "takes units".to_owned());
    if !device.together_with.is_empty() {
        state.push_str(&format!(", together with {}", device.together_with.join(", ")));
    }
    vec![
        device.uuid.clone(),
        device.name.clone(),
        state,
        with(device.memory_mib, "MiB"),
        with(device.memory_free_mib, "MiB"),
        with(device.foreign_mib, "MiB"),
        with(device.utilisation_percent.map(u64::from), "%"),
        with(device.temperature_c.map(u64::from), "°C"),
        with(device.power_w.map(u64::from), "W"),
        format::maybe(device.driver.clone()),
    ]
}

fn event(event: &DeviceEvent) -> Vec<String> {
    vec![
        format::time(event.at_ms),
        event.device.clone(),
        event.kind.clone(),
        event.seen.clone(),
        event.decision.clone(),
        event.reason.clone(),
    ]
}
