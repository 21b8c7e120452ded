//! Offline preferences: pairs that people bring (D_off), beside those that iterations collect.
//!
//! In: a prompt and two answers. Out: a checked `OfflinePreference` with the sum of its canonical
//! bytes, by which exact duplicates are recognised. May not enter: JSON, files, templates.

use sha2::{Digest, Sha256};

use crate::prompt::Prompt;

/// A prompt with an answer that is preferred and one that is not; the two differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflinePreference {
    prompt: Prompt,
    chosen: String,
    rejected: String,
}

/// Why two answers are no preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OfflineError {
    /// Nothing is preferred to itself.
    #[error("chosen and rejected are the same: such a pair teaches nothing")]
    Same,
    /// An answer without text.
    #[error("an answer is empty: give both sides a text")]
    Empty,
}

impl OfflinePreference {
    /// Checks a pair once, at the edge.
    pub fn new(prompt: Prompt, chosen: String, rejected: String) -> Result<Self, OfflineError> {
        if chosen == rejected {
            return Err(OfflineError::Same);
        }
        if chosen.trim().is_empty() || rejected.trim().is_empty() {
            return Err(OfflineError::Empty);
        }
        Ok(Self { prompt, chosen, rejected })
    }

    /// What is answered.
    #[must_use]
    pub fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// The better answer.
    #[must_use]
    pub fn chosen(&self) -> &str {
        &self.chosen
    }

    /// The worse one.
    #[must_use]
    pub fn rejected(&self) -> &str {
        &self.rejected
    }

    /// The sum of the whole pair. Each part goes in with a fixed or written length, so that no two
    /// different pairs have the same bytes.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"rlhfd pair 1");
        hash.update(self.prompt.sha256());
        for text in [&self.chosen, &self.rejected] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Turn;

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> Result<OfflinePreference, OfflineError> {
        let turn = Turn { role: "user".into(), content: prompt.into() };
        OfflinePreference::new(Prompt::new(vec![turn]).unwrap(), chosen.into(), rejected.into())
    }

    #[test]
    fn equal_or_empty_answers_are_no_preference() {
        assert_eq!(pair("q", "a", "a"), Err(OfflineError::Same));
        assert_eq!(pair("q", " ", "a"), Err(OfflineError::Empty));
        assert_eq!(pair("q", "a", ""), Err(OfflineError::Empty));
        assert!(pair("q", "a", "b").is_ok());
    }

    #[test]
    fn a_pair_and_its_reverse_have_different_sums() {
        let sum = |q, c, r| pair(q, c, r).unwrap().sha256();
        let one = sum("q", "ab", "c");
        assert_eq!(one, sum("q", "ab", "c"));
        for other in [sum("q", "c", "ab"), sum("q", "a", "bc"), sum("r", "ab", "c")] {
            assert_ne!(one, other);
        }
    }
}
