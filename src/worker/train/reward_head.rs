//! What turns a policy into a reward model: a seeded score head, and a pad id that is no stop id.
//!
//! In: a seed, a tokenizer. Out: `score.weight` and the pad id. transformers reads a score at the
//! last position whose id is not the pad id: where pad is the stop id that ends the text, that is
//! one too early, so models trained here are saved with another pad id and both readings agree.
//! May not enter: training, files.

use std::collections::BTreeSet;

use tch::Tensor;

use crate::philox::normals;
use crate::tokenizer::Tokenizer;

/// Sets the head's numbers apart from all others of the same seed.
const HEAD: u32 = 0x4845_4144;

/// A new score head: f32 `[1, width]`, normal with mean 0 and this deviation (transformers'
/// `initializer_range`), a function of the seed alone.
pub fn seeded(width: usize, deviation: f64, seed: u64) -> Tensor {
    let key = [(seed & 0xffff_ffff) as u32, (seed >> 32) as u32];
    Tensor::from_slice(&normals(key, HEAD, width, deviation)).view([1, -1])
}

/// A pad id that ends no text: the tokenizer's where it is no stop id, else the unk id, else a
/// special token that no training text ends in (the BOS last), else a row without a token, which
/// no text yields. None where there is none. No row is ever added. `ends`: the last ids of the texts.
#[must_use]
pub fn pad_id(tokenizer: &Tokenizer, vocabulary: usize, ends: &BTreeSet<u32>) -> Option<u32> {
    let fits = |id: &u32| (*id as usize) < vocabulary && !tokenizer.is_stop(*id);
    let usual = [tokenizer.pad_id, tokenizer.unk_id].into_iter().flatten().find(fits);
    let special = || {
        let ids = tokenizer.special_ids();
        let is_bos = |id: &u32| tokenizer.bos_id == Some(*id);
        let (bos, others): (Vec<u32>, Vec<u32>) = ids.into_iter().partition(is_bos);
        others.into_iter().chain(bos).find(|id| fits(id) && !ends.contains(id))
    };
    let spare = || {
        let rows = u32::try_from(vocabulary).unwrap_or(u32::MAX);
        (0..rows).rev().find(|id| !tokenizer.has(*id) && fits(id))
    };
    usual.or_else(special).or_else(spare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_function_of_its_seed_and_has_the_asked_deviation() {
        let one = seeded(4001, 0.02, 7);
        assert_eq!(one.size(), [1, 4001]);
        assert!(one.equal(&seeded(4001, 0.02, 7)));
        assert!(!one.equal(&seeded(4001, 0.02, 8)));
        // 4001 draws: the deviation's own deviation is 0.02/√8002 = 0.00022, the mean's 0.00032.
        let deviation = one.std(false).double_value(&[]);
        assert!((deviation - 0.02).abs() < 0.0012, "{deviation}");
        let mean = one.mean(tch::Kind::Double).double_value(&[]);
        assert!(mean.abs() < 0.0016, "{mean}");
    }
}
