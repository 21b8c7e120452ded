//! Conversations from a JSONL file, and from text to documents with the tokens that are learnt.
//!
//! In: lines `{"messages": […]}`. Out: [`Block`]s, and a count of what was left out and why. The first
//! bad line is an error that names it, before anything is computed. May not enter: tensors, models.

use std::collections::BTreeMap;

use rlhfd_config::TrainSettings;
use rlhfd_protocol::worker::Message;
use serde_json::{Map, Value};

use super::blocks::{self, Block, Document};
use super::mixture::{self, DataFile, Row};
use crate::data::{self, Refusal};
use crate::errors::InputError;
use crate::render::Renderer;

/// Conversations that fit, in blocks, and how many did not, by reason.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fitted {
    /// What is trained on.
    pub blocks: Vec<Block>,
    /// Left out, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// Reads files of conversations, renders and tokenises them; each with how often it is taken.
///
/// # Errors
/// [`InputError`], naming the first bad line.
pub fn read(
    files: &[DataFile],
    renderer: &Renderer,
    seed: u64,
) -> Result<Vec<(Document, usize)>, InputError> {
    let document = |row: &Row<'_, Vec<Message>>| {
        let taught = renderer.taught(&row.item).map_err(|error| row.refused(error))?;
        Ok((Document { line: row.line, ids: taught.ids, learnt: taught.learnt }, row.copies))
    };
    mixture::read(files, seed, conversation)?.iter().map(document).collect()
}

/// Puts documents into blocks. One that is longer than a block, or than the model has positions, is
/// left out and counted, never cut.
#[must_use]
pub fn fit(documents: Vec<Document>, settings: &TrainSettings, positions_max: usize) -> Fitted {
    let tokens_max = (settings.block_tokens as usize).min(positions_max);
    let count = documents.len();
    let kept: Vec<Document> =
        documents.into_iter().filter(|document| document.ids.len() <= tokens_max).collect();
    let mut dropped = BTreeMap::new();
    if kept.len() < count {
        dropped.insert("too_long", (count - kept.len()) as u64);
    }
    let block_tokens = settings.block_tokens as usize;
    let blocks =
        if settings.packing { blocks::pack(kept, block_tokens) } else { blocks::apart(kept) };
    Fitted { blocks, dropped }
}

/// A conversation that one can learn from: the assistant says something in each of its turns.
fn conversation(object: &Map<String, Value>) -> Result<Vec<Message>, Refusal> {
    let messages = data::conversation(object)?;
    let refusal = |problem: String, mend: &str| Refusal { problem, mend: mend.to_owned() };
    if !messages.iter().any(|message| message.role == "assistant") {
        let problem = "no message of the assistant: there is nothing to learn".to_owned();
        return Err(refusal(problem, "add the answer, or take the line out of the file"));
    }
    let empty =
        |message: &Message| message.role == "assistant" && message.content.trim().is_empty();
    match messages.iter().position(empty) {
        Some(index) => Err(refusal(
            format!("message {}, the assistant's, is empty", index + 1),
            "write the answer, or take the line out of the file",
        )),
        None => Ok(messages),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_without_an_answer_is_refused() {
        let parse = |line: &str| conversation(&serde_json::from_str(line).unwrap());
        let u = r#"{"role": "user", "content": ""}"#;
        let a = r#"{"role": "assistant", "content": "a"}"#;
        let empty = r#"{"role": "assistant", "content": " \n"}"#;
        assert!(parse(&format!(r#"{{"messages": [{u}, {a}, {u}]}}"#)).is_ok());
        for (line, reason) in [
            (format!(r#"{{"messages": [{u}]}}"#), "no message of the assistant"),
            (format!(r#"{{"messages": [{u}, {a}, {u}, {empty}]}}"#), "message 4"),
            (r#"{"messages": []}"#.to_owned(), "0 messages"),
            (r#"{"chosen": []}"#.to_owned(), "no \"messages\""),
        ] {
            let found = parse(&line).unwrap_err().problem;
            assert!(found.contains(reason), "{line}: {found}");
        }
    }

    #[test]
    fn what_is_longer_than_a_block_or_the_model_is_left_out_and_counted() {
        let document =
            |tokens| Document { line: 1, ids: vec![1; tokens], learnt: vec![true; tokens] };
        let documents = || [9, 8, 5, 3].map(document).to_vec();
        let fitted = |text: &str, positions_max| {
            let training = rlhfd_config::Training::Sft;
            let settings = TrainSettings::read(training, text, &[]).unwrap();
            let fitted = fit(documents(), &settings, positions_max);
            (fitted.blocks.len(), fitted.dropped.get("too_long").copied())
        };
        assert_eq!(fitted("block_tokens = 8", 64), (2, Some(1)));
        assert_eq!(fitted("block_tokens = 8\npacking = false", 64), (3, Some(1)));
        assert_eq!(fitted("block_tokens = 64", 64), (1, None));
        assert_eq!(fitted("block_tokens = 64", 6), (1, Some(2)), "6 positions");
    }
}
