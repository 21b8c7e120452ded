//! GPUs by NVML, the driver's own library. Nothing here links CUDA.
//!
//! In: the library. Out: [`Inventory`]s. Only memory, name and UUID must be had of a device; a function
//! that this driver lacks leaves its field empty. May not enter: what to do with a device.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::{DeviceFact, Fault, GpuProbe, Inventory};

const MIB: u64 = 1 << 20;
/// For tests only: the path of another library in NVML's place.
const TEST_LIBRARY: &str = "RLHFD_TEST_NVML";

/// The driver's library, opened anew at each look: a driver that is reloaded or upgraded under the
/// daemon is then met as it is.
#[derive(Debug, Default)]
pub struct NvmlProbe {
    /// UUIDs by index: one that is lost does not tell its own any more.
    known: Mutex<BTreeMap<u32, String>>,
}

impl GpuProbe for NvmlProbe {
    fn look(&self) -> Inventory {
        match open() {
            Ok(nvml) => self.read(&nvml),
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => Inventory::NoDriver,
            Err(error) => Inventory::DriverFault(told(&error)),
        }
    }
}

/// Opens the library.
pub(super) fn open() -> Result<Nvml, NvmlError> {
    match std::env::var_os(TEST_LIBRARY) {
        Some(library) => Nvml::builder().lib_path(&library).init(),
        None => Nvml::init(),
    }
}

/// What the library says, and what to do where we know it.
fn told(error: &NvmlError) -> String {
    match error {
        NvmlError::LibRmVersionMismatch => format!(
            "{error}: the driver was upgraded under its running module; reboot, or load the module anew"
        ),
        other => other.to_string(),
    }
}

impl NvmlProbe {
    fn read(&self, nvml: &Nvml) -> Inventory {
        let count = match nvml.device_count() {
            Ok(count) => count,
            Err(error) => return Inventory::DriverFault(told(&error)),
        };
        let driver = nvml.sys_driver_version().ok();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gpus = Vec::new();
        for index in 0..count {
            match of_gpu(nvml, index, driver.as_ref()) {
                Ok((uuid, devices)) => {
                    known.insert(index, uuid);
                    gpus.extend(devices);
                }
                Err(error) => gpus.push(DeviceFact {
                    uuid: known.get(&index).cloned().unwrap_or_else(|| format!("index-{index}")),
                    name: format!("GPU {index}"),
                    fault: Some(fault(&error)),
                    ..DeviceFact::default()
                }),
            }
        }
        Inventory::Gpus(gpus)
    }
}

/// It counts and does not answer.
fn fault(error: &NvmlError) -> Fault {
    match error {
        NvmlError::GpuLost | NvmlError::ResetRequired => Fault::Lost(error.to_string()),
        other => Fault::Silent(other.to_string()),
    }
}

/// The GPU's UUID, and it or, where it is cut into MIG slices, those.
fn of_gpu(
    nvml: &Nvml,
    index: u32,
    driver: Option<&String>,
) -> Result<(String, Vec<DeviceFact>), NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let whole = DeviceFact { driver: driver.cloned(), ..facts(&gpu)? };
    let uuid = whole.uuid.clone();
    if !gpu.mig_mode().is_ok_and(|mode| mode.current == 1) {
        return Ok((uuid, vec![whole]));
    }
    let slices = (0..gpu.mig_device_count()?).filter_map(|slice| {
        let slice = facts(&gpu.mig_device_by_index(slice).ok()?).ok()?;
        // Heat, power and load are the whole GPU's; memory is the slice's own.
        Some(DeviceFact {
            slice_of: Some(uuid.clone()),
            driver: whole.driver.clone(),
            utilisation_percent: whole.utilisation_percent,
            temperature_c: whole.temperature_c,
            power_w: whole.power_w,
            ecc_uncorrected: whole.ecc_uncorrected,
            ..slice
        })
    });
    Ok((uuid.clone(), slices.collect()))
}

fn facts(device: &Device<'_>) -> Result<DeviceFact, NvmlError> {
    let memory = device.memory_info()?;
    let uncorrected = (MemoryError::Uncorrected, EccCounter::Volatile);
    Ok(DeviceFact {
        uuid: device.uuid()?,
        name: device.name()?,
        memory_mib: Some(memory.total / MIB),
        memory_used_mib: Some(memory.used / MIB),
        memory_free_mib: Some(memory.free / MIB),
        utilisation_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
        power_w: device.power_usage().ok().map(|milliwatts| milliwatts / 1000),
        ecc_uncorrected: device.total_ecc_errors(uncorrected.0, uncorrected.1).ok(),
        ..DeviceFact::default()
    })
}
