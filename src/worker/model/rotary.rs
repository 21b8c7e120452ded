//! Rotary position encoding: tables of cosines and sines, and the rotation itself.
//!
//! In: a [`ModelConfig`]'s theta and scaling, positions. Out: [`Rope`], ready to multiply, or one a device. The tables
//! are computed in f32 with the same operations as transformers, so that they agree to the last bit
//! but for the library's own cosine. May not enter: weights, attention.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::config::{ModelConfig, RopeScaling};
use crate::one_pass;

/// Where the tokens of a batch stand: cosines and sines for their positions, shaped to multiply
/// `[rows, tokens, heads, head_dim]`, and which of them belong together.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    /// The sequences that stand one after the other in a single row; empty where each row is a
    /// sequence of its own.
    pub packed: Vec<Tree>,
}

/// A beginning and the ways in which it goes on, one after the other in a row: each branch sees the
/// trunk and itself, never its siblings. A plain sequence is a trunk without branches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Tokens of the beginning.
    pub trunk: i64,
    /// Tokens of each continuation.
    pub branches: Vec<i64>,
}

impl Tree {
    /// A sequence on its own.
    #[must_use]
    pub fn plain(tokens: i64) -> Self {
        Self { trunk: tokens, branches: Vec::new() }
    }

    /// Tokens in the row.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        self.trunk + self.branches.iter().sum::<i64>()
    }

    /// Tokens of the trunk with its first branch, then of each other branch.
    pub fn sequences(&self) -> impl Iterator<Item = i64> {
        let (first, others) = self.branches.split_first().unwrap_or((&0, &[]));
        std::iter::once(self.trunk + first).chain(others.iter().copied())
    }

    /// The longest sequence.
    fn depth(&self) -> i64 {
        self.trunk + self.branches.iter().copied().max().unwrap_or(0)
    }
}

impl Rope {
    /// Rotates `[rows, tokens, heads, head_dim]`: the halves of a head are its two coordinates.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        one_pass::rotated(x, &self.cos, &self.sin).unwrap_or_else(|| self.rotate_plainly(x))
    }

    fn rotate_plainly(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[halves[1].neg(), halves[0].shallow_clone()], -1);
        (x * &self.cos).addcmul(&turned, &self.sin)
    }
}

/// One rotation on each device of a model.
#[derive(Debug)]
pub struct Ropes(Vec<Rope>);

impl Ropes {
    /// Made by device.
    #[must_use]
    pub fn of(tables: &[RopeTables], of: impl Fn(&RopeTables) -> Rope) -> Self {
        Self(tables.iter().map(of).collect())
    }

    /// On the device at that place among the model's.
    #[must_use]
    pub fn at(&self, place: usize) -> &Rope {
        &self.0[place]
    }
}

/// The tables of one model on one device; they grow with the longest sequence met.
#[derive(Debug)]
pub struct RopeTables {
    inverse_frequencies: Tensor,
    kind: Kind,
    tables: RefCell<(Tensor, Tensor)>,
}

/// Tables start with this many positions.
const POSITIONS_FIRST: i64 = 512;

impl RopeTables {
    /// Tables for a model; `kind` is the type that the model computes in.
    #[must_use]
    pub fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        let inverse_frequencies = inverse_frequencies(config).to_device(device);
        let tables = RefCell::new(tables(&inverse_frequencies, POSITIONS_FIRST, kind));
        Self { inverse_frequencies, kind, tables }
    }

    /// Where they lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.inverse_frequencies.device()
    }

    /// For positions 0 to `tokens` − 1, the same in every row.
    #[must_use]
    pub fn first(&self, tokens: i64) -> Rope {
        self.grow(tokens);
        let tables = self.tables.borrow();
        let shape = |table: &Tensor| table.narrow(0, 0, tokens).unsqueeze(1);
        Rope { cos: shape(&tables.0), sin: shape(&tables.1), packed: Vec::new() }
    }

    /// For trees one after the other in a single row: trunks from position 0, branches from where
    /// their trunk ends.
    #[must_use]
    pub fn packed(&self, trees: &[Tree]) -> Rope {
        self.grow(trees.iter().map(Tree::depth).max().unwrap_or(0));
        let tables = self.tables.borrow();
        let join = |table: &Tensor| {
            let mut parts = Vec::new();
            for tree in trees {
                parts.push(table.narrow(0, 0, tree.trunk));
                let branches = tree.branches.iter();
                parts.extend(branches.map(|length| table.narrow(0, tree.trunk, *length)));
            }
            Tensor::cat(&parts, 0).unsqueeze(1)
        };
        Rope { cos: join(&tables.0), sin: join(&tables.1), packed: trees.to_vec() }
    }

    /// For one position a row. `positions`: `[rows]`, on the tables' device, all below `limit`.
    #[must_use]
    pub fn at(&self, positions: &Tensor, limit: i64) -> Rope {
        self.grow(limit);
        let tables = self.tables.borrow();
        let shape = |table: &Tensor| table.index_select(0, positions).unsqueeze(1).unsqueeze(1);
        Rope { cos: shape(&tables.0), sin: shape(&tables.1), packed: Vec::new() }
    }

    fn grow(&self, tokens: i64) {
        let have = self.tables.borrow().0.size()[0];
        if tokens > have {
            let positions = tokens.max(have * 2);
            *self.tables.borrow_mut() = tables(&self.inverse_frequencies, positions, self.kind);
        }
    }
}

/// `[head_dim / 2]`, f32.
fn inverse_frequencies(config: &ModelConfig) -> Tensor {
    let dim = config.head_dim as i64;
    let exponents = Tensor::arange_start_step(0, dim, 2, (Kind::Int64, Device::Cpu))
        .to_kind(Kind::Float)
        / dim as f64;
    let plain = Tensor::pow_scalar(config.rope_theta, &exponents).reciprocal();
    match config.rope_scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            let wavelength = plain.reciprocal() * (2.0 * std::f64::consts::PI);
            let low_wavelength = original_positions / low_freq_factor;
            let high_wavelength = original_positions / high_freq_factor;
            let divided = &plain / factor;
            let smooth = (wavelength.reciprocal() * original_positions - low_freq_factor)
                / (high_freq_factor - low_freq_factor);
            let ramp: Tensor = (1.0 - &smooth) * &divided + &smooth * &plain;
            let scaled = divided.where_self(&wavelength.gt(low_wavelength), &plain);
            let medium = wavelength.ge(high_wavelength).logical_and(&wavelength.le(low_wavelength));
            ramp.where_self(&medium, &scaled)
        }
    }
}

fn tables(inverse_frequencies: &Tensor, positions: i64, kind: Kind) -> (Tensor, Tensor) {
    let _guard = tch::no_grad_guard();
    let device = inverse_frequencies.device();
    let positions = Tensor::arange(positions, (Kind::Float, device));
    let angles = positions.unsqueeze(1) * inverse_frequencies.unsqueeze(0);
    let angles = Tensor::cat(&[&angles, &angles], 1);
    (angles.cos().to_kind(kind), angles.sin().to_kind(kind))
}
