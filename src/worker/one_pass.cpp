// The root-mean-square norm, the gated MLP's product, the rotation of heads and the attention of a decoding step,
// in f32 on a CPU: each one pass over memory forward and, where it has one, one backward, where libtorch's own make one for each addition and multiplication.
// The passes stand in `rows.cpp`.
// Comes in: tensors of tch. Goes out: a new tensor; null where the type or device is another; null and a message
// that the caller frees. May not enter: products of matrices, losses.

#include <cmath>
#include <cstring>

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "gradient.h"
#include "parallel.h"
#include "processor.h"
#include "rows.h"

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Numbers that one thread computes at least: fewer are done before another thread wakes.
constexpr int64_t LEAST = 1 << 14;

// The passes for the processor that this is.
struct Passes {
  decltype(&rlhfd_norm_plain) norm;
  decltype(&rlhfd_norm_back_plain) norm_back;
  decltype(&rlhfd_gated_plain) gated;
  decltype(&rlhfd_gated_back_plain) gated_back;
  decltype(&rlhfd_rotated_plain) rotated;
  decltype(&rlhfd_attended_plain) attended;
};

#define PASSES(kind)                                                                                                 \
  {rlhfd_norm_##kind,       rlhfd_norm_back_##kind, rlhfd_gated_##kind,                                              \
   rlhfd_gated_back_##kind, rlhfd_rotated_##kind,   rlhfd_attended_##kind}

const Passes &passes() {
  static const Passes fastest = []() -> Passes {
#if defined(__x86_64__)
    if (processor() == Processor::Avx512) return PASSES(avx512);
    if (processor() == Processor::Avx2) return PASSES(avx2);
#endif
    return PASSES(plain);
  }();
  return fastest;
}

// `pass` over pieces of `numbers` numbers each.
template <typename Rows>
void run(void (*pass)(const Rows &, int64_t, int64_t), const Rows &rows, int64_t pieces, int64_t numbers) {
  const int64_t least = std::max<int64_t>(LEAST / std::max<int64_t>(numbers, 1), 1);
  in_parallel(pieces, least, [&](int64_t first, int64_t end) { pass(rows, first, end); });
}

// Rows of `x`, of which each lies in one piece: a view where `x` has them so, else a copy.
at::Tensor rows_of(const at::Tensor &x, int64_t width) {
  auto rows = x.reshape({-1, width});
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

struct Norm : torch::autograd::Function<Norm> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &given, const at::Tensor &weight,
                            double epsilon) {
    const auto x = given.contiguous();
    const int64_t width = weight.size(0), rows = x.numel() / width;
    auto y = at::empty_like(x);
    auto r = at::empty({rows}, x.options());
    const NormRows pass{x.const_data_ptr<float>(),     weight.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
                        r.mutable_data_ptr<float>(), width,                          static_cast<float>(epsilon)};
    run(passes().norm, pass, rows, width);
    context->save_for_backward({x, weight, r});
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list slopes) {
    const auto saved = context->get_saved_variables();
    const auto x = saved[0].detach(), r = saved[2];
    const auto &weight = saved[1];
    const auto slope = slopes[0].contiguous();
    const int64_t width = weight.size(0), rows = x.numel() / width, bands = (rows + BAND - 1) / BAND;
    auto towards_x = at::empty_like(x);
    auto sums = at::empty({bands, width}, x.options());
    const NormBack pass{x.const_data_ptr<float>(),       weight.const_data_ptr<float>(), r.const_data_ptr<float>(),
                        slope.const_data_ptr<float>(),   towards_x.mutable_data_ptr<float>(),
                        sums.mutable_data_ptr<float>(), rows,                           width};
    run(passes().norm_back, pass, bands, BAND * width);
    if (weight.requires_grad()) gradient_of(weight).add_(sums.sum(0));
    return {towards_x, at::Tensor(), at::Tensor()};
  }
};

struct Gated : torch::autograd::Function<Gated> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &gate, const at::Tensor &up) {
    const int64_t width = gate.size(-1), rows = gate.numel() / std::max<int64_t>(width, 1);
    auto gates = rows_of(gate, width), ups = rows_of(up, width);
    if (gates.stride(0) != ups.stride(0)) gates = gates.contiguous(), ups = ups.contiguous();
    auto y = at::empty(gate.sizes(), gate.options());
    const GatedRows pass{gates.const_data_ptr<float>(), ups.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
                         width, gates.stride(0)};
    run(passes().gated, pass, rows, width);
    context->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list slopes) {
    const auto saved = context->get_saved_variables();
    const auto gate = saved[0].detach().contiguous(), up = saved[1].detach().contiguous();
    const auto slope = slopes[0].contiguous();
    const int64_t width = gate.size(-1), rows = gate.numel() / std::max<int64_t>(width, 1);
    auto towards_gate = at::empty_like(gate), towards_up = at::empty_like(up);
    const GatedBack pass{gate.const_data_ptr<float>(),           up.const_data_ptr<float>(),
                         slope.const_data_ptr<float>(),          towards_gate.mutable_data_ptr<float>(),
                         towards_up.mutable_data_ptr<float>(), width};
    run(passes().gated_back, pass, rows, width);
    return {towards_gate, towards_up};
  }
};

