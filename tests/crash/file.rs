//! A file's bytes: those that last, and those that a power cut may take.
//!
//! Comes in: writes, cuts and syncs. Goes out: bytes as a power cut might leave them. May not enter: names.

use std::collections::HashMap;

use crate::chance::{Chance, Kept};

enum Edit<'a> {
    Write { offset: u64, data: &'a [u8] },
    Cut { size: u64 },
}

/// What lasts, and what was done since.
#[derive(Default)]
pub struct Data<'a> {
    lasting: Vec<u8>,
    waiting: Vec<Edit<'a>>,
}

impl<'a> Data<'a> {
    pub fn write(&mut self, offset: u64, data: &'a [u8]) {
        self.waiting.push(Edit::Write { offset, data });
    }

    pub fn cut(&mut self, size: u64) {
        self.waiting.push(Edit::Cut { size });
    }

    pub fn sync(&mut self) {
        for edit in std::mem::take(&mut self.waiting) {
            let size = edit.size_after(self.lasting.len());
            edit.apply(&mut self.lasting, |_| true);
            self.lasting.resize(size, 0);
        }
    }

    /// Bytes as a power cut might leave them.
    pub fn cut_off(&self, chance: &mut Chance) -> Vec<u8> {
        let block = match chance.of_a_file() {
            Kept::Nothing => return self.lasting.clone(),
            Kept::Everything => None,
            Kept::Blocks(bytes) => Some(bytes),
        };
        let mut sizes = vec![self.lasting.len()];
        for edit in &self.waiting {
            sizes.push(edit.size_after(sizes[sizes.len() - 1]));
        }
        let mut bytes = self.lasting.clone();
        // A cut reaches as far as the file ever did.
        bytes.resize(sizes.iter().copied().max().unwrap_or(0), 0);
        match block {
            None => self.waiting.iter().for_each(|edit| edit.apply(&mut bytes, |_| true)),
            Some(block) => self.some_blocks(&mut bytes, block, chance),
        }
        let size = match block {
            None => sizes[sizes.len() - 1],
            Some(_) => sizes[chance.below(sizes.len())],
        };
        bytes.truncate(size);
        bytes
    }

    /// Of each block one of the versions that it had.
    fn some_blocks(&self, bytes: &mut Vec<u8>, block: usize, chance: &mut Chance) {
        let end = bytes.len();
        let mut versions: HashMap<usize, usize> = HashMap::new();
        for edit in &self.waiting {
            for touched in edit.blocks(block, end) {
                *versions.entry(touched).or_default() += 1;
            }
        }
        let mut left: HashMap<usize, usize> = HashMap::new();
        let mut order: Vec<_> = versions.into_iter().collect();
        order.sort_unstable();
        for (touched, versions) in order {
            left.insert(touched, chance.below(versions + 1));
        }
        for edit in &self.waiting {
            let taken: Vec<usize> = edit
                .blocks(block, end)
                .filter(|touched| {
                    let left = left.get_mut(touched).expect("it was counted");
                    let takes = *left > 0;
                    *left = left.saturating_sub(1);
                    takes
                })
                .collect();
            edit.apply(bytes, |at| taken.binary_search(&(at / block)).is_ok());
            bytes.resize(end, 0);
        }
    }
}

impl Edit<'_> {
    fn size_after(&self, before: usize) -> usize {
        match self {
            Self::Write { offset, data } => before.max(index(*offset) + data.len()),
            Self::Cut { size } => index(*size),
        }
    }

    /// Blocks that it changes of a file that ends at `end`.
    fn blocks(&self, block: usize, end: usize) -> std::ops::Range<usize> {
        let (from, to) = match self {
            Self::Write { offset, data } => (index(*offset), index(*offset) + data.len()),
            Self::Cut { size } => (index(*size), end.max(index(*size))),
        };
        from / block..to.div_ceil(block)
    }

    /// Changes the bytes whose places are `taken`; the size only so far as it must.
    fn apply(&self, bytes: &mut Vec<u8>, taken: impl Fn(usize) -> bool) {
        match self {
            Self::Write { offset, data } => {
                let from = index(*offset);
                bytes.resize(bytes.len().max(from + data.len()), 0);
                let places = bytes[from..].iter_mut().zip(*data).enumerate();
                places.filter(|(at, _)| taken(from + at)).for_each(|(_, (old, new))| *old = *new);
            }
            Self::Cut { size } => {
                let from = index(*size).min(bytes.len());
                let places = bytes[from..].iter_mut().enumerate();
                places.filter(|(at, _)| taken(from + at)).for_each(|(_, old)| *old = 0);
            }
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a file that fits the memory")
}
