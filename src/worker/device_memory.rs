//! What this process holds of its GPU's memory, from libtorch's allocator.
//!
//! In: a device. Out: MiB, now and at most; none on the CPU. The calls stand in `device_memory.cpp`. May
//! not enter: tensors, what others hold.

use tch::Device;

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
pub struct Held {
    /// Now, with what the allocator keeps for later.
    pub now_mib: u64,
    /// In tensors at most, since [`reset_peak`].
    pub peak_mib: u64,
}

/// What is held of `device`; none on the CPU.
#[must_use]
pub fn held(device: Device) -> Option<Held> {
    let (mut now, mut peak) = (0, 0);
    let index = index(device)?;
    // SAFETY: both pointers are to live integers, and the function takes any index.
    let is_known = unsafe { rlhfd_device_memory(index, &raw mut now, &raw mut peak) };
    let mib = |bytes: i64| CONTEXT_MIB + (bytes.max(0).cast_unsigned() >> 20);
    is_known.then(|| Held { now_mib: mib(now), peak_mib: mib(peak) })
}

/// The peak is counted from now on.
pub fn reset_peak(device: Device) {
    if let Some(index) = index(device) {
        // SAFETY: the function takes any index.
        unsafe { rlhfd_device_memory_reset_peak(index) }
    }
}

/// Gives segments that hold nothing back to the device.
pub fn release(device: Device) {
    if index(device).is_some() {
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
        assert_eq!(held(Device::Cpu), None);
        if !tch::Cuda::is_available() {
            assert_eq!(held(Device::Cuda(0)), None);
            reset_peak(Device::Cuda(0));
            release(Device::Cuda(0));
        }
    }
}
