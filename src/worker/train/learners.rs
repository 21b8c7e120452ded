//! What learns: each trainable tensor with its f32 master, its gradient and its moments.
//!
//! In: a model whose trainable parameters carry gradients. Out: one optimiser step at a time, and
//! the tensors that a checkpoint or a saved state needs. Where the model computes in f32 the
//! parameter is its own master; where it computes in bf16, gradients add up in f32 and the
//! parameter is a copy of its master (at a rate of 5e-7 a step is far below bf16's resolution).
//! All of a learner lies on its parameter's device. May not enter: losses, data, files.

use tch::{Kind, Tensor};

use super::adamw::{AdamConfig, Moments, Update, clip_factor, decays};
use crate::model::Transformer;

/// One trainable tensor.
pub struct Learner {
    /// Its Hugging Face name.
    pub name: String,
    /// The model's own tensor, in the type that it computes in.
    pub parameter: Tensor,
    /// f32; shares memory with `parameter` where that is f32 too.
    pub master: Tensor,
    /// Optimiser state.
    pub moments: Moments,
    /// f32 sum of the micro-batches' gradients; None where the parameter's own `.grad` is f32.
    sum: Option<Tensor>,
}

/// All trainable tensors of a model, in its order.
pub struct Learners {
    all: Vec<Learner>,
    adam: AdamConfig,
    /// Whether the model lies on several devices.
    several: bool,
}

impl Learners {
    /// The trainable parameters of `model`. `master_of` gives a tensor's f32 values where they are
    /// finer than the parameter's; without one the parameter's own values are the master.
    pub fn new<E>(
        model: &Transformer,
        adam: AdamConfig,
        mut master_of: impl FnMut(&str) -> Result<Option<Tensor>, E>,
    ) -> Result<Self, E> {
        let mut all = Vec::new();
        for (name, parameter) in model.parameters() {
            if !parameter.requires_grad() {
                continue;
            }
            let finer = master_of(name)?;
            all.push(Learner::new(name, parameter, finer));
        }
        Ok(Self { all, adam, several: model.placement().devices().len() > 1 })
    }

    /// None at all: what is published is merged, not learnt.
    #[must_use]
    pub fn none(adam: AdamConfig) -> Self {
        Self { all: Vec::new(), adam, several: false }
    }

    /// The learners, in the model's order.
    #[must_use]
    pub fn all(&self) -> &[Learner] {
        &self.all
    }

    /// The learners, to be restored from a saved state.
    pub fn all_mut(&mut self) -> &mut [Learner] {
        &mut self.all
    }

    /// The learner of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Learner> {
        self.all.iter().find(|learner| learner.name == name)
    }

    /// Bytes of f32 that one copy of all masters takes.
    #[must_use]
    pub fn master_bytes(&self) -> u64 {
        self.all.iter().map(|learner| learner.master.numel() as u64 * 4).sum()
    }

    /// Moves the gradients of a micro-batch into the f32 sums, where there are any.
    pub fn collect(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for learner in &mut self.all {
            if let Some(sum) = &mut learner.sum {
                let gradient = learner.parameter.grad();
                if gradient.defined() {
                    let _ = sum.g_add_(&gradient.to_kind(Kind::Float));
                    learner.parameter.zero_grad();
                }
            }
        }
    }

    /// The Euclidean norm over all gradients, on the first device: f64 `[]`.
    pub fn gradient_norm(&self) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let norms: Vec<Tensor> = self
            .all
            .iter()
            .map(Learner::gradient)
            .filter(Tensor::defined)
            .map(|gradient| gradient.norm().to_kind(Kind::Double))
            .collect();
        let norms = self.together(norms);
        match norms.as_slice() {
            [] => Tensor::from(0.0_f64),
            norms => Tensor::stack(norms, 0).norm(),
        }
    }

    /// Single numbers on one device; each learner's own are where its tensor lies.
    fn together(&self, numbers: Vec<Tensor>) -> Vec<Tensor> {
        match (self.several, numbers.first().map(Tensor::device)) {
            (true, Some(first)) => numbers.iter().map(|number| number.to_device(first)).collect(),
            _ => numbers,
        }
    }

    /// Applies one step with gradients clipped to `norm_max` (`norm` is theirs now), and clears
    /// them. `step` is counted from 1.
    pub fn apply(&mut self, rate: f64, step: u64, (norm, norm_max): (f64, f64)) {
        let update = Update { rate, step, clip: clip_factor(norm, norm_max) };
        let gradients: Vec<Tensor> = self.all.iter().map(Learner::gradient).collect();
        let reached: Vec<(&Tensor, &Tensor, &Moments)> = self
            .all
            .iter()
            .zip(&gradients)
            .filter(|(_, gradient)| gradient.defined())
            .map(|(learner, gradient)| (&learner.master, gradient, &learner.moments))
            .collect();
        self.adam.apply(&reached, update);
        for learner in &mut self.all {
            learner.publish_master();
        }
        self.clear();
    }

    /// Sets all gradients to zero.
    pub fn clear(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for learner in &mut self.all {
            learner.parameter.zero_grad();
            if let Some(sum) = &mut learner.sum {
                let _ = sum.zero_();
            }
        }
    }
}

impl Learner {
    fn new(name: &str, parameter: &Tensor, finer: Option<Tensor>) -> Self {
        let _no_grad = tch::no_grad_guard();
        let parameter = parameter.shallow_clone();
        let own = parameter.kind() == Kind::Float;
        let mut master = if own { parameter.detach() } else { parameter.to_kind(Kind::Float) };
        if let Some(finer) = finer {
            master.copy_(&finer);
        }
        let moments = Moments::zeros(&master, decays(name));
        let sum = (!own).then(|| master.zeros_like());
        let mut learner = Self { name: name.to_owned(), parameter, master, moments, sum };
        learner.publish_master();
        learner
    }

    /// Brings the parameter to its master's values.
    pub fn publish_master(&mut self) {
        if self.sum.is_some() {
            let _no_grad = tch::no_grad_guard();
            self.parameter.detach().copy_(&self.master);
        }
    }

    /// The gradient of the step so far; undefined where nothing reached the tensor.
    pub fn gradient(&self) -> Tensor {
        match &self.sum {
            Some(sum) => sum.shallow_clone(),
            None => self.parameter.grad(),
        }
    }

    /// The tensor into which a hand-made gradient is added: f32, of the parameter's shape.
    pub fn gradient_to_add_to(&self) -> Tensor {
        if let Some(sum) = &self.sum {
            return sum.shallow_clone();
        }
        if !self.parameter.grad().defined() {
            // libtorch makes `.grad` only in a backward pass; this one adds zeros.
            tch::with_grad(|| (self.parameter.narrow(0, 0, 1) * 0.0).sum(Kind::Float).backward());
        }
        self.parameter.grad()
    }
}
