//! Random numbers from counters alone: the same key gives the same number, on every machine, in every
//! order of asking.
//!
//! In: a key of whole numbers, and a bound. Out: a number below the bound. May not enter: state.

/// A number below `bound` (0 where that is 0): SplitMix64's mixing over the words of the key.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
#[must_use]
pub fn uniform(key: &[u64], bound: u64) -> u64 {
    let word = key.iter().fold(0, |state, word| mix(state ^ word));
    // The high half of the product: without the bias of a remainder that anyone could measure.
    u64::try_from((u128::from(word) * u128::from(bound)) >> 64).unwrap_or(0)
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_are_those_of_the_source() {
        // SplitMix64 seeded with 0 gives these first: its state grows by the constant, then is mixed.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!((uniform(&[7, 1], 0), uniform(&[7, 1], 1)), (0, 0));
    }

    #[test]
    fn every_number_comes_about_equally_often_and_every_word_counts() {
        let mut seen = [0_u32; 5];
        for ordinal in 0..5_000 {
            seen[usize::try_from(uniform(&[1, 2, ordinal], 5)).unwrap()] += 1;
        }
        // 1000 are expected, with a deviation of √(5000 · 0.2 · 0.8) = 28.
        assert!(seen.iter().all(|n| (880..1_120).contains(n)), "{seen:?}");
        let differs = |a: &[u64], b: &[u64]| uniform(a, u64::MAX) != uniform(b, u64::MAX);
        assert!(differs(&[1, 2, 3], &[2, 1, 3]) && differs(&[1, 2, 3], &[1, 2, 4]));
    }
}
