//! Numbers that a seed determines, the same on every machine.

/// The `key`th number of a seed's stream, below `n`: splitmix64.
pub fn drawn(seed: u64, key: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % n
}

/// The numbers of a seed, one after the other.
pub struct Stream {
    seed: u64,
    drawn: u64,
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// One of several that a seed has, each independent of how much of the others is drawn.
    pub fn of(seed: u64, number: u64) -> Self {
        Self::new(drawn(seed, number, u64::MAX))
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        let number = drawn(self.seed, self.drawn, n);
        self.drawn += 1;
        number
    }
}
