// What this process holds of a GPU's memory, asked of libtorch's own allocator: tch has no call for it.
// Comes in: a device's index. Goes out: bytes in the segments that it took from the device, and at most in
// tensors since the last reset (segments are kept when tensors go, so that their peak says little of what
// was needed); false where no GPU's allocator is there. Only c10's headers: one source for the libtorch of
// CPU and of CUDA.

#include <cstdint>

#include <c10/core/CachingDeviceAllocator.h>

namespace {
c10::DeviceAllocator *gpu_allocator() {
  // It throws where none is registered, as in the libtorch for CPU.
  auto *allocator = dynamic_cast<c10::DeviceAllocator *>(c10::GetAllocator(c10::DeviceType::CUDA));
  return allocator && allocator->initialized() ? allocator : nullptr;
}
} // namespace

extern "C" bool rlhfd_device_memory(int8_t device, int64_t *now, int64_t *peak) noexcept {
  try {
    auto *allocator = gpu_allocator();
    if (!allocator) return false;
    const auto stats = allocator->getDeviceStats(device);
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *now = stats.reserved_bytes[all].current;
    *peak = stats.allocated_bytes[all].peak;
    return true;
  } catch (...) {
    return false;
  }
}

extern "C" void rlhfd_device_memory_reset_peak(int8_t device) noexcept {
  try {
    if (auto *allocator = gpu_allocator()) allocator->resetPeakStats(device);
  } catch (...) {
  }
}

extern "C" void rlhfd_device_memory_release() noexcept {
  try {
    if (auto *allocator = gpu_allocator()) allocator->emptyCache();
  } catch (...) {
  }
}
