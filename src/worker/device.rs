//! Which device computes, and how many threads it may use.
//!
//! In: `auto`, `cpu`, `cuda` or `cuda:N`. Out: a device that was tried, with the precision that suits
//! it. CUDA's library must be loaded by hand before the first question about CUDA: a linker that drops
//! unneeded libraries never links it, and after an early question libtorch stays without it for good.
//! May not enter: models.

use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device, Kind, Tensor};

use crate::errors::{DeviceError, first_line};
use crate::libtorch_switches::without_cudnn_attention;
use crate::model::{Devices, Precision};

/// Whether libtorch_cuda was loaded, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaLibrary {
    /// It is in the process.
    Loaded,
    /// libtorch is the CPU-only one.
    Absent,
    /// It is there but does not load.
    Failed(String),
}

/// Loads libtorch_cuda once a process, from where libtorch_cpu was loaded.
pub fn load_cuda_library() -> &'static CudaLibrary {
    static LIBRARY: OnceLock<CudaLibrary> = OnceLock::new();
    LIBRARY.get_or_init(try_load)
}

fn try_load() -> CudaLibrary {
    let Some(path) = libtorch_dir().map(|dir| dir.join("libtorch_cuda.so")) else {
        return CudaLibrary::Absent;
    };
    if !path.is_file() {
        return CudaLibrary::Absent;
    }
    // SAFETY: the library is libtorch's own, from the folder that the process already runs
    // libtorch_cpu from; its initialisers are those that a linked libtorch_cuda would run.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // Never unloaded: libtorch keeps pointers into it.
            std::mem::forget(library);
            CudaLibrary::Loaded
        }
        Err(error) => CudaLibrary::Failed(first_line(&error.to_string())),
    }
}

/// The folder that libtorch_cpu.so was loaded from, by the process's own map.
#[must_use]
pub fn libtorch_dir() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let path = PathBuf::from(&line[line.find('/')?..]);
    path.parent().map(PathBuf::from)
}

/// Devices, tried, and the precision that suits them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// libtorch's devices: one, or those that a model's blocks are spread over.
    pub devices: Devices,
    /// f32 on CPU, bf16 on GPU.
    pub precision: Precision,
}

/// Opens devices by name (several with commas between, for one model spread over them) and sets the number
/// of threads. `rooms_mib`: the room of each; where one name has several rooms, so many devices of its kind
/// are opened.
///
/// Errors: `Name` for a word that is no device; `Cuda` where it is asked for and cannot be used. With
/// `auto` a GPU that is there but cannot be used is an error too, never a silent run on CPU.
pub fn open(name: &str, rooms_mib: &[u64], threads: Option<usize>) -> Result<Compute, DeviceError> {
    if let Some(threads) = threads {
        tch::set_num_threads(threads.clamp(1, 1024) as i32);
    }
    let no_device = || DeviceError::Name { name: name.to_owned() };
    let mut names: Vec<String> = name.split(',').map(|name| name.trim().to_owned()).collect();
    if let ([only], 2..) = (names.as_slice(), rooms_mib.len()) {
        let numbered = |place: usize| match only.as_str() {
            "cuda" => format!("cuda:{place}"),
            other => other.to_owned(),
        };
        names = (0..rooms_mib.len()).map(numbered).collect();
    }
    let devices = names.iter().map(|name| open_one(name)).collect::<Result<Vec<_>, _>>()?;
    let on_gpus = devices.iter().filter(|device| matches!(device, Device::Cuda(_))).count();
    if on_gpus != 0 && on_gpus != devices.len() {
        return Err(no_device());
    }
    let precision = if on_gpus == 0 { Precision::Float32 } else { Precision::Bfloat16 };
    let devices = Devices::several(&devices, rooms_mib).ok_or_else(no_device)?;
    Ok(Compute { devices, precision })
}

fn open_one(name: &str) -> Result<Device, DeviceError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if has_nvidia_driver() => open_cuda(0, name),
        "auto" => Ok(Device::Cpu),
        "cuda" => open_cuda(0, name),
        other => {
            let index = other.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok());
            let index = index.ok_or_else(|| DeviceError::Name { name: name.to_owned() })?;
            open_cuda(index, name)
        }
    }
}

fn has_nvidia_driver() -> bool {
    std::path::Path::new("/proc/driver/nvidia/version").exists()
}

