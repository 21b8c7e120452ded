//! The words of the study's language, and what each of them is.
//!
//! In: nothing. Out: [`Lexicon`]: all words in the order of their token ids, and each one's [`Word`].
//! May not enter: what makes a sentence right (that is `gold`), who says it (`demonstrator`).

use std::collections::HashMap;

/// Who does something; the plural has an `s`.
pub const NOUNS: [&str; 12] = [
    "badger", "owl", "king", "sailor", "farmer", "pupil", "singer", "guard", "hen", "goat",
    "robot", "cook",
];

/// Where it may happen.
pub const PLACES: [&str; 10] = [
    "river", "bridge", "market", "garden", "mountain", "station", "harbour", "meadow", "church",
    "tunnel",
];

/// How many sentences may be asked for.
pub const COUNTS: [&str; 4] = ["one", "two", "three", "four"];
/// Without adjectives, or with one in every sentence.
pub const STYLES: [&str; 2] = ["plain", "vivid"];

/// Verbs that take no object, and those that take one; third persons have an `s`.
pub const ALONE: [&str; 8] = ["wait", "turn", "rest", "jump", "laugh", "work", "sleep", "shout"];
/// See [`ALONE`].
pub const WITH_OBJECT: [&str; 8] =
    ["follow", "call", "help", "clean", "paint", "count", "visit", "greet"];
/// What makes a sentence vivid.
pub const ADJECTIVES: [&str; 8] =
    ["old", "small", "red", "quiet", "bright", "brave", "cold", "funny"];
/// The manner in which something may be done.
pub const ADVERBS: [&str; 8] =
    ["slowly", "often", "again", "loudly", "gently", "happily", "badly", "alone"];
/// What stands before a place.
pub const PREPOSITIONS: [&str; 8] =
    ["near", "behind", "under", "beside", "above", "inside", "outside", "below"];
/// What may open a sentence.
pub const OPENERS: [&str; 4] = ["then", "later", "soon", "meanwhile"];
/// Determiners of one, of many, and of both.
pub const OF_ONE: [&str; 2] = ["every", "each"];
/// See [`OF_ONE`].
pub const OF_MANY: [&str; 2] = ["some", "many"];
/// See [`OF_ONE`].
pub const OF_ANY: &str = "the";

/// Tokens with a meaning of their own, at the ids 0 to 3.
pub const SPECIAL: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<asst>"];

/// One or many; what agrees with both is [`Number::Any`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Singular.
    One,
    /// Plural.
    Many,
    /// Either.
    Any,
}

impl Number {
    /// Whether the two may stand together.
    pub fn agrees(self, other: Self) -> bool {
        self == other || self == Self::Any || other == Self::Any
    }
}

/// What a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// `the`, `every`, `some`, …
    Determiner(Number),
    /// `old`, …
    Adjective,
    /// By its place among the nouns.
    Noun { noun: usize, number: Number },
    /// By its place among all verbs.
    Verb { verb: usize, number: Number, takes_object: bool },
    /// A manner.
    Adverb(usize),
    /// What stands before a place.
    Preposition(usize),
    /// A place.
    Place(usize),
    /// What opens a sentence.
    Opener(usize),
    /// The end of a sentence.
    Stop,
    /// A word of prompts or a special token.
    Other,
}

/// All words.
#[derive(Debug)]
pub struct Lexicon {
    /// In the order of their ids.
    pub words: Vec<String>,
    kinds: HashMap<String, Word>,
}

impl Lexicon {
    /// Makes it.
    pub fn new() -> Self {
        let mut lexicon = Self { words: Vec::new(), kinds: HashMap::new() };
        lexicon.add_all(&SPECIAL, |_| Word::Other);
        lexicon.add(".", Word::Stop);
        lexicon.add_all(&COUNTS, |_| Word::Other);
        lexicon.add_all(&STYLES, |_| Word::Other);
        lexicon.add_all(&PLACES, Word::Place);
        lexicon.add(OF_ANY, Word::Determiner(Number::Any));
        lexicon.add_all(&OF_ONE, |_| Word::Determiner(Number::One));
        lexicon.add_all(&OF_MANY, |_| Word::Determiner(Number::Many));
        lexicon.add_all(&ADJECTIVES, |_| Word::Adjective);
        lexicon.add_all(&ADVERBS, Word::Adverb);
        lexicon.add_all(&PREPOSITIONS, Word::Preposition);
        lexicon.add_all(&OPENERS, Word::Opener);
        for (noun, word) in NOUNS.iter().enumerate() {
            for number in [Number::One, Number::Many] {
                lexicon.add(&noun_form(word, number), Word::Noun { noun, number });
            }
        }
        for (verb, stem) in ALONE.iter().chain(&WITH_OBJECT).enumerate() {
            let takes_object = verb >= ALONE.len();
            for number in [Number::One, Number::Many] {
                let kind = Word::Verb { verb, number, takes_object };
                lexicon.add(&verb_form(stem, number), kind);
            }
        }
        lexicon
    }

    fn add(&mut self, word: &str, kind: Word) {
        self.words.push(word.to_owned());
        self.kinds.insert(word.to_owned(), kind);
    }

    fn add_all(&mut self, words: &[&str], kind: impl Fn(usize) -> Word) {
        words.iter().enumerate().for_each(|(index, word)| self.add(word, kind(index)));
    }

    /// What a word is; a word that is none is [`Word::Other`].
    pub fn kind(&self, word: &str) -> Word {
        self.kinds.get(word).copied().unwrap_or(Word::Other)
    }
}

/// `owl`, `owls`: every noun of this language is regular.
pub fn noun_form(noun: &str, number: Number) -> String {
    if number == Number::Many { format!("{noun}s") } else { noun.to_owned() }
}

/// `sleeps`, `sleep`: every verb, too.
pub fn verb_form(stem: &str, number: Number) -> String {
    if number == Number::One { format!("{stem}s") } else { stem.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_word_stands_twice_and_special_tokens_come_first() {
        let lexicon = Lexicon::new();
        let different: HashSet<&String> = lexicon.words.iter().collect();
        assert_eq!(different.len(), lexicon.words.len());
        assert_eq!(lexicon.words[..4], SPECIAL);
        assert!(lexicon.words.iter().all(|word| !word.contains(char::is_whitespace)));
    }

    #[test]
    fn words_are_known_for_what_they_are() {
        let lexicon = Lexicon::new();
        assert_eq!(lexicon.kind("owls"), Word::Noun { noun: 1, number: Number::Many });
        let follows = Word::Verb { verb: 8, number: Number::One, takes_object: true };
        assert_eq!(lexicon.kind("follows"), follows);
        assert_eq!(lexicon.kind("later"), Word::Opener(1));
        assert_eq!(lexicon.kind("nonsense"), Word::Other);
        assert!(Number::Any.agrees(Number::Many) && !Number::One.agrees(Number::Many));
    }
}
