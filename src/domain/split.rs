//! How a model's blocks lie on several devices, and what each of these then holds.
//!
//! In: a decoder's sizes, what learns, the room of each device. Out: how many blocks each device holds,
//! from the bottom, and its share of the memory. The embedding lies with the first block, norm and head
//! with the last one; a tied head computes beside the embedding, whose weight it is. Who plans memory and
//! who loads the model both ask this one rule, so that they never differ. May not enter: devices, tensors.

/// The most devices that one model lies on.
pub const DEVICES_MAX: usize = 8;

/// A process without a model: libtorch, code, buffers; on a GPU the context as well.
const PROCESS_MIB: u64 = 500;
/// What an allocator loses by rounding, in per cent.
const ROUNDING_PERCENT: u64 = 10;

/// What so many MiB of tensors are planned with on a device.
#[must_use]
pub const fn planned_mib(tensors_mib: u64) -> u64 {
    tensors_mib + tensors_mib * ROUNDING_PERCENT / 100 + PROCESS_MIB
}

/// A decoder's sizes, as config.json states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Blocks.
    pub layers: u64,
    /// Rows of the embedding.
    pub vocabulary: u64,
    /// Size of a position's state.
    pub width: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Size of a head.
    pub head_dim: u64,
    /// Inner size of the MLP.
    pub mlp_width: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether it ends in one number, not in a row of logits.
    pub scores: bool,
}

impl Sizes {
    /// Parameters of one block. Biases are left out: they are next to nothing.
    #[must_use]
    pub const fn block(&self) -> u64 {
        let attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads);
        attention + 3 * self.width * self.mlp_width + 2 * self.width
    }

    const fn embedding(&self) -> u64 {
        self.vocabulary * self.width
    }

    const fn head(&self) -> u64 {
        if self.tied || self.scores { self.width } else { self.embedding() }
    }
}

/// Which parameters learn, as far as it matters to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learning {
    /// None, or adapters, which are small.
    Nothing,
    /// All.
    Everything,
    /// Those of so many blocks from the top.
    TopBlocks(u64),
}

/// Bytes that a parameter takes besides itself where it learns: a master of its own only where the
/// compute type is narrower than f32, both moments, its gradient.
#[must_use]
pub const fn state_bytes(bytes: u64) -> u64 {
    let master = if bytes < 4 { 4 } else { 0 };
    master + 8 + 4
}

/// The weights of a model in memory, and their training state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// The model's.
    pub sizes: Sizes,
    /// Bytes of a number in compute.
    pub bytes: u64,
    /// What learns.
    pub learning: Learning,
}

/// Finer than any device's share needs to be.
const STEPS: u128 = 1 << 20;

impl Weights {
    /// How many blocks each of several devices holds, from the bottom: the shares are as even as whole
    /// blocks allow, measured by `rooms` (in any unit; all zero: alike). As many entries as `rooms`.
    #[must_use]
    pub fn blocks_by_device(&self, rooms: &[u64]) -> Vec<u64> {
        let alike = rooms.iter().all(|room| *room == 0);
        let rooms: Vec<u64> =
            rooms.iter().map(|room| if alike { 1 } else { (*room).max(1) }).collect();
        let [first, .., last] = rooms[..] else { return vec![self.sizes.layers; rooms.len()] };
        // With so much of its room each end could hold everything.
        let most = u128::from(self.total()) * STEPS / u128::from(first.min(last)) + STEPS;
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.filled(&rooms, middle) {
                Some(_) => high = middle,
                None => low = middle + 1,
            }
        }
        self.filled(&rooms, high).unwrap_or_default()
    }

    /// The blocks by device where none may hold more than `share` / [`STEPS`] of its room: each takes what
    /// it can, from the bottom. None where some are left, or the ends do not fit.
    fn filled(&self, rooms: &[u64], share: u128) -> Option<Vec<u64>> {
        let mut next = 0;
        let mut counts = Vec::with_capacity(rooms.len());
        for (place, room) in rooms.iter().enumerate() {
            let most = u128::from(*room) * share / STEPS;
            let mut held = u128::from(self.ends(place, rooms.len()));
            if held > most {
                return None;
            }
            let begin = next;
            while next < self.sizes.layers {
                held += u128::from(self.block(next));
                if held > most {
                    break;
                }
                next += 1;
            }
            counts.push(next - begin);
        }
        (next == self.sizes.layers).then_some(counts)
    }

    /// Bytes of embedding and head on the device at this place of so many.
    fn ends(&self, place: usize, devices: usize) -> u64 {
        let each = self.bytes
            + if self.learning == Learning::Everything { state_bytes(self.bytes) } else { 0 };
        let embedding = if place == 0 { self.sizes.embedding() } else { 0 };
        let head = if place == self.head_place(devices) { self.sizes.head() } else { 0 };
        (embedding + head) * each
    }

    /// The place of norm and head among so many devices.
    #[must_use]
    pub const fn head_place(&self, devices: usize) -> usize {
        if self.sizes.tied && !self.sizes.scores { 0 } else { devices.saturating_sub(1) }
    }

    /// Bytes of this block, from the bottom.
    fn block(&self, layer: u64) -> u64 {
        let learns = match self.learning {
            Learning::Nothing => false,
            Learning::Everything => true,
            Learning::TopBlocks(top) => layer.saturating_add(top) >= self.sizes.layers,
        };
        self.sizes.block() * (self.bytes + if learns { state_bytes(self.bytes) } else { 0 })
    }

    fn total(&self) -> u64 {
        (0..self.sizes.layers).map(|layer| self.block(layer)).sum::<u64>() + self.ends(0, 1)
    }
}

