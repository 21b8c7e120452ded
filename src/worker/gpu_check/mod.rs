//! `gpu-check`: does a GPU compute what the CPU computes.
//!
//! In: a GPU (or, to try the check itself, the CPU once more). Out: a table of differences between
//! CPU f32, GPU f32 and GPU bf16 on random models, and whether they are small enough. It needs no
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
use crate::model::Precision;
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
    let start = Instant::now();
    let mut table = Table::new(tell);
    for subject in Subject::all().into_iter().take(if args.tiny { 1 } else { 2 }) {
        let name = subject.name;
        table.heading(&format!("{name}: {} million parameters", subject.millions()));
        let cpu = measure(&subject, Side { device: Device::Cpu, precision: Precision::Float32 })?;
        table.timed("CPU f32", start);
        let same = measure(&subject, Side { device: other, precision: Precision::Float32 })?;
        table.timed("GPU f32", start);
        table.float32(&subject, &cpu, &same)?;
        let half = measure(&subject, Side { device: other, precision: Precision::Bfloat16 })?;
        table.timed("GPU bf16", start);
        table.bfloat16(&cpu, &half);
    }
    Ok(table.verdict())
}

/// The device to hold against the CPU; None where there is no GPU.
fn open(name: &str, threads: Option<usize>) -> Result<Option<Device>, WorkerError> {
    if name == "cpu" {
        return Ok(Some(device::open(name, threads)?.device));
    }
    if !device_node()
        && !matches!(load_cuda_library(), CudaLibrary::Loaded if tch::Cuda::is_available())
    {
        return Ok(None);
    }
    let wanted = if name == "auto" { "cuda:0" } else { name };
    match device::open(wanted, threads)?.device {
        found @ Device::Cuda(_) => Ok(Some(found)),
        _ => Err(DeviceError::Name { name: name.to_owned() }.into()),
    }
}

/// Whether the kernel has a device of NVIDIA's: then a failure is a failure, not an absence.
#[must_use]
pub fn device_node() -> bool {
    std::path::Path::new("/dev/nvidia0").exists()
}
