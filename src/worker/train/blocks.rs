//! Conversations as blocks: which documents stand together, none of which sees another.
//!
//! In: documents of token ids with the tokens that are learnt. Out: [`Block`]s of at most so many
//! tokens, a function of the documents alone, so that a resumed training finds the same ones. May
//! not enter: text, tensors beyond packing, models.

use std::collections::{BTreeMap, VecDeque};

use super::pack::{Columns, Example};

/// One conversation as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// Its ids, to the end of its rendering.
    pub ids: Vec<u32>,
    /// Which of them are learnt: those that the assistant wrote, with their stop ids.
    pub learnt: Vec<bool>,
}

/// Documents that are computed together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// In their order.
    pub documents: Vec<Document>,
}

impl Document {
    /// Tokens that the loss is taken over: the first one of a document has nothing before it that
    /// could predict it.
    #[must_use]
    pub fn loss_tokens(&self) -> usize {
        self.learnt.iter().skip(1).filter(|learnt| **learnt).count()
    }
}

impl Block {
    /// The same of all its documents.
    #[must_use]
    pub fn loss_tokens(&self) -> usize {
        self.documents.iter().map(Document::loss_tokens).sum()
    }
}

impl Example for Block {
    fn add_to(&self, columns: &mut Columns) {
        for document in &self.documents {
            columns.add_document(&document.ids, &document.learnt);
        }
    }
}

/// Each document in a block of its own.
#[must_use]
pub fn apart(documents: Vec<Document>) -> Vec<Block> {
    documents.into_iter().map(|document| Block { documents: vec![document] }).collect()
}

/// Fills blocks of `block_tokens`: the longest documents first, each into the fullest block that has
/// room for it, among equals the one that reached this fill first. No document may be longer.
///
/// Source: best-fit decreasing, in the order of TRL's `pack_dataset(strategy="bfd")`.
#[must_use]
pub fn pack(documents: Vec<Document>, block_tokens: usize) -> Vec<Block> {
    let mut by_length = documents;
    by_length.sort_by_key(|document| std::cmp::Reverse(document.ids.len()));
    let mut blocks: Vec<Block> = Vec::new();
    let mut by_room: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for document in by_length {
        let tokens = document.ids.len();
        let fitting = by_room.range_mut(tokens..).find(|(_, blocks)| !blocks.is_empty());
        let found = fitting.and_then(|(room, blocks)| Some((*room, blocks.pop_front()?)));
        let (room, index) = found.unwrap_or_else(|| {
            blocks.push(Block::default());
            (block_tokens, blocks.len() - 1)
        });
        blocks[index].documents.push(document);
        if by_room.get(&room).is_some_and(VecDeque::is_empty) {
            by_room.remove(&room);
        }
        by_room.entry(room.saturating_sub(tokens)).or_default().push_back(index);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(line: usize, tokens: usize) -> Document {
        Document { line, ids: vec![7; tokens], learnt: vec![true; tokens] }
    }

    fn lines(blocks: &[Block]) -> Vec<Vec<usize>> {
        blocks.iter().map(|block| block.documents.iter().map(|d| d.line).collect()).collect()
    }

    #[test]
    fn the_longest_come_first_and_each_goes_where_it_fits_best() {
        // Lengths 5, 2, 3, 1 into blocks of 5: 5 | 3 then 2 into its room of 2 | 1 opens a third.
        let documents = vec![document(1, 5), document(2, 2), document(3, 3), document(4, 1)];
        assert_eq!(lines(&pack(documents, 5)), [vec![1], vec![3, 2], vec![4]]);
        // Rooms 1 and 3 after 7 and 5: the 1 goes into the room of 1, not into the larger one.
        let documents = vec![document(1, 1), document(2, 5), document(3, 7)];
        assert_eq!(lines(&pack(documents, 8)), [vec![3, 1], vec![2]]);
        // Equals keep the order of the file.
        let documents = vec![document(1, 2), document(2, 2), document(3, 2)];
        assert_eq!(lines(&pack(documents, 4)), [vec![1, 2], vec![3]]);
        assert!(pack(Vec::new(), 4).is_empty());
    }

    #[test]
    fn every_document_stands_once_and_no_block_overflows() {
        let documents: Vec<Document> =
            (0..500).map(|line| document(line, 1 + (line * line * 7 + line) % 61)).collect();
        let blocks = pack(documents, 64);
        let mut seen: Vec<usize> = lines(&blocks).concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        let fill = |block: &Block| block.documents.iter().map(|d| d.ids.len()).sum::<usize>();
        let mut fills: Vec<usize> = blocks.iter().map(fill).collect();
        fills.sort_unstable();
        assert!(fills.iter().all(|fill| (1..=64).contains(fill)));
        assert!(fills[0] + fills[1] > 64, "two blocks could be one");
    }

    #[test]
    fn the_first_token_of_a_document_is_in_no_loss() {
        let two = Block { documents: vec![document(1, 3), document(2, 1)] };
        assert_eq!(two.loss_tokens(), 2);
    }
}
