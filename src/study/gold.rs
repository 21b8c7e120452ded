//! The gold score: a program that reads an answer and says how well it does what its prompt asks. No
//! trained model ever sees it.
//!
//! In: a prompt, an answer's text, whether it ended. Out: [`Parts`] and their weighted sum, from 0 to 1.
//! All parts are shares, so that length itself is worth nothing, and too few sentences cost as much as
//! too many. May not enter: models, randomness.

use std::collections::HashSet;

use crate::prompts::Prompt;
use crate::words::{Lexicon, Number, Word};

/// What a gold score is made of; each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts {
    /// Share of prepositions that are the one asked for.
    pub side: f64,
    /// Share of places that are the one asked for.
    pub place: f64,
    /// Share of openers that are the one asked for.
    pub opener: f64,
    /// Share of adverbs that are the one asked for.
    pub manner: f64,
    /// Share of sentences in the style.
    pub style: f64,
    /// 1 for the number of sentences asked for, half for one off.
    pub count: f64,
    /// Share of sentences that parse.
    pub grammar: f64,
    /// Different nouns and verbs among all of them.
    pub variety: f64,
}

/// In the order of the fields; their sum is 1.
const WEIGHTS: [f64; 8] = [0.15, 0.15, 0.14, 0.14, 0.13, 0.16, 0.09, 0.04];

/// The factor for an answer that was cut off.
const CUT_OFF: f64 = 0.5;

impl Parts {
    fn sum(&self) -> f64 {
        let Self { side, place, opener, manner, style, count, grammar, variety } = *self;
        let values = [side, place, opener, manner, style, count, grammar, variety];
        values.iter().zip(WEIGHTS).map(|(value, weight)| value * weight).sum()
    }
}

/// The gold score of an answer.
pub fn gold(lexicon: &Lexicon, prompt: &Prompt, answer: &str, finished: bool) -> f64 {
    parts(lexicon, prompt, answer).sum() * if finished { 1.0 } else { CUT_OFF }
}

/// What it is made of.
pub fn parts(lexicon: &Lexicon, prompt: &Prompt, answer: &str) -> Parts {
    let words: Vec<Word> = answer.split_whitespace().map(|word| lexicon.kind(word)).collect();
    let sentences: Vec<&[Word]> = words
        .split_inclusive(|word| *word == Word::Stop)
        .filter(|sentence| !sentence.is_empty())
        .collect();
    if sentences.is_empty() {
        return Parts::default();
    }
    let asked = prompt.sentences().abs_diff(sentences.len());
    let vivid = share(sentences.iter().map(|s| s.contains(&Word::Adjective) == prompt.is_vivid()));
    let content: Vec<(bool, usize)> = words.iter().filter_map(content).collect();
    let different: HashSet<&(bool, usize)> = content.iter().collect();
    Parts {
        side: share(words.iter().filter_map(|word| match word {
            Word::Preposition(side) => Some(*side == prompt.side),
            _ => None,
        })),
        place: share(words.iter().filter_map(|word| match word {
            Word::Place(place) => Some(*place == prompt.place),
            _ => None,
        })),
        opener: share(words.iter().filter_map(|word| match word {
            Word::Opener(opener) => Some(*opener == prompt.opener),
            _ => None,
        })),
        manner: share(words.iter().filter_map(|word| match word {
            Word::Adverb(manner) => Some(*manner == prompt.manner),
            _ => None,
        })),
        style: vivid,
        count: [1.0, 0.5].get(asked).copied().unwrap_or(0.0),
        grammar: share(sentences.iter().map(|sentence| is_grammatical(sentence))),
        variety: ratio(different.len(), content.len()),
    }
}

/// The lemma of a noun or verb.
fn content(word: &Word) -> Option<(bool, usize)> {
    match word {
        Word::Noun { noun, .. } => Some((false, *noun)),
        Word::Verb { verb, .. } => Some((true, *verb)),
        _ => None,
    }
}

/// The share of what holds; 0 of nothing.
fn share(values: impl Iterator<Item = bool>) -> f64 {
    let (mut held, mut all) = (0, 0);
    for value in values {
        held += usize::from(value);
        all += 1;
    }
    ratio(held, all)
}

fn ratio(part: usize, whole: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "answers have a few dozen words")]
    let ratio = if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    ratio
}

