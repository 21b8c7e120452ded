//! Preference pairs from a JSONL file, and from text to token ids of a bounded length.
//!
//! In: lines `{"chosen": [messages], "rejected": [messages]}` or `{"prompt", "chosen", "rejected"}`
//! (texts, or messages), or, in an iteration folder, token ids with the reference's log-probs. Out:
//! [`TokenPair`]s, and a count of what was left out and why. The first bad line is an error that
//! names it. May not enter: tensors, models.

use std::collections::BTreeMap;
use std::path::Path;

use rlhfd_config::{Overlong, TrainSettings, Training};
use rlhfd_protocol::worker::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::mixture::{self, DataFile, Row};
use super::pack::TokenPair;
use crate::data::{self, Lines, Refusal};
use crate::errors::{InputError, TextError};
use crate::render::{PairText, RenderRule, Renderer};
use crate::tokenizer::AddSpecial;

/// Pairs that fit, and how many did not, by reason.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fitted {
    /// In the order of the data.
    pub pairs: Vec<TokenPair>,
    /// Left out, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Kept, but cut to `max_length`.
    pub truncated: u64,
}

/// Reads files of pairs.
///
/// # Errors
/// [`InputError`], naming the first bad line.
pub fn read(files: &[DataFile], seed: u64) -> Result<Vec<Row<'_, PairText>>, InputError> {
    mixture::read(files, seed, pair_text)
}

/// A pair of an iteration folder's pairs.jsonl; other keys are passed over.
#[derive(Debug, Deserialize)]
struct IdLine {
    prompt_ids: Vec<u32>,
    chosen_ids: Vec<u32>,
    rejected_ids: Vec<u32>,
    reference_logprob_chosen: f64,
    reference_logprob_rejected: f64,
    #[serde(default = "plain_weight")]
    weight: f64,
}

fn plain_weight() -> f64 {
    1.0
}

/// Reads the pairs of an iteration folder: token ids, and the reference's log-probs.
///
/// # Errors
/// [`InputError`], naming the first bad line.
pub fn read_ids(path: &Path, vocabulary: usize) -> Result<Vec<TokenPair>, InputError> {
    let lines = Lines::read_all(path, |object| {
        let line: IdLine = serde_json::from_value(Value::Object(object.clone()))
            .map_err(|error| refusal(format!("the pair cannot be read: {error}")))?;
        id_pair(line, vocabulary)
    })?;
    Ok(lines.into_iter().map(|(_, pair)| pair).collect())
}

fn id_pair(line: IdLine, vocabulary: usize) -> Result<TokenPair, Refusal> {
    let sides = [&line.prompt_ids, &line.chosen_ids, &line.rejected_ids];
    if sides.iter().any(|ids| ids.is_empty()) {
        return Err(refusal("prompt, chosen or rejected has no token ids"));
    }
    if line.chosen_ids == line.rejected_ids {
        return Err(refusal("chosen and rejected have the same token ids"));
    }
    if let Some(id) = sides.into_iter().flatten().find(|id| **id as usize >= vocabulary) {
        return Err(refusal(format!("id {id} is beyond the model's {vocabulary} ids")));
    }
    let reference = (line.reference_logprob_chosen, line.reference_logprob_rejected);
    if !(reference.0.is_finite() && reference.1.is_finite()) {
        return Err(refusal("a reference log-prob is not finite"));
    }
    if !(line.weight.is_finite() && line.weight > 0.0) {
        return Err(refusal(format!("the weight {} is not above 0", line.weight)));
    }
    Ok(TokenPair {
        prompt: line.prompt_ids,
        chosen: line.chosen_ids,
        rejected: line.rejected_ids,
        reference: Some(reference),
        weight: line.weight,
    })
}

