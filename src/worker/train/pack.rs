//! A micro-batch as tensors: token ids one after the other, and where learnt ids are predicted.
//!
//! In: examples (pairs, or blocks of documents) as token ids. Out: one row of ids without padding. A
//! pair stands there as a tree: what its two sides share once, then the rest of the chosen side, then
//! the rest of the rejected one, so that a shared prompt is computed once, forward and backward. A
//! document stands alone. Nothing here ever looks at a pad id. May not enter: models, losses.

use tch::{Device, Tensor};

use crate::model::Transformer;
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
    /// Its share in the mean of its step, against the other pairs' weights; above 0, usually 1.
    pub weight: f64,
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

/// What a micro-batch is made of.
pub trait Example {
    /// Writes its sequences behind those that stand there.
    fn add_to(&self, columns: &mut Columns);
}

/// Examples as one row of trees. Of pairs, sequence 2i is pair i's chosen side, 2i + 1 its rejected
/// one; of blocks, each document is a sequence.
pub struct Packed {
    /// i64 `[1, tokens]`.
    pub ids: Tensor,
    /// A tree a pair, two plain sequences where its sides share nothing; a plain sequence a document.
    pub trees: Vec<Tree>,
    /// i64 `[positions]`: where learnt ids are predicted. Of a pair, from the prompt's last position
    /// (which serves both responses) to the one before the sequence's last.
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
pub struct Columns {
    ids: Vec<i64>,
    trees: Vec<Tree>,
    predicting: Vec<i64>,
    targets: Vec<i64>,
    sequence_of: Vec<i64>,
    last: Vec<i64>,
}

impl Example for TokenPair {
    fn add_to(&self, columns: &mut Columns) {
        columns.add_pair(self);
    }
}

impl Columns {
    /// A sequence on its own. `learnt` says of each id whether it is predicted; the first never is.
    pub fn add_document(&mut self, ids: &[u32], learnt: &[bool]) {
        let (start, sequence) = (self.ids.len(), index(self.last.len()));
        for (place, (id, learnt)) in ids.iter().zip(learnt).enumerate() {
            if *learnt && place > 0 {
                self.predicting.push(index(start + place - 1));
                self.targets.push(i64::from(*id));
                self.sequence_of.push(sequence);
            }
        }
        self.ids.extend(ids.iter().map(|id| i64::from(*id)));
        self.last.push(index(self.ids.len().saturating_sub(1)));
        self.trees.push(Tree::plain(index(ids.len())));
    }

    /// Whole conversations of which nothing is predicted (a reward model reads their last positions):
    /// their common beginning, short of each one's last id, stands once.
    pub fn add_conversations(&mut self, conversations: &[&[u32]]) {
        let Some((first, others)) = conversations.split_first() else { return };
        let shared = others.iter().fold(first.len().saturating_sub(1), |shared, other| {
            let most = shared.min(other.len().saturating_sub(1));
            first.iter().zip(*other).take(most).take_while(|(a, b)| a == b).count()
        });
        self.ids.extend(first[..shared].iter().map(|id| i64::from(*id)));
        let mut lengths = Vec::with_capacity(conversations.len());
        for conversation in conversations {
            self.ids.extend(conversation[shared..].iter().map(|id| i64::from(*id)));
            self.last.push(index(self.ids.len().saturating_sub(1)));
            lengths.push(index(conversation.len() - shared));
        }
        if shared > 0 {
            self.trees.push(Tree { trunk: index(shared), branches: lengths });
        } else {
            self.trees.extend(lengths.into_iter().map(Tree::plain));
        }
    }

    fn add_pair(&mut self, pair: &TokenPair) {
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
    /// Packs `examples` for a model: ids where they come in, the rest where its head is. One without ids
    /// to learn is refused where they are read.
    #[must_use]
    pub fn of<E: Example>(examples: &[&E], model: &Transformer) -> Self {
        Self::laid(examples, (model.device(), model.head_device()))
    }

    /// Packs `examples` for a model on a single device.
    #[must_use]
    pub fn new<E: Example>(examples: &[&E], device: Device) -> Self {
        Self::laid(examples, (device, device))
    }

    fn laid<E: Example>(examples: &[&E], (first, head): (Device, Device)) -> Self {
        let mut columns = Columns::default();
        for example in examples {
            example.add_to(&mut columns);
        }
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(head);
        Self {
            ids: Tensor::from_slice(&columns.ids).to_device(first).unsqueeze(0),
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

    /// Sequences: twice the number of pairs, or the number of documents.
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
            weight: 1.0,
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

    #[test]
    fn documents_stand_alone_and_only_learnt_ids_are_predicted() {
        use crate::train::blocks::{Block, Document};
        let document = |ids: &[u32], learnt: &[bool]| Document {
            line: 1,
            ids: ids.to_vec(),
            learnt: learnt.to_vec(),
        };
        let block = Block {
            documents: vec![
                document(&[7, 8, 9, 2], &[false, false, true, true]),
                document(&[5, 6, 2], &[true, false, true]),
            ],
        };
        let packed = Packed::new(&[&block], Device::Cpu);
        assert_eq!(packed.trees, [Tree::plain(4), Tree::plain(3)]);
        assert_eq!(values(&packed.ids), [7, 8, 9, 2, 5, 6, 2]);
        // The 5 begins its document: what stands before it is another one's end.
        assert_eq!(values(&packed.predicting), [1, 2, 5]);
        assert_eq!(values(&packed.targets), [9, 2, 2]);
        assert_eq!(values(&packed.sequence_of), [0, 0, 1]);
        assert_eq!(packed.sequences(), 2);
    }
}
