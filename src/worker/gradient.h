// Where a leaf's gradient is added up.

#pragma once
#include <ATen/ops/zeros_like.h>

// Made of zeros where there is none yet: the first sum then has the bits of any other.
inline at::Tensor &gradient_of(const at::Tensor &leaf) {
  auto &gradient = leaf.mutable_grad();
  if (!gradient.defined()) gradient = at::zeros_like(leaf.detach());
  return gradient;
}
