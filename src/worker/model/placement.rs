//! Where a model's parts lie: on one device, or block after block on several.
//!
//! In: the devices of a lease, a configuration, what learns. Out: the device of every tensor by its name,
//! and the move of a hidden state to the next device. The rule itself is `rlhfd_domain::split`, which the
//! memory plan asks too. May not enter: weights, computation.

use std::cell::Cell;

use rlhfd_domain::split::{DEVICES_MAX, Learning, Sizes, Weights};
use tch::{Device, Tensor};

use super::config::{Head, ModelConfig};
use super::transformer::{LoadOptions, Trainable};

/// The devices that a process computes on, in the order of a model's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    all: [Device; DEVICES_MAX],
    rooms: [u64; DEVICES_MAX],
    count: usize,
}

impl Devices {
    /// A single one.
    #[must_use]
    pub const fn one(device: Device) -> Self {
        Self { all: [device; DEVICES_MAX], rooms: [0; DEVICES_MAX], count: 1 }
    }

    /// Several, with the room of each in MiB (all 0: alike). None for none, or too many.
    #[must_use]
    pub fn several(devices: &[Device], rooms_mib: &[u64]) -> Option<Self> {
        let mut own = Self::one(*devices.first()?);
        own.count = devices.len();
        own.all.get_mut(..devices.len())?.copy_from_slice(devices);
        for (own, room) in own.rooms.iter_mut().zip(rooms_mib) {
            *own = *room;
        }
        Some(own)
    }

    /// The first: ids come in there.
    #[must_use]
    pub const fn first(&self) -> Device {
        self.all[0]
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Device] {
        &self.all[..self.count]
    }
}

impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> =
            self.all().iter().map(|device| format!("{device:?}").to_lowercase()).collect();
        f.write_str(&names.join(", "))
    }
}

/// Where the parts of one model lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    devices: Vec<Device>,
    /// By block: the place of its device in `devices`.
    blocks: Vec<usize>,
    /// The place of norm and head.
    head: usize,
}

impl Placement {
    /// The placement of a model that is loaded so.
    #[must_use]
    pub fn new(config: &ModelConfig, options: &LoadOptions) -> Self {
        let devices = options.devices.all().to_vec();
        let weights = Weights {
            sizes: sizes(config),
            bytes: options.precision.kind().elt_size_in_bytes() as u64,
            learning: match options.trainable {
                Trainable::Nothing | Trainable::Adapters => Learning::Nothing,
                Trainable::Everything => Learning::Everything,
                Trainable::TopBlocks(top) => Learning::TopBlocks(top as u64),
            },
        };
        let counts = weights.blocks_by_device(&options.devices.rooms[..devices.len()]);
        let blocks = counts.iter().enumerate().flat_map(|(place, count)| {
            std::iter::repeat_n(place, usize::try_from(*count).unwrap_or(0))
        });
        let blocks: Vec<usize> = blocks.collect();
        Self { head: weights.head_place(devices.len()), devices, blocks }
    }

    /// Its devices, in the order of the blocks.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Where ids and embedding lie.
    #[must_use]
    pub fn first(&self) -> Device {
        self.devices[0]
    }

    /// Where norm and head lie.
    #[must_use]
    pub fn head(&self) -> Device {
        self.devices[self.head]
    }

    /// The place of a block's device.
    #[must_use]
    pub fn place_of(&self, layer: usize) -> usize {
        self.blocks.get(layer).copied().unwrap_or(0)
    }

    /// The device of a block's keys and values.
    #[must_use]
    pub fn block(&self, layer: usize) -> Device {
        self.devices[self.place_of(layer)]
    }

    /// Where a hidden state is to go before this block; none where it is there already.
    #[must_use]
    pub fn entry(&self, layer: usize) -> Option<Device> {
        let before = if layer == 0 { 0 } else { self.place_of(layer - 1) };
        (self.place_of(layer) != before).then(|| self.block(layer))
    }

    /// Where a hidden state is to go before the final norm; none where it is there already.
    #[must_use]
    pub fn exit(&self) -> Option<Device> {
        let top = self.blocks.last().copied().unwrap_or(0);
        (self.head != top).then(|| self.head())
    }

    /// Where a gradient is to go before the topmost block; none where it is there already.
    #[must_use]
    pub fn re_entry(&self) -> Option<Device> {
        let top = self.blocks.last().copied().unwrap_or(0);
        (self.head != top).then(|| self.devices[top])
    }

    /// The device of the tensor of this name.
    #[must_use]
    pub fn of(&self, name: &str) -> Device {
        if name.starts_with("model.embed_tokens.") {
            return self.first();
        }
        let rest = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        match rest.and_then(|layer| layer.parse::<usize>().ok()) {
            Some(layer) => self.block(layer),
            None => self.head(),
        }
    }

    /// Blocks by device, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let count = |place: usize| self.blocks.iter().filter(|own| **own == place).count();
        let each = self.devices.iter().enumerate();
        let each = each.map(|(place, device)| {
            let name = format!("{device:?}").to_lowercase();
            format!("{} on {name}", count(place))
        });
        each.collect::<Vec<_>>().join(", ")
    }
}

fn sizes(config: &ModelConfig) -> Sizes {
    Sizes {
        layers: config.layers as u64,
        vocabulary: config.vocabulary as u64,
        width: config.width as u64,
        heads: config.heads as u64,
        kv_heads: config.kv_heads as u64,
        head_dim: config.head_dim as u64,
        mlp_width: config.mlp_width as u64,
        tied: config.tied,
        scores: config.head == Head::Score,
    }
}

thread_local! {
    static MOVES: Cell<u64> = const { Cell::new(0) };
}

/// Moves that this thread made from one device of a model to another.
#[must_use]
pub fn moves() -> u64 {
    MOVES.get()
}

/// The tensor on another device of its model.
pub fn moved(x: &Tensor, to: Device) -> Tensor {
    MOVES.set(MOVES.get() + 1);
    x.to_device(to)
}