fn open_cuda(index: usize, name: &str) -> Result<Device, DeviceError> {
    let wrong = |problem: String, mend| DeviceError::Cuda { name: name.to_owned(), problem, mend };
    match load_cuda_library() {
        CudaLibrary::Loaded => without_cudnn_attention(),
        CudaLibrary::Absent => {
            return Err(wrong(
                "this libtorch is the one for CPU".to_owned(),
                "`rlhfd-fetch-libtorch --cuda` (in the source folder `make setup CUDA=1`) fetches the one for CUDA, or use --device cpu",
            ));
        }
        CudaLibrary::Failed(problem) => {
            return Err(wrong(
                format!("libtorch_cuda does not load ({problem})"),
                "fetch libtorch again, or use --device cpu",
            ));
        }
    }
    if !has_nvidia_driver() {
        return Err(wrong("there is no NVIDIA driver".to_owned(), "use --device cpu"));
    }
    let count = Cuda::device_count();
    if index as i64 >= count {
        return Err(wrong(
            format!("libtorch sees {count} GPUs"),
            "`rlhfd-worker doctor` tells whether the driver is new enough; or name another GPU",
        ));
    }
    let device = Device::Cuda(index);
    let tried = Tensor::f_ones([8, 8], (Kind::Float, device)).and_then(|ones| ones.f_mm(&ones));
    match tried {
        Ok(_) => Ok(device),
        Err(error) => Err(wrong(
            first_line(&error.to_string()),
            "`rlhfd-worker doctor` tells whether the driver is new enough",
        )),
    }
}

/// Resident memory of this process in MiB, from the kernel.
#[must_use]
pub fn resident_mib() -> u64 {
    status_mib("VmRSS:")
}

/// The most resident memory that this process had, in MiB.
#[must_use]
pub fn peak_mib() -> u64 {
    status_mib("VmHWM:")
}

fn status_mib(key: &str) -> u64 {
    kernel_mib("/proc/self/status", key).unwrap_or(0)
}

/// A figure that the kernel states in kB, in MiB.
fn kernel_mib(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// Whether `bytes` more can be had of the host's memory. Asked before large blocks are taken: the
/// kernel grants more than there is, and kills the process when it is used.
///
/// Errors: the words of the shortage.
pub fn check_host_memory(what: &str, bytes: u64) -> Result<(), String> {
    let needed = bytes >> 20;
    match kernel_mib("/proc/meminfo", "MemAvailable:") {
        Some(free) if needed > free => {
            Err(format!("{what} need {needed} MiB, and {free} MiB are free"))
        }
        _ => Ok(()),
    }
}

/// The same compute in a type that the user asks for.
///
/// Errors: `Precision` for bf16 on a CPU without instructions for it, where it would be slower and
/// coarser than f32.
pub fn with_precision(compute: Compute, asked: Precision) -> Result<Compute, DeviceError> {
    let on_cpu = compute.devices.first() == Device::Cpu;
    if on_cpu && asked == Precision::Bfloat16 && !cpu_has_bf16() {
        return Err(DeviceError::Precision);
    }
    Ok(Compute { precision: asked, ..compute })
}

fn cpu_has_bf16() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // x86 and aarch64 have different words for the line and for the instructions.
    let flags = info.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    flags.is_some_and(|flags| {
        flags.split_whitespace().any(|flag| ["amx_bf16", "avx512_bf16", "bf16"].contains(&flag))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_none_or_not_there_is_told() {
        assert!(matches!(open("gpu", &[], None), Err(DeviceError::Name { .. })));
        assert!(matches!(open("cuda:x", &[], None), Err(DeviceError::Name { .. })));
        if !has_nvidia_driver() {
            let error = open("cuda:0", &[], None).unwrap_err().to_string();
            assert!(error.contains("--device cpu"), "{error}");
            assert_eq!(open("auto", &[], None).unwrap().devices.first(), Device::Cpu);
        }
    }

    #[test]
    fn several_devices_are_named_or_counted_by_their_rooms_and_are_of_one_kind() {
        let all = |name, rooms: &[u64]| open(name, rooms, None).map(|c| c.devices.all().to_vec());
        assert_eq!(all("cpu,cpu", &[]).unwrap(), [Device::Cpu; 2]);
        assert_eq!(all("cpu", &[7, 9, 11]).unwrap(), [Device::Cpu; 3]);
        assert_eq!(all("cpu", &[7]).unwrap(), [Device::Cpu]);
        assert!(matches!(all("cpu", &[1; 9]), Err(DeviceError::Name { .. })));
        assert!(all("cpu,", &[]).is_err());
    }

    #[test]
    fn memory_that_is_not_there_is_told_before_it_is_taken() {
        assert_eq!(check_host_memory("a few bytes", 4096), Ok(()));
        let error = check_host_memory("keys", u64::MAX).unwrap_err();
        assert!(error.contains("keys need") && error.contains("are free"), "{error}");
    }

    #[test]
    fn bf16_on_a_cpu_is_had_exactly_where_its_instructions_are() {
        let compute = Compute { devices: Devices::one(Device::Cpu), precision: Precision::Float32 };
        assert!(with_precision(compute, Precision::Float32).is_ok());
        assert_eq!(with_precision(compute, Precision::Bfloat16).is_ok(), cpu_has_bf16());
    }

    #[test]
    fn the_process_knows_where_its_libtorch_lies() {
        assert!(libtorch_dir().unwrap().join("libtorch_cpu.so").is_file());
    }
}