/// Renders and tokenises pairs: for DPO split into prompt and responses as TRL splits them, for a
/// reward model as two whole conversations.
///
/// # Errors
/// [`InputError::Line`] with what the template or the tokenizer said.
pub fn tokenise(
    rows: &[Row<'_, PairText>],
    renderer: &Renderer,
    (training, rule): (Training, RenderRule),
) -> Result<Vec<(TokenPair, usize)>, InputError> {
    let mut pairs = Vec::with_capacity(rows.len());
    for row in rows {
        let pair = match training {
            Training::Dpo => renderer.pair(&row.item, rule).map(|ids| TokenPair {
                prompt: ids.prompt,
                chosen: ids.chosen,
                rejected: ids.rejected,
                reference: None,
                weight: 1.0,
            }),
            Training::Sft | Training::Reward | Training::Preference => {
                whole_conversations(&row.item, renderer)
            }
        };
        pairs.push((pair.map_err(|error| row.refused(error))?, row.copies));
    }
    Ok(pairs)
}

fn whole_conversations(text: &PairText, renderer: &Renderer) -> Result<TokenPair, TextError> {
    let (chosen, rejected) = match text {
        PairText::Messages { prompt, chosen, rejected } => {
            let whole = |answer: &[Message]| {
                renderer.conversation(&prompt.iter().chain(answer).cloned().collect::<Vec<_>>())
            };
            (whole(chosen)?, whole(rejected)?)
        }
        PairText::Plain { prompt, chosen, rejected } => {
            let eos = renderer.tokenizer.special.get("eos_token").and_then(Value::as_str);
            let whole = |answer: &str| {
                let eos = eos.filter(|eos| !answer.ends_with(eos)).unwrap_or_default();
                let text = format!("{prompt}{answer}{eos}");
                renderer.tokenizer.encode_with(&text, AddSpecial::Yes)
            };
            (whole(chosen)?, whole(rejected)?)
        }
    };
    Ok(TokenPair { prompt: Vec::new(), chosen, rejected, reference: None, weight: 1.0 })
}

/// What a pair may measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of the longer side, prompt included: `max_length`, or the model's positions where
    /// they are fewer.
    pub tokens_max: usize,
    /// Tokens of the prompt.
    pub prompt_tokens_max: Option<usize>,
    /// What happens to longer pairs.
    pub overlong: Overlong,
}

impl Limits {
    /// The limits of a training of a model with so many positions.
    #[must_use]
    pub fn of(settings: &TrainSettings, training: Training, positions_max: usize) -> Self {
        Self {
            tokens_max: (settings.max_length as usize).min(positions_max),
            prompt_tokens_max: settings.max_prompt_length.map(|most| most as usize),
            overlong: match training {
                Training::Dpo => settings.overlong,
                Training::Sft | Training::Reward | Training::Preference => Overlong::Drop,
            },
        }
    }
}

/// Applies the limits. What does not fit is left out and counted, never cut silently.
#[must_use]
pub fn fit(pairs: Vec<TokenPair>, limits: &Limits) -> Fitted {
    let mut fitted = Fitted::default();
    for pair in pairs {
        let tokens = pair.tokens_max();
        match fit_one(pair, limits) {
            Ok(pair) => {
                fitted.truncated += u64::from(pair.tokens_max() < tokens);
                fitted.pairs.push(pair);
            }
            Err(reason) => *fitted.dropped.entry(reason).or_default() += 1,
        }
    }
    fitted
}

fn fit_one(mut pair: TokenPair, limits: &Limits) -> Result<TokenPair, &'static str> {
    if pair.chosen == pair.rejected {
        return Err("same_ids");
    }
    if limits.prompt_tokens_max.is_some_and(|most| pair.prompt.len() > most) {
        return Err("prompt_too_long");
    }
    if pair.tokens_max() <= limits.tokens_max {
        return Ok(pair);
    }
    // A reference's log-prob that came with the pair is that of the whole response: it says nothing of
    // a response that is cut.
    if limits.overlong == Overlong::Drop || pair.reference.is_some() {
        return Err("too_long");
    }
    if pair.prompt.len() >= limits.tokens_max {
        return Err("prompt_fills_max_length");
    }
    let room = limits.tokens_max - pair.prompt.len();
    pair.chosen.truncate(room);
    pair.rejected.truncate(room);
    if pair.chosen == pair.rejected { Err("same_ids_after_truncation") } else { Ok(pair) }
}

pub(super) fn refusal(problem: impl Into<String>) -> Refusal {
    let mend = "mend the line, or take it out of the file".to_owned();
    Refusal { problem: problem.into(), mend }
}

/// A pair that one can learn from: its sides differ, and neither is empty.
pub(super) fn pair_text(object: &Map<String, Value>) -> Result<PairText, Refusal> {
    let text = data::pair(object)?;
    let (same, empty) = match &text {
        PairText::Plain { chosen, rejected, .. } => {
            (chosen == rejected, [chosen, rejected].iter().any(|side| side.trim().is_empty()))
        }
        PairText::Messages { chosen, rejected, .. } => {
            let is_empty = |message: &Message| message.content.trim().is_empty();
            (chosen == rejected, [chosen, rejected].iter().any(|side| side.iter().all(is_empty)))
        }
    };
    if same {
        return Err(refusal("chosen and rejected are the same, which teaches nothing"));
    }
    if empty {
        return Err(refusal("an answer is empty"));
    }
    Ok(text)
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
