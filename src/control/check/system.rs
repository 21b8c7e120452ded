//! The machine as `check` sees it: devices, worker, libtorch, disk, database, socket.
//!
//! In: a configuration and places. Out: findings, and the room that each device has. Reads only.
//! May not enter: models.

use std::fs;
use std::path::Path;

use rlhfd_config::{CheckedConfig, DevicesConfig, UseDevices};

use super::folder::Facts;
use super::report::Report;
use crate::gpu::{DeviceFact, GpuProbe, Inventory, choose};
use crate::places::SOCKET_PATH_BYTES_MAX;
use crate::rights;
use crate::workers::libtorch;

const MIB: u64 = 1 << 20;
/// A database's whole check of more than this takes minutes; it is done, and said before.
const LARGE_DATABASE_MIB: u64 = 4096;

/// A device, as the memory plan sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) name: String,
    pub(super) is_cuda: bool,
    /// What may be planned with: the reserve is taken off.
    pub(super) free_mib: u64,
}

/// The devices that the configuration names, or those of `auto` where there is none.
pub(super) fn devices(
    config: Option<&CheckedConfig>,
    probe: &dyn GpuProbe,
    report: &mut Report,
) -> Vec<Room> {
    let inventory = probe.look();
    if let Inventory::DriverFault(fault) = &inventory {
        report.bad(
            "devices",
            format!("the GPU driver is there and does not answer: {fault}\ntry: `nvidia-smi`"),
        );
    }
    let wanted = match config.map(|config| &config.devices.use_devices) {
        Some(UseDevices::Named(names)) => names.clone(),
        Some(UseDevices::Auto) | None => vec!["auto".to_owned()],
    };
    let reserve = config.map_or(0, |config| config.devices.reserve_mib);
    let (chosen, missing) = choose(&wanted, &inventory);
    if !missing.is_empty() {
        report.bad(
            "devices",
            format!("[devices] use names {}, which is not there", missing.join(", ")),
        );
    }
    let mut rooms = Vec::new();
    for device in chosen {
        if let Some(fault) = &device.fault {
            report.warn("devices", format!("{} cannot be used: {}", device.name, fault.words()));
            continue;
        }
        let is_cuda = device.is_cuda();
        let free_mib = if is_cuda {
            device.memory_mib.unwrap_or(0).saturating_sub(reserve)
        } else {
            memory_available_mib()
        };
        let more = seen(&device);
        let name = if is_cuda { format!("{} ({})", device.name, device.uuid) } else { device.name };
        report.well("devices", format!("{name}: {free_mib} MiB to plan with{more}"));
        rooms.push(Room { name, is_cuda, free_mib });
    }
    if let Some(config) = config {
        report.well("devices", limits(&config.devices));
    }
    rooms
}

/// What else is seen of a device now.
fn seen(device: &DeviceFact) -> String {
    let with = |value: Option<u64>, words: &str| value.map(|value| format!(", {value} {words}"));
    let parts = [
        with(device.memory_used_mib, "MiB in use"),
        with(device.temperature_c.map(u64::from), "°C"),
        with(device.power_w.map(u64::from), "W"),
        with(device.ecc_uncorrected, "uncorrected memory errors"),
        device.driver.as_ref().map(|version| format!(", driver {version}")),
    ];
    parts.into_iter().flatten().collect()
}

/// When a device takes no units.
fn limits(devices: &DevicesConfig) -> String {
    let heat = match devices.temperature_max_c {
        0 => "at any temperature".to_owned(),
        max => format!("up to {max} °C"),
    };
    let others = match devices.yield_above_mib {
        0 => "beside others".to_owned(),
        most => format!("while others use at most {most} MiB"),
    };
    let hours = match devices.quiet_hours.len() {
        0 => "at all hours".to_owned(),
        ranges => format!("outside {ranges} ranges of quiet hours (UTC)"),
    };
    format!("units are taken {heat}, {others}, {hours}")
}

/// What the kernel would give without swapping, and no more than the group of processes may have.
fn memory_available_mib() -> u64 {
    let available = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map_or(0, |kib| kib / 1024);
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    limit.map_or(available, |limit| available.min(limit / MIB))
}

