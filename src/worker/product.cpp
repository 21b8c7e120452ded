// x·Wᵀ in f32 on a CPU by the kernel of `dot.cpp`.
// Comes in: tensors of tch. Goes out: a new tensor; null where the kernel does not suit them; null and a
// message that the caller frees. May not enter: what learns.

#include <cstring>

#include <ATen/ops/empty.h>

#include "parallel.h"
#include "processor.h"

extern "C" {
typedef void Dot(const float *x, const float *weight, float *y, int64_t rows, int64_t inner, int64_t outputs,
                 int64_t start, int64_t end);
#if defined(__x86_64__)
Dot rlhfd_dot_avx2, rlhfd_dot_avx512;
#endif
}

namespace {
// Numbers that one thread computes at least: a smaller product is done before another thread wakes.
constexpr int64_t LEAST = 1 << 16;

// The fastest kernel that this processor has; null: none.
Dot *kernel() {
#if defined(__x86_64__)
  static Dot *const fastest = processor() == Processor::Avx512 ? rlhfd_dot_avx512
                              : processor() == Processor::Avx2 ? rlhfd_dot_avx2
                                                               : nullptr;
  return fastest;
#else
  return nullptr;
#endif
}

bool suits(const at::Tensor &x, const at::Tensor &weight) {
  const auto plain = [](const at::Tensor &tensor) {
    return tensor.scalar_type() == at::kFloat && tensor.is_cpu() && !tensor.requires_grad();
  };
  return kernel() != nullptr && plain(x) && plain(weight) && weight.is_contiguous() && weight.dim() == 2 &&
         x.dim() > 0 && x.size(-1) == weight.size(1) && x.numel() > 0;
}

at::Tensor product(const at::Tensor &given, const at::Tensor &weight) {
  const auto x = given.contiguous();
  const int64_t inner = weight.size(1), outputs = weight.size(0), rows = x.numel() / inner;
  auto shape = x.sizes().vec();
  shape.back() = outputs;
  auto y = at::empty(shape, x.options());
  const auto *from = x.const_data_ptr<float>(), *by = weight.const_data_ptr<float>();
  auto *to = y.mutable_data_ptr<float>();
  in_parallel(outputs, std::max<int64_t>(LEAST / (rows * inner), 1), [&](int64_t start, int64_t end) {
    kernel()(from, by, to, rows, inner, outputs, start, end);
  });
  return y;
}
} // namespace

extern "C" at::Tensor *rlhfd_product(const at::Tensor *x, const at::Tensor *weight, char **problem) {
  try {
    return suits(*x, *weight) ? new at::Tensor(product(*x, *weight)) : nullptr;
  } catch (const std::exception &error) {
    *problem = strdup(error.what());
    return nullptr;
  }
}
