//! Low-rank adapters (LoRA): what they add to a linear map, and what becomes of its weight with them.
//!
//! In: two small matrices a module, and how their product is scaled; in training, dropout. Out:
//! [`Adapters`] for a model to take up or for a weight to be merged with. An adapter computes
//! `scaling · up(down(dropout(x)))` beside its map, `down` being peft's A and `up` its B.
//! Source: Hu et al. 2021, arXiv:2106.09685. May not enter: files, optimisers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tch::{Kind, Tensor};

use super::config::ModelConfig;
use super::dropout;
use super::folder::expected_tensors;

/// The end of the name of an adapter's first matrix, `[rank, inputs]`.
pub const DOWN: &str = ".lora_A.weight";

/// The end of the name of its second matrix, `[outputs, rank]`.
pub const UP: &str = ".lora_B.weight";

/// What a module's adapter is, besides its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterShape {
    /// Rows of the first matrix.
    pub rank: u32,
    /// The numerator of the scaling.
    pub alpha: f64,
    /// Whether the scaling is α/√r, not α/r (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732).
    pub rank_stabilised: bool,
}

impl AdapterShape {
    /// The factor of the two matrices' product.
    #[must_use]
    pub fn scaling(&self) -> f64 {
        let rank = f64::from(self.rank);
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// The adapters of a model: f32 matrices by Hugging Face name, and a score head where one learnt too.
#[derive(Debug)]
pub struct Adapters {
    /// The same for all of them.
    pub shape: AdapterShape,
    /// `MODULE.lora_A.weight` and `MODULE.lora_B.weight`, f32, in the order of the model's modules.
    pub matrices: Vec<(String, Tensor)>,
    /// `[1, width]`, f32; a reward model's head, which learns as a whole.
    pub score_head: Option<Tensor>,
}

impl Adapters {
    /// The adapted modules, in order.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.matrices.iter().filter_map(|(name, _)| name.strip_suffix(DOWN))
    }

    /// The matrix of that name, or the score head.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        if name == "score.weight" {
            return self.score_head.as_ref();
        }
        self.matrices.iter().find(|(candidate, _)| candidate == name).map(|(_, tensor)| tensor)
    }

    /// Whether the tensor of this name is another one with the adapters merged.
    #[must_use]
    pub fn changes(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        self.get(&format!("{module}{DOWN}")).is_some() || self.get(name).is_some()
    }

    /// The tensor of this name with the adapters merged: `weight + scaling · B·A`, in f32 on the CPU.
    pub fn merged(&self, name: &str, weight: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let on_host =
            |tensor: &Tensor| tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Float);
        if let Some(head) = self.get(name) {
            return on_host(head);
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let part = |end: &str| self.get(&format!("{module}{end}"));
        match (part(DOWN), part(UP)) {
            (Some(down), Some(up)) => {
                let product = on_host(up).matmul(&on_host(down)) * self.shape.scaling();
                on_host(weight) + product
            }
            _ => on_host(weight),
        }
    }
}

/// Every linear map of a model's blocks, with its `[outputs, inputs]`, in order: what can be adapted.
#[must_use]
pub fn linear_modules(config: &ModelConfig) -> Vec<(String, [i64; 2])> {
    let tensors = expected_tensors(config);
    let mut modules = Vec::new();
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}.");
        for (name, shape) in tensors.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            if let (Some(module), &[outputs, inputs]) = (name.strip_suffix(".weight"), &shape[..]) {
                modules.push((module.to_owned(), [outputs, inputs]));
            }
        }
    }
    modules
}

/// What an adapter's inputs lose in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// The share that is left out; 0 leaves all in.
    pub probability: f64,
    /// The training's seed.
    pub seed: u64,
}

/// No dropout is drawn.
const NO_STEP: u64 = u64::MAX;

/// What all adapters of a model share: whether they are on, and whose dropout is drawn.
#[derive(Debug)]
pub struct Switch {
    on: AtomicBool,
    step: AtomicU64,
    micro_batch: AtomicU64,
}

impl Default for Switch {
    fn default() -> Self {
        let [step, micro_batch] = [NO_STEP, 0].map(AtomicU64::new);
        Self { on: AtomicBool::new(true), step, micro_batch }
    }
}

impl Switch {
    /// Switches all adapters on or off; off, the model is its base.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// From now on dropout is drawn for this micro-batch of this step, however often it is computed.
    pub fn draw_for(&self, step: u64, micro_batch: u64) {
        self.step.store(step, Ordering::Relaxed);
        self.micro_batch.store(micro_batch, Ordering::Relaxed);
    }

    /// From now on no dropout is drawn: what has been learnt is used, not trained.
    pub fn draw_none(&self) {
        self.step.store(NO_STEP, Ordering::Relaxed);
    }

    /// The step and micro-batch whose dropout is drawn, in training.
    fn drawn_for(&self) -> Option<[u64; 2]> {
        let step = self.step.load(Ordering::Relaxed);
        (step != NO_STEP).then(|| [step, self.micro_batch.load(Ordering::Relaxed)])
    }
}

