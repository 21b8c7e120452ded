//! Preferences among the responses to one prompt, as a reward model learns them.
//!
//! In: whole conversations as token ids, and which of them won against which. Out: a [`Group`] that
//! a micro-batch takes: each conversation is computed once, and their common beginning once for all.
//! A pair is a group of two. May not enter: text, losses, models.

use tch::{Device, Tensor};

use super::pack::{Columns, Example};

/// Two responses of a group, one of which is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The better one's index.
    pub chosen: usize,
    /// The other one's.
    pub rejected: usize,
    /// How far their scores are asked to lie apart; usually 0.
    pub apart: f64,
}

/// Conversations that begin with the same prompt, and the preferences among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// The ids of each whole conversation.
    pub conversations: Vec<Vec<u32>>,
    /// Tokens of each response's text alone.
    pub response_tokens: Vec<usize>,
    /// At least one; indices into `conversations`, each of which is in one at least.
    pub pairs: Vec<Ranked>,
    /// Where the line says that it comes from.
    pub source: Option<String>,
    /// A sum over the prompt: equal prompts have equal sums.
    pub prompt_sum: [u8; 32],
}

impl Group {
    /// The same group with these of its pairs only, and with the responses that they need.
    #[must_use]
    pub fn with_pairs(self, keep: impl Fn(&Ranked) -> bool) -> Option<Self> {
        let pairs: Vec<Ranked> = self.pairs.iter().copied().filter(keep).collect();
        let used = |index: usize| pairs.iter().any(|p| p.chosen == index || p.rejected == index);
        let kept: Vec<usize> = (0..self.conversations.len()).filter(|i| used(*i)).collect();
        let place = |index: usize| kept.iter().position(|kept| *kept == index);
        let pairs = pairs.iter().map(|pair| {
            let (chosen, rejected) = (place(pair.chosen)?, place(pair.rejected)?);
            Some(Ranked { chosen, rejected, ..*pair })
        });
        let pairs: Vec<Ranked> = pairs.collect::<Option<_>>()?;
        let conversations = kept.iter().map(|index| self.conversations[*index].clone()).collect();
        let response_tokens = kept.iter().map(|index| self.response_tokens[*index]).collect();
        (!pairs.is_empty()).then_some(Self { conversations, response_tokens, pairs, ..self })
    }
}

impl Example for Group {
    fn add_to(&self, columns: &mut Columns) {
        let whole: Vec<&[u32]> = self.conversations.iter().map(Vec::as_slice).collect();
        columns.add_conversations(&whole);
    }
}

/// The pairs of a micro-batch of groups, as places among its sequences.
pub struct Sides {
    /// i64 `[pairs]`.
    pub chosen: Tensor,
    /// i64 `[pairs]`.
    pub rejected: Tensor,
    /// f32 `[pairs]`: how far the scores are asked to lie apart.
    pub apart: Tensor,
}

impl Sides {
    /// Those of `groups`, in their order.
    #[must_use]
    pub fn of<'a>(groups: impl Iterator<Item = &'a Group>, device: Device) -> Self {
        let (mut chosen, mut rejected, mut apart) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = 0;
        for group in groups {
            for pair in &group.pairs {
                chosen.push(index(before + pair.chosen));
                rejected.push(index(before + pair.rejected));
                #[expect(clippy::cast_possible_truncation, reason = "scores are f32 too")]
                apart.push(pair.apart as f32);
            }
            before += group.conversations.len();
        }
        let places = |places: &[i64]| Tensor::from_slice(places).to_device(device);
        Self {
            chosen: places(&chosen),
            rejected: places(&rejected),
            apart: Tensor::from_slice(&apart).to_device(device),
        }
    }
}

fn index(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rotary::Tree;
    use crate::train::pack::Packed;

    fn group(conversations: &[&[u32]], pairs: &[(usize, usize)]) -> Group {
        let ranked = |&(chosen, rejected): &(usize, usize)| Ranked { chosen, rejected, apart: 0.5 };
        Group {
            line: 1,
            conversations: conversations.iter().map(|ids| ids.to_vec()).collect(),
            response_tokens: conversations.iter().map(|ids| ids.len()).collect(),
            pairs: pairs.iter().map(ranked).collect(),
            source: None,
            prompt_sum: [0; 32],
        }
    }

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::<i64>::try_from(tensor.view(-1)).unwrap()
    }

    #[test]
    fn each_conversation_stands_once_and_so_does_their_beginning() {
        let one = group(&[&[7, 8, 2], &[7, 8, 9, 2], &[7, 8, 5, 6, 2]], &[(0, 1), (0, 2), (1, 2)]);
        let two = group(&[&[3, 2], &[4, 2]], &[(1, 0)]);
        let packed = Packed::new(&[&one, &two], Device::Cpu);
        let tree = Tree { trunk: 2, branches: vec![1, 2, 3] };
        assert_eq!(packed.trees, [tree, Tree::plain(2), Tree::plain(2)]);
        assert_eq!(values(&packed.ids), [7, 8, 2, 9, 2, 5, 6, 2, 3, 2, 4, 2]);
        assert_eq!(values(&packed.last), [2, 4, 7, 9, 11]);
        let sides = Sides::of([&one, &two].into_iter(), Device::Cpu);
        assert_eq!(values(&sides.chosen), [0, 0, 1, 4]);
        assert_eq!(values(&sides.rejected), [1, 2, 2, 3]);
    }

    #[test]
    fn a_response_that_no_pair_needs_goes_with_its_pairs() {
        let whole = group(&[&[1], &[2], &[3]], &[(0, 1), (2, 1), (2, 0)]);
        let left = whole.clone().with_pairs(|pair| pair.chosen != 0 && pair.rejected != 0).unwrap();
        assert_eq!(left.conversations, [[2], [3]]);
        assert_eq!((left.pairs.len(), left.pairs[0].chosen, left.pairs[0].rejected), (1, 1, 0));
        assert!(whole.with_pairs(|_| false).is_none());
    }
}
