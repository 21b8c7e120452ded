//! The two small layers that everything else is made of: a linear map and a root-mean-square norm.
//!
//! In: tensors that share memory with the model's named parameters. Out: [`Linear`], [`RmsNorm`].
//! May not enter: attention, configuration, files.

use tch::Tensor;

/// `y = x·Wᵀ + b`; the weight is `[outputs, inputs]` as Hugging Face stores it.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Wraps parameters; the tensors share their memory with the caller's.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `[.., inputs]` → `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
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
        x.rms_norm([self.size], Some(&self.weight), self.epsilon)
    }
}
