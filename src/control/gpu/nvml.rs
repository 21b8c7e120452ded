//! GPUs by NVML, the driver's own library. Nothing here links CUDA.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use super::{DeviceFact, GpuProbe, Inventory};

const MIB: u64 = 1 << 20;

/// The driver's library, opened anew at each look: a driver that is reloaded or upgraded under the
/// daemon is then met as it is.
#[derive(Debug, Default)]
pub struct NvmlProbe;

impl GpuProbe for NvmlProbe {
    fn look(&self) -> Inventory {
        match Nvml::init() {
            Ok(nvml) => read(&nvml),
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => Inventory::NoDriver,
            Err(error) => Inventory::DriverFault(error.to_string()),
        }
    }
}

fn read(nvml: &Nvml) -> Inventory {
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => return Inventory::DriverFault(error.to_string()),
    };
    Inventory::Gpus((0..count).map(|index| device(nvml, index)).collect())
}

fn device(nvml: &Nvml, index: u32) -> DeviceFact {
    match facts(nvml, index) {
        Ok(fact) => fact,
        // It counts and does not answer: lost. It stands under its index, for its UUID is not to be
        // had, and is never given work.
        Err(error) => DeviceFact {
            uuid: format!("index-{index}"),
            name: format!("GPU {index}"),
            fault: Some(error.to_string()),
            ..DeviceFact::cpu()
        },
    }
}

fn facts(nvml: &Nvml, index: u32) -> Result<DeviceFact, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let memory = gpu.memory_info()?;
    Ok(DeviceFact {
        uuid: gpu.uuid()?,
        name: gpu.name()?,
        memory_mib: Some(memory.total / MIB),
        memory_free_mib: Some(memory.free / MIB),
        // Some devices do not say; that is no reason not to use them.
        temperature_c: gpu.temperature(TemperatureSensor::Gpu).ok(),
        fault: None,
    })
}
