//! Preferences as a preference model learns them: a question, and the label as its one learnt token.
//!
//! In: pairs, the seed. Out: [`Document`]s. Which response is called A is drawn, so that the model
//! does not learn a place; the draw is a function of the seed, the pair's number and copy alone. May not
//! enter: tensors, models.

use rlhfd_protocol::worker::Message;

use super::blocks::Document;
use super::mixture::Row;
use crate::errors::{InputError, TextError};
use crate::model::labels::Labels;
use crate::philox::philox4x32;
use crate::render::{PairText, Renderer};

/// Renders and tokenises pairs as questions with their labels.
///
/// The paper trains this model as it fine-tunes: by the likelihood of the answer "A" or "B". Here the
/// loss counts the label's token alone, not the turn's end, which is the same after either.
///
/// # Errors
/// [`InputError::Line`] with what the template or the tokenizer said.
pub(super) fn documents(
    rows: &[Row<'_, PairText>],
    renderer: &Renderer,
    (labels, seed): (Labels, u64),
) -> Result<Vec<(Document, usize)>, InputError> {
    let document = |row: &Row<'_, PairText>, copy: u32| {
        let chosen_as_a = chosen_as_a(seed, row.number, copy);
        let asked =
            question(&row.item, renderer, chosen_as_a).map_err(|error| row.refused(error))?;
        let label = if chosen_as_a { labels.a } else { labels.b };
        let mut learnt = vec![false; asked.len()];
        learnt.push(true);
        Ok(Document { line: row.line, ids: [asked, vec![label]].concat(), learnt })
    };
    let mut documents = Vec::with_capacity(rows.len());
    for row in rows {
        // Each copy asks in an order of its own; a row that is not drawn is counted by one.
        let copies = u32::try_from(row.copies).unwrap_or(u32::MAX);
        for copy in 0..copies.max(1) {
            documents.push((document(row, copy)?, row.copies.min(1)));
        }
    }
    Ok(documents)
}

fn question(
    text: &PairText,
    renderer: &Renderer,
    chosen_as_a: bool,
) -> Result<Vec<u32>, TextError> {
    let in_order =
        |chosen, rejected| if chosen_as_a { [chosen, rejected] } else { [rejected, chosen] };
    match text {
        PairText::Messages { prompt, chosen, rejected } => {
            renderer.question(prompt, in_order(single(chosen)?, single(rejected)?))
        }
        PairText::Plain { prompt, chosen, rejected } => {
            let turn = Message { role: "user".to_owned(), content: prompt.clone() };
            renderer.question(&[turn], in_order(chosen, rejected))
        }
    }
}

/// The text of an answer.
fn single(answer: &[Message]) -> Result<&str, TextError> {
    match answer {
        [only] => Ok(&only.content),
        more => Err(TextError::Unusable {
            problem: format!("an answer has {} messages", more.len()),
            mend: "a preference model compares answers of one message: let the others be the prompt",
        }),
    }
}

/// Sets these draws apart from all others of the same seed.
const LABEL: u32 = 0x4c41_424c;

/// Whether the chosen response of a row is called A: one bit of (seed, number, copy).
fn chosen_as_a(seed: u64, number: u64, copy: u32) -> bool {
    let halves = |x: u64| [(x & 0xffff_ffff) as u32, (x >> 32) as u32];
    let [low, high] = halves(number);
    philox4x32([low, high, copy, LABEL], halves(seed))[0] & 1 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_order_is_as_likely_and_follows_from_seed_and_line() {
        let drawn = |seed| (1..=4000).map(|row| chosen_as_a(seed, row, 0)).collect::<Vec<_>>();
        let (one, two) = (drawn(7), drawn(8));
        assert_eq!(one, drawn(7));
        assert_ne!(one, two);
        for draws in [one, two] {
            // 2000, deviation 32: six deviations either way.
            let count = draws.iter().filter(|as_a| **as_a).count();
            assert!((1810..2190).contains(&count), "{count}");
        }
    }
}