/// All that a work needs, by where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The model.
    pub weights: Weights,
    /// Bytes that each block keeps: its part of the cache, its activations.
    pub block_bytes: u64,
    /// Bytes on every device: what passes through one block at a time.
    pub device_bytes: u64,
    /// Bytes beside the head: logits.
    pub head_bytes: u64,
}

impl Demand {
    /// MiB that are planned with on each of several devices, split by `rooms`.
    #[must_use]
    pub fn planned_mib(&self, rooms: &[u64]) -> Vec<u64> {
        self.shares(rooms).into_iter().map(|bytes| planned_mib(bytes.div_ceil(1 << 20))).collect()
    }

    /// Bytes on each of several devices, split by `rooms`.
    #[must_use]
    pub fn shares(&self, rooms: &[u64]) -> Vec<u64> {
        let mut next = 0;
        let counts = self.weights.blocks_by_device(rooms);
        let share = |(place, count): (usize, &u64)| {
            let blocks = next..next + count;
            next += count;
            let weights: u64 = blocks.map(|layer| self.weights.block(layer)).sum();
            let head = place == self.weights.head_place(rooms.len());
            weights
                + self.weights.ends(place, rooms.len())
                + count * self.block_bytes
                + self.device_bytes
                + if head { self.head_bytes } else { 0 }
        };
        counts.iter().enumerate().map(share).collect()
    }
}

/// As few devices as hold a demand together, of those with `free_mib` (the largest first), and the share of
/// each. `shares` gives these by rooms.
#[must_use]
pub fn fewest(free_mib: &[u64], shares: impl Fn(&[u64]) -> Vec<u64>) -> Option<Vec<u64>> {
    (2..=free_mib.len().min(DEVICES_MAX)).find_map(|count| {
        let free = &free_mib[..count];
        let own = shares(free);
        (own.len() == count && own.iter().zip(free).all(|(own, free)| own <= free)).then_some(own)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A block of 2·2·2·(1 + 1) + 3·2·2 + 2·2 = 32 parameters; an embedding of 2 a row.
    fn sizes(layers: u64, vocabulary: u64, tied: bool) -> Sizes {
        Sizes {
            layers,
            vocabulary,
            width: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            mlp_width: 2,
            tied,
            scores: false,
        }
    }

    fn weights(sizes: Sizes, learning: Learning) -> Weights {
        Weights { sizes, bytes: 4, learning }
    }

    #[test]
    fn blocks_go_by_room_and_the_ends_count() {
        let plain = weights(sizes(8, 0, false), Learning::Nothing);
        assert_eq!(plain.sizes.block(), 32);
        assert_eq!(plain.blocks_by_device(&[7]), [8]);
        assert_eq!(plain.blocks_by_device(&[10, 10]), [4, 4]);
        assert_eq!(plain.blocks_by_device(&[0, 0]), [4, 4], "unknown rooms are alike");
        assert_eq!(plain.blocks_by_device(&[30, 10]), [6, 2]);
        assert_eq!(plain.blocks_by_device(&[10, 0, 10]), [4, 0, 4]);
        // An embedding of two blocks' size lies below, and its like above.
        let ends = weights(sizes(8, 32, false), Learning::Nothing);
        assert_eq!(ends.blocks_by_device(&[9, 9, 9]), [2, 4, 2]);
        // Tied, the head is beside the embedding, and the last device has room for blocks.
        let tied = weights(sizes(8, 32, true), Learning::Nothing);
        assert_eq!(tied.blocks_by_device(&[10, 10]), [3, 5]);
        assert_eq!((ends.head_place(3), tied.head_place(3)), (2, 0));
    }

    #[test]
    fn what_learns_weighs_more() {
        // Two of four learn: with masters, moments and gradients they weigh 4 + 12 to 4.
        let top = weights(sizes(4, 0, false), Learning::TopBlocks(2));
        assert_eq!(top.blocks_by_device(&[10, 10]), [3, 1]);
    }

    #[test]
    fn each_share_is_what_lies_there() {
        let model = weights(sizes(4, 16, false), Learning::Nothing);
        let demand = Demand { weights: model, block_bytes: 10, device_bytes: 7, head_bytes: 3 };
        // A block is 128 bytes, embedding and head 128 each.
        assert_eq!(demand.shares(&[5, 5]), [3 * 128 + 27, 3 * 128 + 30]);
    }

    proptest! {
        #[test]
        fn every_block_lies_somewhere_and_no_other_split_is_more_even(
            layers in 1u64..7, vocabulary in 0u64..40, tied: bool, top in 0u64..7,
            rooms in prop::collection::vec(1u64..20, 2..4),
        ) {
            let model = weights(sizes(layers, vocabulary, tied), Learning::TopBlocks(top));
            let counts = model.blocks_by_device(&rooms);
            prop_assert_eq!(counts.iter().sum::<u64>(), layers);
            prop_assert_eq!(counts.len(), rooms.len());
            let fullest = |counts: &[u64]| {
                let mut next = 0;
                let mut most = 0.0_f64;
                for (place, count) in counts.iter().enumerate() {
                    let blocks: u64 = (next..next + count).map(|layer| model.block(layer)).sum();
                    next += count;
                    let held = blocks + model.ends(place, rooms.len());
                    most = most.max(held as f64 / rooms[place] as f64);
                }
                most
            };
            let own = fullest(&counts);
            for one in 0..=layers {
                for two in 0..=layers - one {
                    let other = match rooms.len() {
                        2 => vec![one, layers - one],
                        _ => vec![one, two, layers - one - two],
                    };
                    prop_assert!(own <= fullest(&other) * 1.0001 + 1e-3, "{counts:?} {other:?}");
                }
            }
        }
    }
}
