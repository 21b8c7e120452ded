//! `gpu-check`: does a GPU compute what the CPU computes.
//!
//! In: a GPU (or, to try the check itself, the CPU once more). Out: a table of differences between
//! CPU f32, GPU f32, f32 with a model's blocks on two devices (two GPUs, else the GPU and the CPU) and GPU
//! bf16 on random models, and whether they are small enough. It needs no
//! file, network or database. May not enter: model folders, the protocol.
//!
//! ```text
//! models (weights, ids, pairs) → measure (one side: logits, log-probs, greedy, trainings) → compare
//! ```

mod compare;
mod measure;
mod models;

use std::time::Instant;

use clap::Args;
use tch::Device;

use crate::device::{self, CudaLibrary, load_cuda_library};
use crate::errors::{DeviceError, WorkerError};
use crate::model::placement::moves;
use crate::model::{Devices, Precision};
use compare::Table;
use measure::{Side, measure};
use models::Subject;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every difference is within its bound.
    Good,
    /// At least one is not.
    Bad,
    /// There is no GPU: nothing was checked.
    NoGpu,
}

/// What the check takes.
#[derive(Debug, Clone, Args)]
pub struct GpuCheckArgs {
    /// The device to check: auto, cuda:N, or cpu (tries the check itself)
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Only the tiny model
    #[arg(long)]
    pub tiny: bool,
    /// Threads on CPU; all cores by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Runs the check, telling each line as it is known.
///
/// # Errors
/// A GPU that is there but cannot be used; libtorch's own errors.
pub fn run(args: &GpuCheckArgs, tell: &mut dyn FnMut(&str)) -> Result<Verdict, WorkerError> {
    let Some(other) = open(&args.device, args.threads)? else {
        tell("no GPU: nothing was checked");
        return Ok(Verdict::NoGpu);
    };
    let two = beside(other).ok_or_else(|| DeviceError::Name { name: args.device.clone() })?;
    let start = Instant::now();
    let mut table = Table::new(tell);
    for subject in Subject::all().into_iter().take(if args.tiny { 1 } else { 2 }) {
        let name = subject.name;
        table.heading(&format!("{name}: {} million parameters", subject.millions()));
        let on = |devices, precision| measure(&subject, Side { devices, precision });
        let cpu = on(Devices::one(Device::Cpu), Precision::Float32)?;
        table.timed("CPU f32", start);
        let same = on(Devices::one(other), Precision::Float32)?;
        table.timed("GPU f32", start);
        table.float32(&subject, &cpu, &same)?;
        let before = moves();
        let split = on(two, Precision::Float32)?;
        table.timed(&format!("f32 with half of the blocks on each of {two}"), start);
        table.split(moves() - before);
        table.float32(&subject, &cpu, &split)?;
        let half = on(Devices::one(other), Precision::Bfloat16)?;
        table.timed("GPU bf16", start);
        table.bfloat16(&cpu, &half);
    }
    Ok(table.verdict())
}

/// The device to hold against the CPU; None where there is no GPU.
fn open(name: &str, threads: Option<usize>) -> Result<Option<Device>, WorkerError> {
    if name == "cpu" {
        return Ok(Some(device::open(name, &[], threads)?.devices.first()));
    }
    if !device_node()
        && !matches!(load_cuda_library(), CudaLibrary::Loaded if tch::Cuda::is_available())
    {
        return Ok(None);
    }
    let wanted = if name == "auto" { "cuda:0" } else { name };
    match device::open(wanted, &[], threads)?.devices.first() {
        found @ Device::Cuda(_) => Ok(Some(found)),
        _ => Err(DeviceError::Name { name: name.to_owned() }.into()),
    }
}

/// A device and a second one: another GPU where there is one, else the CPU.
fn beside(device: Device) -> Option<Devices> {
    let second = match device {
        Device::Cuda(0) if tch::Cuda::device_count() > 1 => Device::Cuda(1),
        _ => Device::Cpu,
    };
    Devices::several(&[device, second], &[])
}

/// Whether the kernel has a device of NVIDIA's: then a failure is a failure, not an absence.
#[must_use]
pub fn device_node() -> bool {
    std::path::Path::new("/dev/nvidia0").exists()
}