// `x`: [rows, tokens, heads, size].
at::Tensor turned(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin, float sign) {
  const int64_t heads = x.size(2), size = x.size(3), rows = x.size(0) * x.size(1);
  auto flat = x.flatten(0, 1);
  if (flat.stride(2) != 1 || flat.stride(1) != size) flat = flat.contiguous();
  auto y = at::empty(x.sizes(), x.options());
  const RotatedRows pass{flat.const_data_ptr<float>(), cos.const_data_ptr<float>(), sin.const_data_ptr<float>(),
                         y.mutable_data_ptr<float>(),  heads,                       size,
                         flat.stride(0),               cos.numel() / size,          sign};
  run(passes().rotated, pass, rows, heads * size);
  return y;
}

struct Rotated : torch::autograd::Function<Rotated> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &x, const at::Tensor &cos,
                            const at::Tensor &sin) {
    const auto own_cos = cos.contiguous(), own_sin = sin.contiguous();
    context->save_for_backward({own_cos, own_sin});
    return turned(x, own_cos, own_sin, 1.0f);
  }

  static variable_list backward(AutogradContext *context, variable_list slopes) {
    const auto saved = context->get_saved_variables();
    return {turned(slopes[0], saved[0], saved[1], -1.0f), at::Tensor(), at::Tensor()};
  }
};

// `query`: [rows, heads, group, size]; `key` and `value`: [rows, heads, columns, size], of one layout; `mask`: 0 and
// −∞ by row and column, the −∞ first.
at::Tensor attended(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value,
                    const std::optional<at::Tensor> &mask) {
  const auto queries = query.contiguous();
  const int64_t heads = key.size(1), group = query.size(2), size = query.size(3), columns = key.size(2);
  auto y = at::empty(query.sizes(), query.options());
  auto weights = at::empty({query.size(0) * heads, group * columns}, query.options());
  const AttendedRows pass{queries.const_data_ptr<float>(),
                          key.const_data_ptr<float>(),
                          value.const_data_ptr<float>(),
                          mask ? mask->const_data_ptr<float>() : nullptr,
                          y.mutable_data_ptr<float>(),
                          weights.mutable_data_ptr<float>(),
                          heads,
                          group,
                          size,
                          columns,
                          key.stride(0),
                          key.stride(1),
                          mask ? mask->stride(0) : 0,
                          1.0f / std::sqrt(static_cast<float>(size))};
  run(passes().attended, pass, query.size(0) * heads, 2 * group * columns * size);
  return y;
}

bool suits(std::initializer_list<const at::Tensor *> tensors) {
  for (const auto *tensor : tensors) {
    if (tensor->scalar_type() != at::kFloat || !tensor->is_cpu() || tensor->numel() == 0) return false;
  }
  return true;
}

template <typename Make>
at::Tensor *made(std::initializer_list<const at::Tensor *> of, char **problem, const Make &make) {
  try {
    return suits(of) ? new at::Tensor(make()) : nullptr;
  } catch (const std::exception &error) {
    *problem = strdup(error.what());
    return nullptr;
  }
}
} // namespace

extern "C" {
at::Tensor *rlhfd_norm(const at::Tensor *x, const at::Tensor *weight, double epsilon, char **problem) {
  return made({x, weight}, problem, [&] {
    TORCH_CHECK(x->size(-1) == weight->size(0), "a norm of ", weight->size(0), " numbers over rows of ", x->size(-1));
    return Norm::apply(*x, *weight, epsilon);
  });
}

at::Tensor *rlhfd_gated(const at::Tensor *gate, const at::Tensor *up, char **problem) {
  return made({gate, up}, problem, [&] {
    TORCH_CHECK(gate->sizes() == up->sizes(), "a gate of ", gate->sizes(), " over ", up->sizes());
    return Gated::apply(*gate, *up);
  });
}

at::Tensor *rlhfd_rotated(const at::Tensor *x, const at::Tensor *cos, const at::Tensor *sin, char **problem) {
  return made({x, cos, sin}, problem, [&] {
    const int64_t size = x->size(-1), rows = x->size(0) * x->size(1), positions = cos->numel() / size;
    TORCH_CHECK(cos->sizes() == sin->sizes() && cos->size(-1) == size && rows % positions == 0, "angles of ",
                cos->sizes(), " and ", sin->sizes(), " for heads of ", x->sizes());
    return Rotated::apply(*x, *cos, *sin);
  });
}

at::Tensor *rlhfd_attended(const at::Tensor *query, const at::Tensor *key, const at::Tensor *value,
                           const at::Tensor *mask, char **problem) {
  return made({query, key, value}, problem, [&] {
    TORCH_CHECK(key->sizes() == value->sizes() && key->strides() == value->strides() && key->stride(3) == 1 &&
                    key->stride(2) == key->size(3) && key->size(0) == query->size(0) && key->size(1) == query->size(1) &&
                    key->size(3) == query->size(3),
                "keys ", key->sizes(), " and values ", value->sizes(), " for queries ", query->sizes());
    std::optional<at::Tensor> own;
    if (mask != nullptr) {
      TORCH_CHECK(mask->size(0) == key->size(0) && mask->size(-1) == key->size(2) && mask->stride(-1) == 1, "a mask ",
                  mask->sizes(), " for keys ", key->sizes());
      own = *mask;
    }
    return attended(*query, *key, *value, own);
  });
}
}