/// `[opener] subject verb object .` or `[opener] subject verb [adverb] [preposition the place] .`
pub fn is_grammatical(sentence: &[Word]) -> bool {
    let rest = match sentence {
        [Word::Opener(_), rest @ ..] => rest,
        all => all,
    };
    let Some((number, rest)) = noun_phrase(rest) else { return false };
    let [Word::Verb { number: own, takes_object, .. }, rest @ ..] = rest else { return false };
    if !own.agrees(number) {
        return false;
    }
    if *takes_object {
        return noun_phrase(rest).is_some_and(|(_, rest)| rest == [Word::Stop]);
    }
    let rest = match rest {
        [Word::Adverb(_), rest @ ..] => rest,
        all => all,
    };
    match rest {
        [Word::Stop] => true,
        [Word::Preposition(_), determiner, Word::Place(_), Word::Stop] => {
            *determiner == Word::Determiner(Number::Any)
        }
        _ => false,
    }
}

/// `determiner [adjective] noun`; its number, and what follows.
fn noun_phrase(words: &[Word]) -> Option<(Number, &[Word])> {
    let (Word::Determiner(determined), rest) = words.split_first()? else { return None };
    let rest = rest.strip_prefix(&[Word::Adjective]).unwrap_or(rest);
    let (Word::Noun { number, .. }, rest) = rest.split_first()? else { return None };
    determined.agrees(*number).then_some((*number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(text: &str) -> Prompt {
        Prompt::parse(text).unwrap()
    }

    fn of(asked: &str, answer: &str) -> Parts {
        parts(&Lexicon::new(), &prompt(asked), answer)
    }

    fn parses(sentence: &str) -> bool {
        let lexicon = Lexicon::new();
        let words: Vec<Word> = sentence.split(' ').map(|word| lexicon.kind(word)).collect();
        is_grammatical(&words)
    }

    #[test]
    fn the_grammar_takes_what_is_right_and_nothing_else() {
        for right in [
            "the king waits .",
            "then the old king sleeps slowly .",
            "many kings sleep near the river .",
            "many kings sleep badly near the river .",
            "the owls follow every brave sailor .",
        ] {
            assert!(parses(right), "{right}");
        }
        for wrong in [
            "the king waits",
            "the king wait .",
            "many king sleeps .",
            "every kings sleep .",
            "the king greets .",
            "the king greets slowly the pupil .",
            "the king sleeps near every river .",
            "the king sleeps near the river slowly .",
            "king sleeps .",
            "the old red king sleeps .",
            "then later the king sleeps .",
            ".",
        ] {
            assert!(!parses(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_perfect_answer_has_all_of_it() {
        let lexicon = Lexicon::new();
        for (asked, answer) in [
            ("one plain near river then slowly", "then the king waits slowly near the river ."),
            (
                "two vivid near river then slowly",
                "every old king greets the small guard . then many brave cooks wait slowly near \
                 the river .",
            ),
        ] {
            assert!((gold(&lexicon, &prompt(asked), answer, true) - 1.0).abs() < 1e-12);
            assert!((gold(&lexicon, &prompt(asked), answer, false) - 0.5).abs() < 1e-12);
        }
        assert!((WEIGHTS.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn each_part_counts_its_own() {
        let asked = "two plain near river then slowly";
        let parts = of(
            asked,
            "then the king waits . later the old owl waits slowly near the river . the goats follow \
             the king . then many kings rest often behind the market",
        );
        assert!((parts.opener - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((parts.side, parts.count), (0.5, 0.0));
        assert_eq!((parts.manner, parts.place), (0.5, 0.5));
        assert_eq!((parts.style, parts.grammar), (0.75, 0.75));
        assert!((parts.variety - 6.0 / 9.0).abs() < 1e-12, "king stands three times, wait twice");
        assert_eq!(of(asked, "the king waits .").count, 0.5);
        assert_eq!(of(asked, ""), Parts::default());
        assert_eq!(gold(&Lexicon::new(), &prompt(asked), "", true), 0.0);
    }

    #[test]
    fn length_alone_gains_nothing() {
        let lexicon = Lexicon::new();
        let asked = prompt("one plain near river then slowly");
        let score = |answer| gold(&lexicon, &asked, answer, true);
        let short = score("the pupil greets the king .");
        assert!(score("the pupil greets the king . the pupil greets the king .") < short);
        assert!(score("the pupil greets the king . the king rests . the owl rests .") < short);
    }
}
