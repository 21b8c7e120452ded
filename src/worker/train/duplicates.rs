//! Which examples stand in the data already: to the byte, or nearly.
//!
//! In: texts of one example after the other. Out: whether it is new. Nearness is the share of three-word
//! sequences that two examples have in common (Jaccard's index), estimated from a sketch of each, so
//! that all examples are held against all others in one pass. May not enter: files, tokens.

use std::collections::{BTreeSet, HashMap};

use minhash_rs::prelude::{MinHash, MinHasher};
use sha2::{Digest, Sha256};

/// Numbers of a sketch: the estimate's deviation is under √(0.25 / 128) = 0.044.
const PERMUTATIONS: usize = 128;

/// Bands of four numbers: two examples are compared where one band agrees, which at an index of 0.8
/// all but surely happens (1 − (1 − 0.8⁴)³² = 1 − 5e-8), at 0.5 in 87 of 100 cases.
const BANDS: usize = 32;

/// Words of a sequence.
const WORDS: usize = 3;

type Sketch = MinHash<u64, PERMUTATIONS>;

/// Examples met so far.
pub struct Seen {
    exact: BTreeSet<[u8; 32]>,
    near: Option<Near>,
}

/// Sketches of the examples that were new.
struct Near {
    threshold: f64,
    sketches: Vec<Sketch>,
    by_band: HashMap<(usize, u64), Vec<usize>>,
}

/// How an example stands to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// None is like it.
    New,
    /// One has the same texts.
    Exact,
    /// One is at least as near as the threshold.
    Near,
}

impl Seen {
    /// `threshold`: the least index at which two examples are near; 1 compares bytes only.
    #[must_use]
    pub fn new(threshold: f64) -> Self {
        let near = (threshold < 1.0).then(|| Near {
            threshold,
            sketches: Vec::new(),
            by_band: HashMap::new(),
        });
        Self { exact: BTreeSet::new(), near }
    }

    /// Takes an example in. The order of its texts counts: swapped answers are another example.
    pub fn take(&mut self, texts: &[&str]) -> Novelty {
        if !self.exact.insert(sum(texts)) {
            return Novelty::Exact;
        }
        let is_new = self.near.as_mut().is_none_or(|near| near.take(texts));
        if is_new { Novelty::New } else { Novelty::Near }
    }
}

impl Near {
    /// Whether none of those before is near; only then it is kept.
    fn take(&mut self, texts: &[&str]) -> bool {
        let sketch = sketch(texts);
        let bands = sketch.band_hashes::<BANDS>();
        let keys = bands.into_iter().enumerate();
        let met: BTreeSet<usize> =
            keys.clone().filter_map(|key| self.by_band.get(&key)).flatten().copied().collect();
        let index = |other: &usize| self.sketches[*other].estimate_jaccard_index(&sketch);
        if met.iter().any(|other| index(other) >= self.threshold) {
            return false;
        }
        for key in keys {
            self.by_band.entry(key).or_default().push(self.sketches.len());
        }
        self.sketches.push(sketch);
        true
    }
}

/// A sketch of the three-word sequences of all texts, each marked with the text's place.
fn sketch(texts: &[&str]) -> Sketch {
    let mut sketch = Sketch::new();
    for (place, text) in texts.iter().enumerate() {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        let length = WORDS.min(words.len()).max(1);
        for sequence in words.windows(length) {
            sketch.insert(named(sequence, place as u64));
        }
    }
    sketch
}

fn named(sequence: &[String], place: u64) -> u64 {
    let mut sum = Sha256::new();
    sum.update(place.to_le_bytes());
    for word in sequence {
        sum.update((word.len() as u64).to_le_bytes());
        sum.update(word);
    }
    sum.finalize().iter().take(8).fold(0, |bits, byte| (bits << 8) | u64::from(*byte))
}

/// Each text goes in with its length before it, so that no two lists have the same bytes.
fn sum(texts: &[&str]) -> [u8; 32] {
    let mut sum = Sha256::new();
    for text in texts {
        sum.update((text.len() as u64).to_le_bytes());
        sum.update(text);
    }
    sum.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` different words from `start` on.
    fn words(start: usize, count: usize) -> String {
        (start..start + count).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn bytes_and_order_decide_without_a_threshold() {
        let mut seen = Seen::new(1.0);
        assert_eq!(seen.take(&["q", "a", "b"]), Novelty::New);
        assert_eq!(seen.take(&["q", "b", "a"]), Novelty::New);
        assert_eq!(seen.take(&["qa", "", "b"]), Novelty::New);
        assert_eq!(seen.take(&["q", "a", "b"]), Novelty::Exact);
        assert_eq!(seen.take(&["q", "A", "b"]), Novelty::New);
    }

    #[test]
    fn the_index_decides_with_one() {
        // 402 words have 400 sequences. Shifted by 20, 380 are common of 420: 0.905; shifted by 200,
        // 200 of 600: 0.333. Five deviations of the estimate are 0.13 and 0.21.
        let text = words(0, 402);
        for (shift, threshold, wanted) in [
            (20, 0.75, Novelty::Near),
            (200, 0.75, Novelty::New),
            (0, 0.75, Novelty::Exact),
            (200, 1.0, Novelty::New),
        ] {
            let mut seen = Seen::new(threshold);
            assert_eq!(seen.take(&[&text]), Novelty::New);
            assert_eq!(seen.take(&[&words(shift, 402)]), wanted, "{shift}");
        }
        let mut seen = Seen::new(0.75);
        assert_eq!(seen.take(&["q", &text, "b"]), Novelty::New);
        assert_eq!(seen.take(&["q", "b", &text]), Novelty::New, "swapped sides are another label");
        let shouted = text.to_uppercase();
        assert_eq!(seen.take(&["q", &shouted, "b"]), Novelty::Near);
    }
}
