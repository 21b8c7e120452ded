//! Which tokens of a conversation the assistant wrote: what supervised fine-tuning learns.
//!
//! In: messages. Out: [`Taught`] ids of the whole conversation, each learnt or not. Where the template
//! marks the assistant's text by `{% generation %}`, its marks decide, as in transformers. Elsewhere
//! the conversation is rendered turn by turn: an answer is what stands between its opened turn and
//! its stop id, which generation would have written too. May not enter: tensors, files.

use rlhfd_protocol::worker::Message;

use crate::errors::TextError;
use crate::render::{Renderer, Turn};

/// A conversation with what is learnt of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taught {
    /// The ids of the whole conversation.
    pub ids: Vec<u32>,
    /// Of the same length: whether the loss counts the id.
    pub learnt: Vec<bool>,
}

impl Renderer {
    /// Ids of a whole conversation, and which of them are the assistant's.
    ///
    /// Errors: as [`Renderer::conversation`]; `TurnChanges` where rendering turn by turn does not
    /// give the beginnings of the whole; `Unusable` where no stop id would be learnt.
    pub fn taught(&self, messages: &[Message]) -> Result<Taught, TextError> {
        let taught =
            if self.marks_assistant() { self.by_marks(messages) } else { self.by_turns(messages) }?;
        let mut learnt = taught.ids.iter().zip(&taught.learnt).filter(|(_, learnt)| **learnt);
        if learnt.any(|(id, _)| self.tokenizer.is_stop(*id)) {
            return Ok(taught);
        }
        Err(TextError::Unusable {
            problem: "no stop id would be learnt, so that the policy would never end an answer"
                .to_owned(),
            mend: "let the template end the assistant's turn with a stop id, and mark it by \
                   {% generation %} where the template has marks",
        })
    }

    fn by_marks(&self, messages: &[Message]) -> Result<Taught, TextError> {
        let ids = self.conversation(messages)?;
        let rendered = self.rendered(messages, Turn::Closed)?;
        if rendered.assistant.is_empty() {
            return Err(TextError::Unusable {
                problem: "the template marks nothing of it as the assistant's".to_owned(),
                mend: "look at the template's {% generation %} marks; text that holds U+FDD0 or \
                       U+FDD1 cannot be marked",
            });
        }
        let learnt = self.tokenizer.covered(&rendered.text, &rendered.assistant)?;
        Ok(Taught { ids, learnt })
    }

    fn by_turns(&self, messages: &[Message]) -> Result<Taught, TextError> {
        let ids = self.conversation(messages)?;
        let mut learnt = vec![false; ids.len()];
        for (index, message) in messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let opened = self.prompt(&messages[..index])?;
            let number = index + 1;
            self.begins(&opened, &ids, number)?;
            let closed = if number == messages.len() {
                ids.clone()
            } else {
                self.conversation(&messages[..number])?
            };
            let Some(end) = self.last_stop(&closed, opened.len()) else {
                return Err(TextError::Unusable {
                    problem: format!("the template ends message {number} with no stop id"),
                    mend: "add the stop id to the assistant's turn in the template, or mark it by \
                           {% generation %}",
                });
            };
            // What the template writes after the stop id may change with what follows.
            self.begins(&closed[..end], &ids, number)?;
            learnt[opened.len()..end].fill(true);
        }
        Ok(Taught { ids, learnt })
    }

    /// One past the last stop id from `start` on.
    fn last_stop(&self, ids: &[u32], start: usize) -> Option<usize> {
        let own = ids.get(start..)?;
        own.iter().rposition(|id| self.tokenizer.is_stop(*id)).map(|place| start + place + 1)
    }

    /// Refuses a part that is not the beginning of the whole; `message` counts from 1.
    fn begins(&self, part: &[u32], whole: &[u32], message: usize) -> Result<(), TextError> {
        let shared = part.iter().zip(whole).take_while(|(a, b)| a == b).count();
        if shared == part.len() {
            return Ok(());
        }
        let token = |ids: &[u32]| {
            ids.get(shared).map_or("(the end)".to_owned(), |id| self.tokenizer.token(*id))
        };
        Err(TextError::TurnChanges {
            message,
            index: shared,
            part_token: token(part),
            whole_token: token(whole),
        })
    }
}
