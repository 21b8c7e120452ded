// What tch lacks to train without moving the weights' size through memory more often than needed. Maps whose
// weight's gradient is added where it already lies: libtorch's own backward pass writes each micro-batch's
// gradient into fresh memory and then adds it up. And libtorch's fused AdamW, which reads and writes every
// element once.
// Comes in: tensors of tch. Goes out: a new tensor, or null and a message that the caller frees. May not
// enter: what is learnt, what is added up over micro-batches.

#include <cstring>

#include <ATen/ops/_fused_adamw.h>
#include <torch/csrc/autograd/custom_function.h>

#include "gradient.h"

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &x, const at::Tensor &weight) {
    context->save_for_backward({x, weight});
    return at::linear(x, weight);
  }

  static variable_list backward(AutogradContext *context, variable_list slopes) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const auto slope = slopes[0].reshape({-1, weight.size(0)});
    if (weight.requires_grad()) {
      gradient_of(weight).addmm_(slope.t(), x.detach().reshape({-1, weight.size(1)}));
    }
    at::Tensor towards_x;
    if (context->needs_input_grad(0)) towards_x = slope.mm(weight.detach()).view(x.sizes());
    return {towards_x, at::Tensor()};
  }
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &weight, const at::Tensor &ids,
                            int64_t pad) {
    context->save_for_backward({weight, ids});
    context->saved_data["pad"] = pad;
    return at::embedding(weight, ids);
  }

  static variable_list backward(AutogradContext *context, variable_list slopes) {
    const auto saved = context->get_saved_variables();
    const auto &weight = saved[0], &ids = saved[1];
    const auto pad = context->saved_data["pad"].toInt();
    const auto flat = ids.reshape({-1});
    const auto kept = slopes[0].reshape({-1, weight.size(1)}).masked_fill(flat.eq(pad).unsqueeze(1), 0.0);
    gradient_of(weight).index_add_(0, flat, kept);
    return {at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

template <typename Make> at::Tensor *made(char **problem, const Make &make) {
  try {
    return new at::Tensor(make());
  } catch (const std::exception &error) {
    *problem = strdup(error.what());
    return nullptr;
  }
}
} // namespace

extern "C" at::Tensor *rlhfd_linear(const at::Tensor *x, const at::Tensor *weight, char **problem) {
  return made(problem, [&] { return Linear::apply(*x, *weight); });
}

extern "C" at::Tensor *rlhfd_embedding(const at::Tensor *weight, const at::Tensor *ids, int64_t pad,
                                       char **problem) {
  return made(problem, [&] { return Embedding::apply(*weight, *ids, pad); });
}

// One step of AdamW over `count` tensors of one device: f32, each with its gradient and moments of its shape.
// `scale`: what gradients are divided by, or 0. False, with a message, where libtorch refuses.
extern "C" bool rlhfd_adamw(const at::Tensor *const *masters, const at::Tensor *const *gradients,
                            const at::Tensor *const *firsts, const at::Tensor *const *seconds, size_t count,
                            const double (&constants)[5], double step, double scale, char **problem) {
  try {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> lists[4];
    for (size_t i = 0; i < count; ++i) {
      // Detached: a leaf that learns may not be written to in place.
      lists[0].push_back(masters[i]->detach());
      lists[1].push_back(gradients[i]->detach());
      lists[2].push_back(firsts[i]->detach());
      lists[3].push_back(seconds[i]->detach());
    }
    if (count == 0) return true;
    const auto like = lists[0][0].options().dtype(at::kFloat);
    const std::vector<at::Tensor> steps(count, at::full({}, step, like));
    std::optional<at::Tensor> scaled;
    if (scale != 0.0) scaled = at::full({}, scale, like);
    const auto [rate, beta1, beta2, decay, epsilon] = constants;
    at::_fused_adamw_(lists[0], lists[1], lists[2], lists[3], {}, steps, rate, beta1, beta2, decay, epsilon,
                      /*amsgrad=*/false, /*maximize=*/false, scaled);
    return true;
  } catch (const std::exception &error) {
    *problem = strdup(error.what());
    return false;
  }
}
