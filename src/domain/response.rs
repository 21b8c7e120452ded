//! Responses: what they are for, how they ended, and which of them are the same.
//!
//! In: words and texts. Out: `Purpose`, `Finish` and keys of texts. May not enter: tokens' meaning,
//! models.

use sha2::{Digest, Sha256};

use crate::UnknownWord;

/// What a response is for; part of its random key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// To be labelled and paired.
    Generate,
    /// To compare policies.
    Evaluate,
}

impl Purpose {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Evaluate => "evaluate",
        }
    }
}

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// With a stop id.
    Stop,
    /// At the limit of new tokens.
    Length,
}

impl Finish {
    /// The word of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }

    /// The finish of a word.
    pub fn parse(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "stop" => Ok(Self::Stop),
            "length" => Ok(Self::Length),
            other => {
                Err(UnknownWord { what: "finish", found: other.to_owned(), known: "stop, length" })
            }
        }
    }
}

/// A key by which equal texts are recognised without reading them: the first 63 bits of their sum,
/// so that it is a positive number in SQL too. Two different texts of one prompt share it by chance
/// once in 10¹⁸ pairs, and cost a pair then, nothing else.
#[must_use]
pub fn text_key(text: &str) -> i64 {
    key(text.as_bytes())
}

/// The same for token ids.
#[must_use]
pub fn ids_key(ids: &[u32]) -> i64 {
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id.to_le_bytes());
    }
    first_63_bits(&hash.finalize())
}

fn key(bytes: &[u8]) -> i64 {
    first_63_bits(&Sha256::digest(bytes))
}

fn first_63_bits(digest: &[u8]) -> i64 {
    let word = digest.iter().take(8).fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    (word >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_texts_and_ids_apart() {
        assert_eq!(text_key("a"), text_key("a"));
        assert_ne!(text_key("a"), text_key("a "));
        assert_ne!(ids_key(&[1, 2]), ids_key(&[2, 1]));
        assert!(text_key("") >= 0);
        assert_eq!(Finish::parse(Finish::Length.label()).unwrap(), Finish::Length);
        assert!(Finish::parse("eos").is_err());
    }
}
