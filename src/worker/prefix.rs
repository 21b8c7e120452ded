//! Sequences that begin alike, laid out so that their beginning is computed once.
//!
//! In: sequences of ids, in their order. Out: a [`Forest`]: one row of ids, the trees that it is made
//! of, and where each position of each sequence stands in it. The values are those that the sequences
//! would have alone, but for rounding. May not enter: tensors, text.

use crate::model::rotary::Tree;

/// A shared beginning shorter than this is computed again: cutting attention in two costs more.
const SHARED_MIN: usize = 16;

/// Sequences in one row.
#[derive(Debug, PartialEq, Eq)]
pub struct Forest {
    /// All ids, a tree after the other.
    pub ids: Vec<i64>,
    /// How the row is cut.
    pub trees: Vec<Tree>,
    places: Vec<Place>,
}

/// Where a sequence stands in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    trunk: usize,
    shared: usize,
    branch: usize,
}

impl Forest {
    /// Lays out sequences; neighbours that begin alike share their beginning. Each keeps at least
    /// its last id for itself.
    #[must_use]
    pub fn of(sequences: &[&[u32]]) -> Self {
        let mut forest = Self { ids: Vec::new(), trees: Vec::new(), places: Vec::new() };
        let mut rest = sequences;
        while !rest.is_empty() {
            let (count, shared) = alike(rest);
            let (group, after) = rest.split_at(count);
            forest.plant(group, shared);
            rest = after;
        }
        forest
    }

    fn plant(&mut self, group: &[&[u32]], shared: usize) {
        let trunk = self.ids.len();
        let push =
            |ids: &mut Vec<i64>, part: &[u32]| ids.extend(part.iter().map(|id| i64::from(*id)));
        if let Some(first) = group.first() {
            push(&mut self.ids, &first[..shared]);
        }
        let mut branches = Vec::new();
        for sequence in group {
            self.places.push(Place { trunk, shared, branch: self.ids.len() });
            if sequence.len() > shared {
                branches.push((sequence.len() - shared) as i64);
                push(&mut self.ids, &sequence[shared..]);
            }
        }
        self.trees.push(Tree { trunk: shared as i64, branches });
    }

    /// The column of position `index` of sequence `sequence`.
    #[must_use]
    pub fn column(&self, sequence: usize, index: usize) -> i64 {
        let place = self.places[sequence];
        let column = if index < place.shared {
            place.trunk + index
        } else {
            place.branch + index - place.shared
        };
        column as i64
    }
}

/// How many of the first sequences begin alike, and in how many ids. A sequence alone is a trunk.
fn alike(sequences: &[&[u32]]) -> (usize, usize) {
    let Some(first) = sequences.first() else { return (0, 0) };
    let mut shared = first.len().saturating_sub(1);
    let mut count = 1;
    for sequence in &sequences[1..] {
        let common = first[..shared].iter().zip(*sequence).take_while(|(a, b)| a == b).count();
        let common = common.min(sequence.len().saturating_sub(1));
        // One more sequence must not cost those before it much of what they share.
        let loses = count > 1 && common * 4 < shared * 3;
        if common < SHARED_MIN || loses {
            break;
        }
        shared = common;
        count += 1;
    }
    if count == 1 { (1, first.len()) } else { (count, shared) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of a sequence, read back from where they stand.
    fn read(forest: &Forest, sequence: usize, length: usize) -> Vec<i64> {
        (0..length).map(|index| forest.ids[forest.column(sequence, index) as usize]).collect()
    }

    #[test]
    fn every_sequence_is_found_again_and_beginnings_stand_once() {
        let prompt: Vec<u32> = (100..120).collect();
        let other: Vec<u32> = (200..230).collect();
        let with = |prompt: &[u32], rest: &[u32]| [prompt, rest].concat();
        let sequences = [
            with(&prompt, &[1, 2, 3]),
            with(&prompt, &[1]),
            with(&prompt, &[4]),
            with(&other, &[]),
            with(&other, &[]),
            vec![7],
            with(&prompt, &[9]),
        ];
        let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let forest = Forest::of(&borrowed);
        for (index, sequence) in sequences.iter().enumerate() {
            let ids: Vec<i64> = sequence.iter().map(|id| i64::from(*id)).collect();
            assert_eq!(read(&forest, index, ids.len()), ids, "sequence {index}");
        }
        let tree = |trunk, branches: &[i64]| Tree { trunk, branches: branches.to_vec() };
        // Equal sequences keep their last id apart; the lone last prompt is a trunk of its own.
        let wanted = [tree(20, &[3, 1, 1]), tree(29, &[1, 1]), tree(1, &[]), tree(21, &[])];
        assert_eq!(forest.trees, wanted);
        let tokens: i64 = forest.trees.iter().map(Tree::tokens).sum();
        assert_eq!(tokens as usize, forest.ids.len());
    }

    #[test]
    fn a_short_common_beginning_is_not_shared_and_a_long_one_is_not_given_up() {
        let system: Vec<u32> = (0..20).collect();
        let question: Vec<u32> = (50..90).collect();
        let deep = [system.as_slice(), &question, &[1]].concat();
        let deeper = [system.as_slice(), &question, &[2]].concat();
        let shallow = [system.as_slice(), &[3, 4, 5]].concat();
        let forest = Forest::of(&[&deep, &deeper, &shallow]);
        assert_eq!(forest.trees[0], Tree { trunk: 60, branches: vec![1, 1] });
        assert_eq!(forest.trees.len(), 2);
        assert_eq!(Forest::of(&[&[1, 2, 3], &[1, 2, 4]]).trees.len(), 2);
    }
}
