//! What a preference model is asked: which of two responses to a conversation is better, A or B.
//!
//! In: a conversation, two responses. Out: the ids of one user's turn with the assistant's turn opened
//! after it, so that the next id is the label; the ids of the two labels. The opened turn is ours:
//! RLHFlow's code adds none, and is right with templates alone that always write it. May not enter:
//! tensors, which response is better.
//! Source: arXiv 2405.07863, §2.1; RLHFlow's pair-pm for the text's form.

use std::fmt::Write;

use rlhfd_protocol::worker::Message;

use crate::errors::{ModelError, TextError, WorkerError};
use crate::model::labels::{Labels, PREFERENCE};
use crate::render::Renderer;

/// What the two responses are called.
const LABELS: [&str; 2] = ["A", "B"];

/// The user's turn. A turn of the context is written as transformers renders RLHFlow's template: a
/// line's end, `<turn>` and the role, the text on the next line behind a space.
#[must_use]
pub fn text(context: &[Message], [a, b]: [&str; 2]) -> String {
    let mut turns = String::from("\n");
    for message in context {
        // Writing to a string never fails.
        let _ = write!(turns, "\n<turn> {}\n {}", message.role, message.content);
    }
    turns.push('\n');
    format!("[CONTEXT] {turns} [RESPONSE A] {a} [RESPONSE B] {b} \n")
}

impl Renderer {
    /// Ids of the question, to the end of the opened turn that the label begins.
    ///
    /// Errors: as [`Renderer::prompt`].
    pub fn question(
        &self,
        context: &[Message],
        responses: [&str; 2],
    ) -> Result<Vec<u32>, TextError> {
        let content = text(context, responses);
        self.prompt(&[Message { role: "user".to_owned(), content }])
    }

    /// The labels' ids.
    ///
    /// Errors: `Unusable` where the tokenizer has not one token for each.
    pub fn labels(&self) -> Result<Labels, TextError> {
        let [a, b] = LABELS.map(|label| self.label(label));
        let (a, b) = (a?, b?);
        if a == b { Err(no_label("A and B are one token", "")) } else { Ok(Labels { a, b }) }
    }

    /// Refuses a folder whose preference.json has other ids than its tokenizer.
    ///
    /// Errors: `Preference`; as [`Renderer::labels`].
    pub fn require_labels(&self, stated: Labels) -> Result<(), WorkerError> {
        let own = self.labels()?;
        if own == stated {
            return Ok(());
        }
        let path = self.tokenizer.dir().join(PREFERENCE);
        let problem = format!(
            "it says that A and B are the ids {} and {}, the tokenizer has {} and {}",
            stated.a, stated.b, own.a, own.b
        );
        Err(ModelError::Preference { path, problem }.into())
    }

    fn label(&self, label: &str) -> Result<u32, TextError> {
        match self.tokenizer.encode(label)?.as_slice() {
            [id] if self.tokenizer.unk_id != Some(*id) => Ok(*id),
            [_] => Err(no_label("the tokenizer does not know the label", label)),
            _ => Err(no_label("the tokenizer has no single token for the label", label)),
        }
    }
}

fn no_label(problem: &str, label: &str) -> TextError {
    TextError::Unusable {
        problem: format!("{problem} {label}").trim_end().to_owned(),
        mend: "make the preference model from another model: it answers with the token A or B",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_one_that_published_preference_models_know() {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let context = [message("user", "hi"), message("assistant", "yes?"), message("user", "q")];
        assert_eq!(
            text(&context, ["one", "two"]),
            "[CONTEXT] \n\n<turn> user\n hi\n<turn> assistant\n yes?\n<turn> user\n q\n \
             [RESPONSE A] one [RESPONSE B] two \n"
        );
    }
}
