//! The work that is measured: prompts, answers and pairs as ids, the same for ours and the peer's.
//!
//! In: a vocabulary, sizes. Out: ids by fixed rules. Nothing ends early: there are no stop ids. May
//! not enter: models, text.

use serde::Serialize;

use crate::synthetic::ids;

/// Ids below this one are left out: special tokens stand there.
const FIRST_ID: usize = 100;

/// How much of everything.
pub struct Sizes {
    pub prompts: usize,
    /// Tokens of the shortest and the longest prompt.
    pub prompt_tokens: (usize, usize),
    /// Answers to each prompt.
    pub samples: usize,
    pub new_tokens: usize,
    pub pairs: usize,
    pub epochs: u32,
}

impl Sizes {
    /// 16 prompts of a line or two, 4 samples of 64 tokens, 2 epochs on 16 pairs.
    pub fn standard() -> Self {
        let prompt_tokens = (16, 61);
        Self { prompts: 16, prompt_tokens, samples: 4, new_tokens: 64, pairs: 16, epochs: 2 }
    }

    /// 16 pairs of 1,000-token prompts and 200-token answers.
    pub fn long() -> Self {
        Self { prompt_tokens: (1000, 1000), new_tokens: 200, ..Self::standard() }
    }
}

/// A pair of answers.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    #[serde(rename = "prompt_ids")]
    pub prompt: Vec<u32>,
    #[serde(rename = "chosen_ids")]
    pub chosen: Vec<u32>,
    #[serde(rename = "rejected_ids")]
    pub rejected: Vec<u32>,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Work {
    pub prompts: Vec<Vec<u32>>,
    pub samples: usize,
    pub new_tokens: usize,
    /// By prompt: its answers' ids, to be scored.
    pub answers: Vec<Vec<Vec<u32>>>,
    pub pairs: Vec<Pair>,
    pub epochs: u32,
}

impl Work {
    /// Makes it up.
    pub fn new(vocabulary: usize, sizes: &Sizes) -> Self {
        let first = if vocabulary > 2 * FIRST_ID { FIRST_ID } else { 0 };
        let draw = |stream: usize, count: usize| -> Vec<u32> {
            let all = ids((3, stream as u64), count, vocabulary - first);
            all.into_iter().map(|id| id + first as u32).collect()
        };
        let (shortest, longest) = sizes.prompt_tokens;
        // Lengths in an order without a trend: 7 is coprime to 16.
        let length = |index: usize| {
            let place = index * 7 % sizes.prompts.max(1);
            shortest + (longest - shortest) * place / sizes.prompts.saturating_sub(1).max(1)
        };
        let prompts: Vec<Vec<u32>> =
            (0..sizes.prompts).map(|index| draw(index, length(index))).collect();
        let answer = |index: usize, sample: usize| {
            // Answers that are told apart by their length too.
            let tokens = sizes.new_tokens - (index + 3 * sample) % (sizes.new_tokens / 4).max(1);
            draw(1000 + index * 64 + sample, tokens)
        };
        let answers: Vec<Vec<Vec<u32>>> = (0..sizes.prompts)
            .map(|index| (0..sizes.samples).map(|sample| answer(index, sample)).collect())
            .collect();
        let pairs = (0..sizes.pairs)
            .map(|index| Pair {
                prompt: prompts[index % sizes.prompts].clone(),
                chosen: answer(index, 0),
                rejected: answer(index, 1),
            })
            .collect();
        let (samples, new_tokens, epochs) = (sizes.samples, sizes.new_tokens, sizes.epochs);
        Self { prompts, samples, new_tokens, answers, pairs, epochs }
    }

    /// Whole conversations to be scored, those of one prompt one after the other.
    pub fn conversations(&self) -> Vec<Vec<u32>> {
        let whole = |(prompt, answers): (&Vec<u32>, &Vec<Vec<u32>>)| {
            answers.iter().map(|answer| [prompt.as_slice(), answer].concat()).collect::<Vec<_>>()
        };
        self.prompts.iter().zip(&self.answers).flat_map(whole).collect()
    }

    /// A score head for a model of that width.
    pub fn score_head(width: usize) -> Vec<f32> {
        let all = ids((5, 0), width, 2001);
        #[expect(clippy::cast_precision_loss, reason = "numbers below 2001")]
        all.into_iter().map(|id| (id as f32 - 1000.0) / 10_000.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_what_it_says() {
        let work = Work::new(49_152, &Sizes::standard());
        let lengths: Vec<usize> = work.prompts.iter().map(Vec::len).collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&16), Some(&61)));
        assert!(work.answers.iter().flatten().all(|answer| (49..=64).contains(&answer.len())));
        assert_eq!((work.pairs.len(), work.conversations().len()), (16, 64));
        assert!(work.pairs.iter().all(|pair| pair.chosen != pair.rejected));
        let all = work.prompts.iter().chain(work.answers.iter().flatten()).flatten();
        assert!(all.clone().all(|id| (100..49_152).contains(id)));
        let long = Work::new(320, &Sizes::long());
        assert!(long.pairs.iter().all(|pair| pair.prompt.len() == 1000));
    }
}
