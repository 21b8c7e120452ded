//! A micro-batch as tensors: token ids one after the other, and where the responses are predicted.
//!
//! In: pairs of token ids. Out: one row of ids without padding. A pair stands there as a tree: what
//! its two sides share once, then the rest of the chosen side, then the rest of the rejected one, so
//! that a shared prompt is computed once, forward and backward. Nothing here ever looks at a pad id.
//! May not enter: models, losses.

use tch::{Device, Tensor};

use crate::model::rotary::Tree;

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
    /// The two sides without their prompt.
    fn sides(&self) -> [&[u32]; 2] {
        [&self.chosen, &self.rejected]
    }

    /// How many ids the two whole sides share for the tree: the prompt, or, where there is none
    /// (whole conversations of a reward model), their common beginning, short of either's last id.
    fn shared(&self) -> usize {
        if !self.prompt.is_empty() {
            return self.prompt.len();
        }
        let [chosen, rejected] = self.sides();
        let most = chosen.len().min(rejected.len()).saturating_sub(1);
        chosen.iter().zip(rejected).take(most).take_while(|(a, b)| a == b).count()
    }

    /// Tokens of the longer side.
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// Pairs as one row of trees: sequence 2i is pair i's chosen side, 2i + 1 its rejected one.
pub struct Packed {
    /// i64 `[1, tokens]`.
    pub ids: Tensor,
    /// A tree a pair; two plain sequences where its sides share nothing.
    pub trees: Vec<Tree>,
    /// i64 `[positions]`: where response ids are predicted, from the prompt's last position (which
    /// serves both responses) to the one before the sequence's last.
    pub predicting: Tensor,
    /// i64 `[positions]`: the ids that follow there.
    pub targets: Tensor,
    /// i64 `[positions]`: the sequence that each position belongs to.
    pub sequence_of: Tensor,
    /// i64 `[sequences]`: each sequence's last position.
    pub last: Tensor,
}

/// The same, still in host vectors.
#[derive(Default)]
struct Columns {
    ids: Vec<i64>,
    trees: Vec<Tree>,
    predicting: Vec<i64>,
    targets: Vec<i64>,
    sequence_of: Vec<i64>,
    last: Vec<i64>,
}

impl Columns {
    fn add(&mut self, pair: &TokenPair) {
        let shared = pair.shared();
        let start = self.ids.len();
        let trunk = if pair.prompt.is_empty() { &pair.chosen[..shared] } else { &pair.prompt };
        self.ids.extend(trunk.iter().map(|id| i64::from(*id)));
        let mut lengths = Vec::with_capacity(2);
        for side in pair.sides() {
            let rest = if pair.prompt.is_empty() { &side[shared..] } else { side };
            let sequence = index(self.last.len());
            let own = self.ids.len();
            // Without a prompt nothing is predicted: a reward model reads the last position alone.
            if !pair.prompt.is_empty() {
                for (place, id) in rest.iter().enumerate() {
                    let before = if place == 0 { start + shared } else { own + place };
                    self.predicting.push(index(before - 1));
                    self.targets.push(i64::from(*id));
                    self.sequence_of.push(sequence);
                }
            }
            self.ids.extend(rest.iter().map(|id| i64::from(*id)));
            self.last.push(index(self.ids.len().saturating_sub(1)));
            lengths.push(index(rest.len()));
        }
        if shared > 0 {
            self.trees.push(Tree { trunk: index(shared), branches: lengths });
        } else {
            self.trees.extend(lengths.into_iter().map(Tree::plain));
        }
    }
}

impl Packed {
    /// Packs `pairs` onto `device`. A pair without response ids is refused where pairs are read.
    #[must_use]
    pub fn new(pairs: &[&TokenPair], device: Device) -> Self {
        let mut columns = Columns::default();
        for pair in pairs {
            columns.add(pair);
        }
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            ids: tensor(&columns.ids).unsqueeze(0),
            predicting: tensor(&columns.predicting),
            targets: tensor(&columns.targets),
            sequence_of: tensor(&columns.sequence_of),
            last: tensor(&columns.last),
            trees: columns.trees,
        }
    }

    /// Tokens that are computed.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.ids.numel() as u64
    }

    /// Sequences, twice the number of pairs.
    #[must_use]
    pub fn sequences(&self) -> i64 {
        self.last.numel() as i64
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

    fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> TokenPair {
        TokenPair {
            prompt: prompt.to_vec(),
            chosen: chosen.to_vec(),
            rejected: rejected.to_vec(),
            reference: None,
        }
    }

    #[test]
    fn a_prompt_stands_once_and_its_last_position_predicts_both_responses() {
        let one = pair(&[7, 8], &[9, 2], &[5]);
        let packed = Packed::new(&[&one, &one], Device::Cpu);
        let tree = Tree { trunk: 2, branches: vec![2, 1] };
        assert_eq!(packed.trees, [tree.clone(), tree]);
        assert_eq!((packed.tokens(), packed.sequences()), (10, 4));
        assert_eq!(values(&packed.ids), [7, 8, 9, 2, 5, 7, 8, 9, 2, 5]);
        // Position 1 (id 8) predicts 9 and 5, position 2 (id 9) predicts 2.
        assert_eq!(values(&packed.predicting), [1, 2, 1, 6, 7, 6]);
        assert_eq!(values(&packed.targets), [9, 2, 5, 9, 2, 5]);
        assert_eq!(values(&packed.sequence_of), [0, 0, 1, 2, 2, 3]);
        assert_eq!(values(&packed.last), [3, 4, 8, 9]);
    }

    #[test]
    fn whole_conversations_share_their_common_beginning_but_never_a_last_id() {
        let packed = Packed::new(&[&pair(&[], &[7, 8, 2], &[7, 8, 2, 3])], Device::Cpu);
        assert_eq!(packed.trees, [Tree { trunk: 2, branches: vec![1, 2] }]);
        assert_eq!(values(&packed.ids), [7, 8, 2, 2, 3]);
        assert_eq!(values(&packed.last), [2, 4]);
        let packed = Packed::new(&[&pair(&[], &[7, 2], &[8])], Device::Cpu);
        assert_eq!(packed.trees, [Tree::plain(2), Tree::plain(1)]);
        assert_eq!((values(&packed.ids), values(&packed.last)), (vec![7, 2, 8], vec![1, 2]));
        assert_eq!(packed.sequences(), 2);
    }
}
