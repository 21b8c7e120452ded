//! The two small layers that everything else is made of: a linear map and a root-mean-square norm.
//!
//! In: tensors that share memory with the model's named parameters. Out: [`Linear`],
//! which may carry an adapter, and [`RmsNorm`].
//! May not enter: attention, configuration, files.

use tch::Tensor;

use super::adapter::Adapter;
use crate::{in_place, one_pass, product};

/// `y = x·Wᵀ + b`; the weight is `[outputs, inputs]` as Hugging Face stores it.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// Wraps parameters; the tensors share their memory with the caller's.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, adapter: None }
    }

    /// The same map with an adapter beside it, or without one.
    #[must_use]
    pub fn with_adapter(self, adapter: Option<Adapter>) -> Self {
        Self { adapter, ..self }
    }

    /// `[.., inputs]` → `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = match &self.bias {
            None if self.weight.requires_grad() => in_place::linear(x, &self.weight),
            None => product::of_few_rows(x, &self.weight)
                .unwrap_or_else(|| x.linear(&self.weight, None::<&Tensor>)),
            bias => x.linear(&self.weight, bias.as_ref()),
        };
        match &self.adapter {
            Some(adapter) => adapter.added_to(y, x),
            None => y,
        }
    }
}

/// Divides by the root of the mean square, then scales by a weight.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
    size: i64,
}

impl RmsNorm {
    /// Wraps a `[size]` parameter.
    #[must_use]
    pub fn new(weight: Tensor, epsilon: f64) -> Self {
        let size = weight.size().first().copied().unwrap_or(0);
        Self { weight, epsilon, size }
    }

    /// Over the last dimension; the mean square is taken in f32 whatever the type of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        one_pass::norm(x, &self.weight, self.epsilon)
            .unwrap_or_else(|| x.rms_norm([self.size], Some(&self.weight), self.epsilon))
    }
}
