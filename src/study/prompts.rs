//! Prompts: combinations of what may be asked, and who gets which of them.
//!
//! In: a seed and sizes. Out: [`Prompt`]s in slices that share none. A hash of the combination alone
//! decides whether it is held out, in every seed the same. May not enter: answers.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::rng::Rng;
use crate::words::{ADVERBS, COUNTS, OPENERS, PLACES, PREPOSITIONS, STYLES};

/// One combination; places in the lists of `words`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prompt {
    /// How many sentences, less one.
    pub count: usize,
    /// Plain or vivid.
    pub style: usize,
    /// The preposition to be used.
    pub side: usize,
    /// Where.
    pub place: usize,
    /// The opener to be used.
    pub opener: usize,
    /// The adverb to be used.
    pub manner: usize,
}

/// How many combinations there are.
pub const SPACE: usize =
    COUNTS.len() * STYLES.len() * PREPOSITIONS.len() * PLACES.len() * OPENERS.len() * ADVERBS.len();

/// Of so many combinations one is held out.
const HELD_OUT_OF: u64 = 10;

impl Prompt {
    /// Its text, as the user says it.
    pub fn text(&self) -> String {
        [
            COUNTS[self.count],
            STYLES[self.style],
            PREPOSITIONS[self.side],
            PLACES[self.place],
            OPENERS[self.opener],
            ADVERBS[self.manner],
        ]
        .join(" ")
    }

    /// The prompt of a text.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [count, style, side, place, opener, manner] = words.as_slice() else {
            return None;
        };
        let at = |list: &[&str], word: &str| list.iter().position(|known| *known == word);
        Some(Self {
            count: at(&COUNTS, count)?,
            style: at(&STYLES, style)?,
            side: at(&PREPOSITIONS, side)?,
            place: at(&PLACES, place)?,
            opener: at(&OPENERS, opener)?,
            manner: at(&ADVERBS, manner)?,
        })
    }

    /// Whether it is kept from every training, in every seed.
    pub fn is_held_out(&self) -> bool {
        let digest = Sha256::digest(format!("held out: {}", self.text()));
        let value = digest.iter().take(8).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        value % HELD_OUT_OF == 0
    }

    /// Whether it asks for adjectives.
    pub fn is_vivid(&self) -> bool {
        self.style == 1
    }

    /// How many sentences it asks for.
    pub fn sentences(&self) -> usize {
        self.count + 1
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..SPACE).map(|index| {
            let mut rest = index;
            let mut digit = |size: usize| {
                let digit = rest % size;
                rest /= size;
                digit
            };
            Self {
                count: digit(COUNTS.len()),
                style: digit(STYLES.len()),
                side: digit(PREPOSITIONS.len()),
                place: digit(PLACES.len()),
                opener: digit(OPENERS.len()),
                manner: digit(ADVERBS.len()),
            }
        })
    }
}

/// How many prompts each use gets.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Supervised fine-tuning.
    pub sft: usize,
    /// What the annotator sees for the reward model.
    pub labels: usize,
    /// What the annotator of the weak reward model sees.
    pub weak_labels: usize,
    /// All iterations together.
    pub iterations: usize,
    /// Held out: the figures.
    pub evaluation: usize,
    /// Held out: choosing the best iteration by score.
    pub validation: usize,
}

/// The prompts of one seed, by use; no prompt is in two of them.
#[derive(Debug, Clone)]
pub struct Slices {
    /// See [`Sizes`].
    pub sft: Vec<Prompt>,
    /// See [`Sizes`].
    pub labels: Vec<Prompt>,
    /// See [`Sizes`].
    pub weak_labels: Vec<Prompt>,
    /// In the order in which iterations take them.
    pub iterations: Vec<Prompt>,
    /// See [`Sizes`].
    pub evaluation: Vec<Prompt>,
    /// See [`Sizes`].
    pub validation: Vec<Prompt>,
}

impl Slices {
    /// Cuts the space for one seed.
    ///
    /// Errors: more prompts are asked for than there are.
    pub fn cut(seed: u64, sizes: &Sizes) -> Result<Self> {
        let (mut held_out, mut trained): (Vec<Prompt>, Vec<Prompt>) =
            Prompt::all().partition(Prompt::is_held_out);
        let mut rng = Rng::new(seed, "prompts");
        rng.shuffle(&mut held_out);
        rng.shuffle(&mut trained);
        let wanted = sizes.sft + sizes.labels + sizes.weak_labels + sizes.iterations;
        ensure!(wanted <= trained.len(), "{wanted} of {} prompts are wanted", trained.len());
        let kept = sizes.evaluation + sizes.validation;
        ensure!(kept <= held_out.len(), "{kept} of {} held-out prompts are wanted", held_out.len());
        let mut take = |count: usize| trained.drain(..count).collect::<Vec<_>>();
        Ok(Self {
            sft: take(sizes.sft),
            labels: take(sizes.labels),
            weak_labels: take(sizes.weak_labels),
            iterations: take(sizes.iterations),
            evaluation: held_out.drain(..sizes.evaluation).collect(),
            validation: held_out.drain(..sizes.validation).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_space_is_large_and_every_prompt_is_read_as_it_is_written() {
        const { assert!(SPACE >= 20_000) };
        let texts: HashSet<String> = Prompt::all().map(|prompt| prompt.text()).collect();
        assert_eq!(texts.len(), SPACE);
        assert!(Prompt::all().all(|prompt| Prompt::parse(&prompt.text()) == Some(prompt)));
        assert_eq!(Prompt::parse("one plain near river then"), None);
        assert_eq!(Prompt::parse("one plain near river then moon"), None);
    }

    #[test]
    fn no_prompt_is_in_two_slices_and_none_that_is_held_out_is_trained_on() {
        let sizes = Sizes {
            sft: 8_000,
            labels: 4_000,
            weak_labels: 100,
            iterations: 2_000,
            evaluation: 1_000,
            validation: 300,
        };
        let slices = Slices::cut(1, &sizes).unwrap();
        let trained = [&slices.sft, &slices.labels, &slices.weak_labels, &slices.iterations];
        let kept = [&slices.evaluation, &slices.validation];
        assert!(trained.iter().flat_map(|slice| slice.iter()).all(|p| !p.is_held_out()));
        assert!(kept.iter().flat_map(|slice| slice.iter()).all(Prompt::is_held_out));
        let all: Vec<Prompt> =
            trained.iter().chain(&kept).flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 15_400);
        assert_ne!(Slices::cut(2, &sizes).unwrap().sft, slices.sft);
        assert!(Slices::cut(1, &Sizes { sft: SPACE, ..sizes }).is_err());
    }
}
