//! A micro-batch as tensors: sequences of ids one after the other, and where the responses are
//! predicted.
//!
//! In: pairs of token ids. Out: one row of ids without padding, chosen and rejected of a pair side
//! by side, with the indices of the predicting positions. Nothing here ever looks at a pad id. May
//! not enter: models, losses.

use tch::{Device, Tensor};

/// One pair as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenPair {
    /// The prompt's ids, with the generation prompt.
    pub prompt: Vec<u32>,
    /// The chosen response's ids.
    pub chosen: Vec<u32>,
    /// The rejected response's ids.
    pub rejected: Vec<u32>,
    /// The reference's summed log-probs of chosen and rejected, in nats; None where they are not
    /// known yet, or not needed (reward model).
    pub reference: Option<(f64, f64)>,
}

impl TokenPair {
    /// The two sequences, each with the length of its prompt.
    fn sequences(&self) -> [(usize, Vec<i64>); 2] {
        [&self.chosen, &self.rejected].map(|response| {
            let ids = self.prompt.iter().chain(response).map(|id| i64::from(*id)).collect();
            (self.prompt.len(), ids)
        })
    }

    /// Tokens of the longer side.
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// Pairs as one row of sequences: sequence 2i is pair i's chosen side, 2i + 1 its rejected one.
pub struct Packed {
    /// i64 `[1, tokens]`.
    pub ids: Tensor,
    /// The sequences' lengths, in order.
    pub lengths: Vec<i64>,
    /// i64 `[positions]`: where response ids are predicted, from the prompt's last position to the
    /// one before the sequence's last.
    pub predicting: Tensor,
    /// i64 `[positions]`: the ids that follow there.
    pub targets: Tensor,
    /// i64 `[positions]`: the sequence that each position belongs to.
    pub sequence_of: Tensor,
    /// i64 `[sequences]`: each sequence's last position.
    pub last: Tensor,
}

impl Packed {
    /// Packs `pairs` onto `device`. A pair without a prompt or without response ids is refused
    /// where pairs are read.
    #[must_use]
    pub fn new(pairs: &[&TokenPair], device: Device) -> Self {
        let (mut ids, mut lengths) = (Vec::new(), Vec::new());
        let (mut predicting, mut targets, mut sequence_of) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = Vec::new();
        for (prompt, sequence) in pairs.iter().flat_map(|pair| pair.sequences()) {
            let start = ids.len();
            for (position, id) in sequence.iter().enumerate().skip(prompt.max(1)) {
                predicting.push(index(start + position - 1));
                targets.push(*id);
                sequence_of.push(index(lengths.len()));
            }
            last.push(index((start + sequence.len()).saturating_sub(1)));
            lengths.push(index(sequence.len()));
            ids.extend(sequence);
        }
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            ids: tensor(&ids).unsqueeze(0),
            lengths,
            predicting: tensor(&predicting),
            targets: tensor(&targets),
            sequence_of: tensor(&sequence_of),
            last: tensor(&last),
        }
    }

    /// Tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.ids.numel() as u64
    }

    /// Sequences, twice the number of pairs.
    #[must_use]
    pub fn sequences(&self) -> i64 {
        index(self.lengths.len())
    }
}

fn index(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::<i64>::try_from(&tensor.view(-1)).unwrap()
    }

    #[test]
    fn predicting_positions_run_from_the_prompts_last_to_the_one_before_the_end() {
        let pair = TokenPair {
            prompt: vec![7, 8],
            chosen: vec![9, 2],
            rejected: vec![5],
            reference: None,
        };
        let packed = Packed::new(&[&pair, &pair], Device::Cpu);
        assert_eq!(packed.lengths, [4, 3, 4, 3]);
        assert_eq!((packed.tokens(), packed.sequences()), (14, 4));
        assert_eq!(values(&packed.ids), [7, 8, 9, 2, 7, 8, 5, 7, 8, 9, 2, 7, 8, 5]);
        // Position 1 (id 8) predicts 9, position 2 predicts 2; position 4 + 1 predicts 5.
        assert_eq!(values(&packed.predicting), [1, 2, 5, 8, 9, 12]);
        assert_eq!(values(&packed.targets), [9, 2, 5, 9, 2, 5]);
        assert_eq!(values(&packed.sequence_of), [0, 0, 1, 2, 2, 3]);
        assert_eq!(values(&packed.last), [3, 6, 10, 13]);
    }
}
