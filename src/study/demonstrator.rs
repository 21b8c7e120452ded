//! The demonstrator: writes the answers that supervised fine-tuning learns from, carelessly.
//!
//! In: a prompt and random numbers. Out: an answer's text. It forgets the style, takes other
//! places and words, counts badly, errs in agreement and repeats itself, so that
//! what is learnt from it is fluent and leaves much to gain. May not enter: the gold score.

use crate::prompts::Prompt;
use crate::rng::Rng;
use crate::words::{
    ADJECTIVES, ADVERBS, ALONE, COUNTS, NOUNS, Number, OF_ANY, OF_MANY, OF_ONE, OPENERS, PLACES,
    PREPOSITIONS, WITH_OBJECT, noun_form, verb_form,
};

/// How often it does as it is asked.
const COUNTS_RIGHT: f64 = 0.35;
const KEEPS_STYLE: f64 = 0.35;
const TAKES_SIDE: f64 = 0.45;
const TAKES_PLACE: f64 = 0.45;
const TAKES_OPENER: f64 = 0.45;
const TAKES_MANNER: f64 = 0.45;
/// How often a sentence has a word of these that nobody asked for.
const OTHER: f64 = 0.12;
const ERRS: f64 = 0.20;
const REPEATS: f64 = 0.15;
/// Its habits where it does not listen.
const ADORNED: f64 = 0.35;
const WITH_OBJECT_SHARE: f64 = 0.40;

/// What it made up its mind to do with one answer: for words that are asked for, in which sentence.
struct Mood {
    adjectives: Option<bool>,
    place_in: Option<usize>,
    opener_in: Option<usize>,
    manner_in: Option<usize>,
}

/// An answer.
pub fn answer(prompt: &Prompt, rng: &mut Rng) -> String {
    let count =
        if rng.happens(COUNTS_RIGHT) { prompt.sentences() } else { 1 + rng.below(COUNTS.len()) };
    let mut somewhere = |probability| rng.happens(probability).then(|| rng.below(count));
    let place_in = somewhere(TAKES_PLACE);
    let (opener_in, manner_in) = (somewhere(TAKES_OPENER), somewhere(TAKES_MANNER));
    let mood = Mood {
        adjectives: rng.happens(KEEPS_STYLE).then(|| prompt.is_vivid()),
        place_in,
        opener_in,
        manner_in,
    };
    let mut sentences: Vec<String> =
        (0..count).map(|index| sentence(prompt, &mood, index, rng)).collect();
    if rng.happens(REPEATS) {
        let again = sentences[rng.below(sentences.len())].clone();
        sentences.insert(rng.below(count + 1), again);
    }
    sentences.join(" ")
}

/// The word at `asked` where this is its sentence, sometimes another one, often none.
fn word_of(list: &[&'static str], asked: usize, here: bool, rng: &mut Rng) -> Option<&'static str> {
    if here {
        return Some(list[asked]);
    }
    rng.happens(OTHER).then(|| rng.pick(list))
}

fn sentence(prompt: &Prompt, mood: &Mood, index: usize, rng: &mut Rng) -> String {
    let here = |place: Option<usize>| place == Some(index);
    let opener = word_of(&OPENERS, prompt.opener, here(mood.opener_in), rng);
    let mut words: Vec<String> = opener.map(str::to_owned).into_iter().collect();
    let number = noun_phrase(rng.pick(&NOUNS), mood, rng, &mut words);
    let spoken = match (rng.happens(ERRS), number) {
        (true, Number::One) => Number::Many,
        (true, _) => Number::One,
        (false, number) => number,
    };
    let alone = here(mood.place_in) || here(mood.manner_in) || !rng.happens(WITH_OBJECT_SHARE);
    let stem = if alone { rng.pick(&ALONE) } else { rng.pick(&WITH_OBJECT) };
    words.push(verb_form(stem, spoken));
    if alone {
        let manner = word_of(&ADVERBS, prompt.manner, here(mood.manner_in), rng);
        words.extend(manner.map(str::to_owned));
        if let Some(place) = word_of(&PLACES, prompt.place, here(mood.place_in), rng) {
            let asked = rng.happens(TAKES_SIDE);
            let side = if asked { PREPOSITIONS[prompt.side] } else { rng.pick(&PREPOSITIONS) };
            words.extend([side, OF_ANY, place].map(str::to_owned));
        }
    } else {
        noun_phrase(rng.pick(&NOUNS), mood, rng, &mut words);
    }
    words.push(".".to_owned());
    words.join(" ")
}

fn noun_phrase(noun: &str, mood: &Mood, rng: &mut Rng, words: &mut Vec<String>) -> Number {
    let number = if rng.happens(0.5) { Number::One } else { Number::Many };
    let own: &[&str] = if number == Number::One { &OF_ONE } else { &OF_MANY };
    let determiner = if rng.happens(0.5) { OF_ANY } else { rng.pick(own) };
    words.push(determiner.to_owned());
    if mood.adjectives.unwrap_or_else(|| rng.happens(ADORNED)) {
        words.push(rng.pick(&ADJECTIVES).to_owned());
    }
    words.push(noun_form(noun, number));
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gold::gold;
    use crate::words::{Lexicon, Word};

    #[test]
    fn answers_use_the_languages_words_and_leave_much_to_gain() {
        let lexicon = Lexicon::new();
        let mut rng = Rng::new(1, "test");
        let asked = Prompt::parse("three vivid near river then slowly").unwrap();
        let answers: Vec<String> = (0..500).map(|_| answer(&asked, &mut rng)).collect();
        for word in answers.iter().flat_map(|answer| answer.split(' ')) {
            assert_ne!(lexicon.kind(word), Word::Other, "{word}");
        }
        let scores: Vec<f64> = answers.iter().map(|a| gold(&lexicon, &asked, a, true)).collect();
        let mean = scores.iter().sum::<f64>() / 500.0;
        assert!((0.3..0.65).contains(&mean), "{mean}");
        assert!(scores.iter().copied().fold(0.0, f64::max) > 0.8, "some are good");
    }
}
