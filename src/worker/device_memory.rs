//! What this process holds of its GPUs' memory, from libtorch's allocator.
//!
//! In: devices. Out: MiB, now and at most; none on the CPU. The calls stand in `device_memory.cpp`. May
//! not enter: tensors, what others hold.

use tch::Device;

use crate::model::Devices;

/// Beside the allocator's segments: the context and the libraries' kernels. Measured: 752 MiB with libtorch
/// 2.11 on an H200, driver 580.
const CONTEXT_MIB: u64 = 750;

unsafe extern "C" {
    fn rlhfd_device_memory(device: i8, now: *mut i64, peak: *mut i64) -> bool;
    fn rlhfd_device_memory_reset_peak(device: i8);
    fn rlhfd_device_memory_release();
}

/// Memory of a GPU that this process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Now, with what the allocator keeps for later.
    now_mib: u64,
    /// In tensors at most, since [`reset_peak`].
    peak_mib: u64,
}

/// What is held of `device`; none on the CPU.
fn held(device: Device) -> Option<Held> {
    let (mut now, mut peak) = (0, 0);
    let index = index(device)?;
    // SAFETY: both pointers are to live integers, and the function takes any index.
    let is_known = unsafe { rlhfd_device_memory(index, &raw mut now, &raw mut peak) };
    let mib = |bytes: i64| CONTEXT_MIB + (bytes.max(0).cast_unsigned() >> 20);
    is_known.then(|| Held { now_mib: mib(now), peak_mib: mib(peak) })
}

/// What is held of each device now, in their order; empty on the CPU.
#[must_use]
pub fn now_mib(devices: &Devices) -> Vec<u64> {
    devices.all().iter().filter_map(|device| held(*device)).map(|held| held.now_mib).collect()
}

/// What was held of all devices together at most, each at its own time; none on the CPU.
#[must_use]
pub fn peak_mib(devices: &Devices) -> Option<u64> {
    devices.all().iter().map(|device| held(*device).map(|held| held.peak_mib)).sum()
}

/// The peaks are counted from now on.
pub fn reset_peak(devices: &Devices) {
    for index in devices.all().iter().filter_map(|device| index(*device)) {
        // SAFETY: the function takes any index.
        unsafe { rlhfd_device_memory_reset_peak(index) }
    }
}

/// Gives segments that hold nothing back to the devices.
pub fn release(devices: &Devices) {
    if index(devices.first()).is_some() {
        // SAFETY: the function may be called at any time.
        unsafe { rlhfd_device_memory_release() }
    }
}

fn index(device: Device) -> Option<i8> {
    match device {
        Device::Cuda(index) => i8::try_from(index).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_cpu_nothing_is_held_of_a_gpu_and_the_cpus_libtorch_says_so_too() {
        assert!(now_mib(&Devices::one(Device::Cpu)).is_empty());
        assert_eq!(peak_mib(&Devices::one(Device::Cpu)), None);
        if !tch::Cuda::is_available() {
            let gpus = Devices::several(&[Device::Cuda(0), Device::Cuda(1)], &[]).unwrap();
            assert_eq!((now_mib(&gpus), peak_mib(&gpus)), (Vec::new(), None));
            reset_peak(&gpus);
            release(&gpus);
        }
    }
}
