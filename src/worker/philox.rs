//! Philox4x32-10: random numbers as a function of a key and a counter, with no state between them.
//!
//! In: who draws ([`StreamKey`]) and for which token position. Out: a uniform number in [0, 1). The
//! same response gets the same numbers whatever worker writes it, in whatever order or batch. Also
//! normal numbers for new weights, by a key of their own.
//! Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi 10.1145/2063384.2063405.
//! May not enter: libtorch, clocks.

use rlhfd_protocol::worker::Purpose;
use sha2::{Digest, Sha256};

/// The two multipliers of the 4×32 variant.
pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key before each round but the first.
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox over a 128-bit counter with a 64-bit key.
#[must_use]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let product = |multiplier: u32, word: u32| u64::from(multiplier) * u64::from(word);
        let (first, second) =
            (product(MULTIPLIERS[0], counter[0]), product(MULTIPLIERS[1], counter[2]));
        let (high, low) = (|p: u64| (p >> 32) as u32, |p: u64| p as u32);
        counter = [
            high(second) ^ counter[1] ^ key[0],
            low(second),
            high(first) ^ counter[3] ^ key[1],
            low(first),
        ];
    }
    counter
}

/// `count` normal numbers with mean 0 and this deviation: a function of the key and of what they are
/// for, which sets them apart from all others of the same key.
#[must_use]
pub fn normals(key: [u32; 2], purpose: u32, count: usize, deviation: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count.saturating_add(4));
    let mut counter = 0_u64;
    while values.len() < count {
        let [low, high] = [(counter & 0xffff_ffff) as u32, (counter >> 32) as u32];
        let words = philox4x32([low, high, 0, purpose], key);
        for pair in words.chunks_exact(2) {
            #[expect(clippy::cast_possible_truncation, reason = "a drawn weight needs no more")]
            values.extend(box_muller(pair[0], pair[1]).map(|z| (z * deviation) as f32));
        }
        counter += 1;
    }
    values.truncate(count);
    values
}

/// Box and Muller's two normals from two words.
fn box_muller(a: u32, b: u32) -> [f64; 2] {
    // In (0, 1], so that the logarithm is finite.
    let u = (f64::from(a) + 1.0) / 4_294_967_296.0;
    let angle = 2.0 * std::f64::consts::PI * f64::from(b) / 4_294_967_296.0;
    let radius = (-2.0 * u.ln()).sqrt();
    [radius * angle.cos(), radius * angle.sin()]
}

/// Whose random numbers these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey<'a> {
    /// The run's seed.
    pub run_seed: u64,
    /// Generation or evaluation.
    pub purpose: Purpose,
    /// The iteration; 0 in file mode and in every evaluation.
    pub iteration: u32,
    /// The prompt's rendered ids.
    pub prompt: &'a [u32],
    /// Which of the equal prompts of the input it is, from 0.
    pub occurrence: u32,
    /// Which response to it, counted over all arms.
    pub sample: u32,
}

/// A stream of uniform numbers, indexed by token position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Stream {
    /// The stream of one response: 160 bits of a sum over all that names it.
    #[must_use]
    pub fn new(key: StreamKey<'_>) -> Self {
        let mut ids = Sha256::new();
        for id in key.prompt {
            ids.update(id.to_le_bytes());
        }
        let purpose: u8 = match key.purpose {
            Purpose::Generate => 0,
            Purpose::Evaluate => 1,
        };
        let mut name = Sha256::new();
        name.update(b"rlhfd response stream 1");
        name.update(key.run_seed.to_le_bytes());
        name.update([purpose]);
        name.update(key.iteration.to_le_bytes());
        name.update(ids.finalize());
        name.update(key.occurrence.to_le_bytes());
        name.update(key.sample.to_le_bytes());
        let sum = name.finalize();
        let word = |index: usize| {
            let at = index * 4;
            u32::from_le_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]])
        };
        Self { key: [word(0), word(1)], counter: [word(2), word(3), word(4)] }
    }

    /// The uniform number in [0, 1) of a token position: 53 bits.
    #[must_use]
    pub fn uniform(&self, position: u32) -> f64 {
        let [a, b, c] = self.counter;
        let words = philox4x32([position, a, b, c], self.key);
        let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

/// A sequence of words named by parts: the same name gives the same words, on any machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// Philox' key.
    pub key: [u32; 2],
    /// The three words of the counter that do not count.
    pub counter: [u32; 3],
}

impl Words {
    /// The sequence of this name: 160 bits of a sum over its parts.
    #[must_use]
    pub fn named(parts: &[&[u8]]) -> Self {
        let mut name = Sha256::new();
        name.update(b"rlhfd words 1");
        for part in parts {
            name.update((part.len() as u64).to_le_bytes());
            name.update(part);
        }
        let sum = name.finalize();
        let word = |index: usize| {
            let at = index * 4;
            u32::from_le_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]])
        };
        Self { key: [word(0), word(1)], counter: [word(2), word(3), word(4)] }
    }

    /// Words 4·`block` to 4·`block` + 3.
    #[must_use]
    pub fn block(&self, block: u32) -> [u32; 4] {
        let [a, b, c] = self.counter;
        philox4x32([block, a, b, c], self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_function_of_their_name_alone() {
        let name: [&[u8]; 2] = [b"ab", b"c"];
        assert_eq!(Words::named(&name).block(3), Words::named(&name).block(3));
        assert_ne!(Words::named(&name).block(3), Words::named(&name).block(4));
        let other: [&[u8]; 2] = [b"a", b"bc"];
        assert_ne!(Words::named(&name), Words::named(&other), "parts do not run into each other");
    }

    #[test]
    fn known_answers_of_random123() {
        // kat_vectors of the Random123 distribution, philox4x32 with 10 rounds.
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, wanted) in cases {
            assert_eq!(philox4x32(counter, key), wanted);
        }
    }

    #[test]
    fn every_part_of_the_name_changes_the_stream() {
        let base = StreamKey {
            run_seed: 1,
            purpose: Purpose::Generate,
            iteration: 0,
            prompt: &[5, 6],
            occurrence: 0,
            sample: 0,
        };
        let others = [
            StreamKey { run_seed: 2, ..base },
            StreamKey { purpose: Purpose::Evaluate, ..base },
            StreamKey { iteration: 1, ..base },
            StreamKey { prompt: &[6, 5], ..base },
            StreamKey { occurrence: 1, ..base },
            StreamKey { sample: 1, ..base },
        ];
        let first = Stream::new(base).uniform(0);
        assert_eq!(first, Stream::new(base).uniform(0));
        for other in others {
            assert_ne!(first, Stream::new(other).uniform(0), "{other:?}");
        }
        assert_ne!(first, Stream::new(base).uniform(1));
    }

    #[test]
    fn numbers_are_uniform() {
        let stream = Stream::new(StreamKey {
            run_seed: 7,
            purpose: Purpose::Generate,
            iteration: 0,
            prompt: &[1],
            occurrence: 0,
            sample: 0,
        });
        // 20,000 draws into ten bins: 2,000 ± 42.4 each; five deviations are 212.
        let mut bins = [0_i32; 10];
        for position in 0..20_000 {
            let u = stream.uniform(position);
            assert!((0.0..1.0).contains(&u));
            bins[(u * 10.0) as usize] += 1;
        }
        assert!(bins.iter().all(|count| (count - 2000).abs() < 212), "{bins:?}");
    }
}