/// The adapter of one linear map, in the model's own type; its matrices are parameters of the model.
#[derive(Debug)]
pub struct Adapter {
    /// The map's name, part of the key of its dropout.
    pub module: String,
    /// `[rank, inputs]`.
    pub down: Tensor,
    /// `[outputs, rank]`.
    pub up: Tensor,
    /// See [`AdapterShape::scaling`].
    pub scaling: f64,
    /// In training.
    pub dropout: Dropout,
    /// Shared with all others of the model.
    pub switch: Arc<Switch>,
}

impl Adapter {
    /// `y`, what the map gives for `x`, with the adapter's share.
    pub fn added_to(&self, y: Tensor, x: &Tensor) -> Tensor {
        if !self.switch.on.load(Ordering::Relaxed) {
            return y;
        }
        let drawn = self.switch.drawn_for().filter(|_| self.dropout.probability > 0.0);
        let inner = match drawn {
            Some(drawn) => self.dropped(x, drawn).linear(&self.down, None::<&Tensor>),
            None => x.linear(&self.down, None::<&Tensor>),
        };
        y + inner.linear(&self.up, None::<&Tensor>) * self.scaling
    }

    fn dropped(&self, x: &Tensor, [step, micro_batch]: [u64; 2]) -> Tensor {
        let Dropout { probability, seed } = self.dropout;
        let words = dropout::words(seed, [step, micro_batch], &self.module);
        x * dropout::mask(&words, probability, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scaling_is_alpha_over_rank_or_its_root() {
        let plain = AdapterShape { rank: 16, alpha: 8.0, rank_stabilised: false };
        assert_eq!(plain.scaling(), 0.5);
        assert_eq!(AdapterShape { rank_stabilised: true, ..plain }.scaling(), 2.0);
    }

    fn adapter(switch: &Arc<Switch>, probability: f64) -> Adapter {
        Adapter {
            module: "m".into(),
            down: Tensor::from_slice(&[1.0_f32, 2.0]).view([1, 2]),
            up: Tensor::from_slice(&[3.0_f32, -1.0]).view([2, 1]),
            scaling: 0.5,
            dropout: Dropout { probability, seed: 1 },
            switch: Arc::clone(switch),
        }
    }

    #[test]
    fn an_adapter_adds_its_product_and_off_it_adds_nothing() {
        // x = (1, 1): A·x = 3, B·3 = (9, −3), times 0.5 = (4.5, −1.5)
        let switch = Arc::new(Switch::default());
        let adapter = adapter(&switch, 0.0);
        let x = Tensor::from_slice(&[1.0_f32, 1.0]).view([1, 2]);
        let y = Tensor::from_slice(&[10.0_f32, 10.0]).view([1, 2]);
        let with = adapter.added_to(y.copy(), &x);
        assert!(with.equal(&Tensor::from_slice(&[14.5_f32, 8.5]).view([1, 2])));
        switch.set(false);
        assert!(adapter.added_to(y.copy(), &x).equal(&y));
        // The same by the merged weight: W = 0 + 0.5·B·A = ((1.5, 3), (−0.5, −1)).
        let adapters = Adapters {
            shape: AdapterShape { rank: 1, alpha: 0.5, rank_stabilised: false },
            matrices: vec![
                ("m.lora_A.weight".into(), adapter.down.shallow_clone()),
                ("m.lora_B.weight".into(), adapter.up.shallow_clone()),
            ],
            score_head: None,
        };
        let weight = Tensor::zeros([2, 2], (Kind::Float, tch::Device::Cpu));
        let merged = adapters.merged("m.weight", &weight);
        let wanted = Tensor::from_slice(&[1.5_f32, 3.0, -0.5, -1.0]).view([2, 2]);
        assert!(merged.equal(&wanted));
        assert!(adapters.changes("m.weight") && !adapters.changes("n.weight"));
        assert!(adapters.merged("n.weight", &weight).equal(&weight));
    }

    #[test]
    fn dropout_is_drawn_in_training_only_and_by_step_and_micro_batch() {
        let switch = Arc::new(Switch::default());
        let adapter = adapter(&switch, 0.5);
        let x = Tensor::ones([64, 2], (Kind::Float, tch::Device::Cpu));
        let y = x.zeros_like();
        let plain = adapter.added_to(y.copy(), &x);
        assert!(
            plain.equal(&(y.copy() + plain.get(0).unsqueeze(0))),
            "no dropout outside training"
        );
        switch.draw_for(3, 0);
        let one = adapter.added_to(y.copy(), &x);
        assert!(!one.equal(&plain) && one.equal(&adapter.added_to(y.copy(), &x)));
        switch.draw_for(3, 1);
        assert!(!one.equal(&adapter.added_to(y.copy(), &x)));
        switch.draw_for(4, 0);
        assert!(!one.equal(&adapter.added_to(y.copy(), &x)));
    }
}
