//! Prompts: what a conversation must be to become one, its sum, and whether it is reserved.
//!
//! In: turns of a conversation. Out: checked `Prompt`s with the sum of their canonical bytes. The sum
//! recognises exact duplicates within and across sets, and decides by itself whether a prompt is held
//! back for evaluation, so that the answer depends on content and share alone, not on order.
//! May not enter: JSON, files, templates.

use sha2::{Digest, Sha256};

use crate::limits;

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A conversation that a policy can answer: it ends with a turn of the user (or a tool).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    turns: Vec<Turn>,
    sha256: [u8; 32],
}

/// Why turns are no prompt. Turns are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// No turns.
    #[error("the conversation is empty: give at least one turn of role `user`")]
    Empty,
    /// A role that no template knows.
    #[error("turn {turn} has the role `{role}`: use system, user, assistant or tool")]
    Role {
        /// Which turn.
        turn: usize,
        /// Its role, shortened.
        role: String,
    },
    /// A system turn after the first.
    #[error("turn {turn} is a system turn: only the first may be one")]
    LateSystem {
        /// Which turn.
        turn: usize,
    },
    /// It does not end with a turn that can be answered.
    #[error("the last turn is of role `{role}`: a prompt ends with a turn of `user` or `tool`")]
    NothingToAnswer {
        /// The last role.
        role: String,
    },
    /// The turn to be answered says nothing.
    #[error("the last turn has no text to answer")]
    Blank,
    /// Too many turns.
    #[error("the conversation has {turns} turns: at most {max} are taken")]
    Turns {
        /// How many.
        turns: usize,
        /// How many may be.
        max: usize,
    },
    /// Too long.
    #[error("the conversation has {bytes} bytes: at most {max} are taken")]
    Long {
        /// How many.
        bytes: usize,
        /// How many may be.
        max: usize,
    },
}

impl Prompt {
    /// Checks a conversation once, at the edge.
    pub fn new(turns: Vec<Turn>) -> Result<Self, PromptError> {
        let last = turns.last().ok_or(PromptError::Empty)?;
        if turns.len() > limits::PROMPT_MESSAGES_MAX {
            let max = limits::PROMPT_MESSAGES_MAX;
            return Err(PromptError::Turns { turns: turns.len(), max });
        }
        let bytes: usize = turns.iter().map(|t| t.content.len()).sum();
        if bytes > limits::PROMPT_BYTES_MAX {
            return Err(PromptError::Long { bytes, max: limits::PROMPT_BYTES_MAX });
        }
        for (index, turn) in turns.iter().enumerate() {
            check_role(index, &turn.role)?;
        }
        if !matches!(last.role.as_str(), "user" | "tool") {
            return Err(PromptError::NothingToAnswer { role: last.role.clone() });
        }
        if last.content.trim().is_empty() {
            return Err(PromptError::Blank);
        }
        let sha256 = sum(&turns);
        Ok(Self { turns, sha256 })
    }

    /// The turns, in order.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// The sum of the canonical bytes.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The same for prompts that differ in case and spacing alone; equal prompts have equal ones.
    #[must_use]
    pub fn folded(&self) -> [u8; 32] {
        folded(&self.turns)
    }
}

fn check_role(index: usize, role: &str) -> Result<(), PromptError> {
    match role {
        "system" if index > 0 => Err(PromptError::LateSystem { turn: index + 1 }),
        "system" | "user" | "assistant" | "tool" => Ok(()),
        other => Err(PromptError::Role {
            turn: index + 1,
            role: other.chars().take(limits::ROLE_BYTES_MAX).collect(),
        }),
    }
}

/// The sum of a conversation. Each text goes in with its length before it, so that no two different
/// conversations have the same bytes.
fn sum(turns: &[Turn]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"rlhfd prompt 1");
    for turn in turns {
        for text in [&turn.role, &turn.content] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    hash.finalize().into()
}