/// The worker's program and libtorch.
pub(super) fn worker(config: &CheckedConfig, report: &mut Report) {
    let origin = libtorch::origin();
    let configured = config.worker.program.as_ref().map(|place| place.path.as_path());
    let program = libtorch::program(configured, &origin);
    if program.components().count() > 1 && !program.is_file() {
        report.bad("worker", format!("there is no program at {}", program.display()));
    } else {
        report.well("worker", format!("{}", program.display()));
    }
    let named = config.worker.libtorch.as_ref().map(|place| place.path.as_path());
    let folders = libtorch::candidates(named, std::env::var_os("RLHFD_LIBTORCH"), &origin);
    match libtorch::find(&folders) {
        Ok(lib) => report.well("libtorch", format!("{}", lib.display())),
        Err(error) => report.bad("libtorch", error.to_string()),
    }
}

/// Room for the checkpoints to come.
pub(super) fn disk(
    config: &CheckedConfig,
    policy: Option<&Facts>,
    state: &Path,
    report: &mut Report,
) {
    let Some(folder) = state.ancestors().find(|folder| folder.is_dir()) else {
        report.bad("disk", format!("no folder above {} is there", state.display()));
        return;
    };
    let shown = folder.display();
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(errno) => {
            report.bad("disk", format!("{shown} cannot be asked: {errno}"));
            return;
        }
    };
    if rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_err() {
        report.bad("disk", format!("{shown} cannot be written: look at its owner and mount"));
    }
    let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) / MIB;
    // A checkpoint has the policy's size, and an f32 master where its type is narrower. While it is
    // written, training's own state (masters and moments, f32) lies beside it.
    let iterations = config.run.iterations_max.clamp(1, 1_000);
    let (one, state_mib) = policy.map_or((0, 0), |facts| {
        let master =
            if facts.weights.types.contains("F32") { 0 } else { facts.weights.parameters * 4 };
        ((facts.weights.bytes + master) / MIB, facts.weights.parameters * 12 / MIB)
    });
    let needs = one * iterations + state_mib + config.store.disk_free_min_mib;
    let sum = format!(
        "{free_mib} MiB free at {shown}; {iterations} checkpoints of {one} MiB, training's own \
         state and the reserve need about {needs} MiB"
    );
    if free_mib < one + state_mib + config.store.disk_free_min_mib {
        report.bad("disk", format!("not even one checkpoint fits: {sum}"));
    } else if free_mib < needs {
        report.warn("disk", format!("not all checkpoints fit: {sum}"));
    } else {
        report.well("disk", sum);
    }
}

/// SQLite's whole check of the database, where there is one.
pub(super) fn database(state: &Path, report: &mut Report) {
    let file = rlhfd_store::open::database(state);
    let Ok(facts) = fs::metadata(&file) else {
        report.well("database", format!("none yet; the first start makes {}", file.display()));
        return;
    };
    if let Some(hidden) = rights::hidden(state, &file) {
        report.warn("database", hidden);
    }
    let size_mib = facts.len() / MIB;
    if size_mib > LARGE_DATABASE_MIB {
        report.warn("database", format!("{size_mib} MiB: its whole check takes a while"));
    }
    match rlhfd_store::backup::examine(state) {
        Ok(findings) if findings.is_empty() => {
            report.well("database", format!("{} ({size_mib} MiB) is sound", file.display()));
        }
        Ok(findings) => {
            for finding in findings {
                report.bad("database", format!("{}: {finding}", file.display()));
            }
        }
        Err(error) => report.bad("database", error.to_string()),
    }
}

/// Whether somebody serves the socket already: no fault, but worth knowing.
pub(super) fn socket(path: &Path, report: &mut Report) {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        report.warn("socket", format!("{} is served by a daemon now", path.display()));
    } else {
        let bytes = path.as_os_str().len();
        report.well(
            "socket",
            format!("{} ({bytes} of {SOCKET_PATH_BYTES_MAX} bytes)", path.display()),
        );
    }
}