/// A sum that does not see case and spacing, by which training data are held against evaluation prompts.
#[must_use]
pub fn folded(turns: &[Turn]) -> [u8; 32] {
    let fold = |turn: &Turn| {
        let words: Vec<String> = turn.content.split_whitespace().map(str::to_lowercase).collect();
        Turn { role: turn.role.clone(), content: words.join(" ") }
    };
    sum(&turns.iter().map(fold).collect::<Vec<_>>())
}

/// Whether a prompt of this sum is held back for evaluation when a share (0 to 1) of its set is.
#[must_use]
pub fn is_reserved(sha256: &[u8; 32], share: f64) -> bool {
    let mut hash = Sha256::new();
    hash.update(b"rlhfd reserve 1");
    hash.update(sha256);
    let digest = hash.finalize();
    // 53 bits are what an f64 holds exactly.
    let draw =
        digest.iter().take(8).fold(0_u64, |value, byte| (value << 8) | u64::from(*byte)) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    let uniform = draw as f64 / (1_u64 << 53) as f64;
    uniform < share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, content: &str) -> Turn {
        Turn { role: role.into(), content: content.into() }
    }

    #[test]
    fn a_prompt_ends_with_something_to_answer() {
        let good =
            vec![turn("system", ""), turn("user", "a"), turn("assistant", "b"), turn("user", "c")];
        assert!(Prompt::new(good).is_ok());
        assert_eq!(Prompt::new(vec![]).unwrap_err(), PromptError::Empty);
        let cases = [
            (vec![turn("human", "a")], "turn 1 has the role `human`"),
            (vec![turn("user", "a"), turn("system", "b"), turn("user", "c")], "turn 2 is a system"),
            (vec![turn("user", "a"), turn("assistant", "b")], "ends with a turn of `user`"),
            (vec![turn("user", " \n")], "no text to answer"),
            (vec![turn("user", "a"); limits::PROMPT_MESSAGES_MAX + 1], "1001 turns"),
            (vec![turn("user", &"a".repeat(limits::PROMPT_BYTES_MAX + 1))], "524289 bytes"),
        ];
        for (turns, word) in cases {
            let error = Prompt::new(turns).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn moving_text_between_turns_changes_the_sum() {
        let sum_of = |turns| Prompt::new(turns).unwrap().sha256();
        let one = sum_of(vec![turn("user", "ab"), turn("user", "c")]);
        assert_ne!(one, sum_of(vec![turn("user", "a"), turn("user", "bc")]));
        assert_ne!(one, sum_of(vec![turn("user", "abc")]));
        assert_eq!(one, sum_of(vec![turn("user", "ab"), turn("user", "c")]));
    }

    #[test]
    fn folding_sees_words_and_roles_alone() {
        let folded_of = |turns| Prompt::new(turns).unwrap().folded();
        let one = folded_of(vec![turn("user", "Why is the sky blue?")]);
        assert_eq!(one, folded_of(vec![turn("user", " why  is the\nSKY blue? ")]));
        assert_ne!(one, folded_of(vec![turn("user", "Why is the sky blue ?")]));
        assert_ne!(one, folded_of(vec![turn("user", "Whyisthe sky blue?")]));
        assert_ne!(one, folded_of(vec![turn("system", ""), turn("user", "Why is the sky blue?")]));
    }

    #[test]
    fn the_reserve_takes_its_share_and_grows_with_it() {
        let mut taken = 0;
        for i in 0..10_000 {
            let sum = Prompt::new(vec![turn("user", &i.to_string())]).unwrap().sha256();
            assert!(!is_reserved(&sum, 0.0));
            assert!(!is_reserved(&sum, 0.1) || is_reserved(&sum, 0.2));
            taken += u32::from(is_reserved(&sum, 0.2));
        }
        // Binomial(10000, 0.2): mean 2000, deviation 40; five deviations on either side.
        assert!((1800..=2200).contains(&taken), "{taken}");
    }
}
