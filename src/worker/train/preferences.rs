//! The data of a reward model: pairs and groups from a JSONL file, filtered and tokenised.
//!
//! In: lines `{"chosen", "rejected"}` with or without a `"prompt"` (a `"margin"`, a `"source"`,
//! `"chosen_score"` and `"rejected_score"` may stand beside them), or
//! `{"prompt", "responses": […], "pairs": [[chosen, rejected], …]}`. Out: [`Prepared`] groups, those
//! held out apart, and a count of the pairs left out by reason. A line that can mean nothing is an
//! error that names it; one that is only unfit to learn from is counted. May not enter: tensors.

use std::collections::{BTreeMap, BTreeSet};

use rlhfd_config::TrainSettings;
use rlhfd_protocol::worker::Message;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::duplicates::{Novelty, Seen};
use super::groups::{Group, Ranked};
use super::mixture::{self, DataFile};
use super::pairs;
use crate::data::{self, Refusal};
use crate::errors::{InputError, TextError};
use crate::render::{PairText, Renderer};
use crate::tokenizer::AddSpecial;

/// A prompt and the ways in which it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// A conversation.
    Messages {
        /// The shared turns.
        prompt: Vec<Message>,
        /// Each response's turns.
        responses: Vec<Vec<Message>>,
    },
    /// Plain text, which no template renders.
    Plain {
        /// The shared beginning.
        prompt: String,
        /// Each response's text.
        responses: Vec<String>,
    },
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceLine {
    /// What is compared.
    pub text: Text,
    /// Which won against which.
    pub pairs: Vec<Ranked>,
    /// Where it comes from.
    pub source: Option<String>,
    /// The data's own scores of chosen and rejected.
    pub scores: Option<(f64, f64)>,
}

/// What a reward model is trained on, and what it is held to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prepared {
    /// Trained on, in the order of the data.
    pub groups: Vec<Group>,
    /// Not trained on: no prompt stands on both sides.
    pub held_out: Vec<Group>,
    /// Pairs left out, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Pairs in the files, those that are trained on each time.
    pub pairs: usize,
}

/// The most responses of one group.
const RESPONSES_MAX: usize = 1024;

/// Reads files, leaves out what is unfit, tokenises the rest and parts off what is held out.
///
/// # Errors
/// [`InputError`], naming the first bad line.
pub fn prepare(
    files: (&[DataFile], u64),
    renderer: &Renderer,
    settings: &TrainSettings,
    positions_max: usize,
) -> Result<Prepared, InputError> {
    let mut prepared = Prepared::default();
    let mut seen = Seen::new(settings.near_duplicates);
    let tokens_max = (settings.max_length as usize).min(positions_max);
    for row in mixture::read(files.0, files.1, read)? {
        let count = row.item.pairs.len();
        prepared.pairs += count;
        if let Some(reason) = unfit(&row.item, settings, &mut seen) {
            *prepared.dropped.entry(reason).or_default() += count as u64;
            continue;
        }
        let group = tokenise(row.line, &row.item, renderer).map_err(|error| row.refused(error))?;
        let Some(group) = fitting(group, tokens_max, &mut prepared.dropped) else { continue };
        prepared.keep(group, row.copies, settings.held_out_share);
    }
    Ok(prepared)
}

impl Prepared {
    /// Takes a fitting group on one side: what is held out once, what is trained on as often as its
    /// weight has it.
    fn keep(&mut self, group: Group, copies: usize, held_out_share: f64) {
        let pairs = group.pairs.len();
        if is_held_out(&group.prompt_sum, held_out_share) {
            self.held_out.push(group);
            return;
        }
        match copies {
            0 => *self.dropped.entry(mixture::NOT_DRAWN).or_default() += pairs as u64,
            _ => self.pairs += (copies - 1) * pairs,
        }
        self.groups.extend(std::iter::repeat_n(group, copies));
    }
}

/// One line as a preference: its responses differ, and none is empty.
///
/// # Errors
/// A [`Refusal`] that names the key.
pub fn read(object: &Map<String, Value>) -> Result<PreferenceLine, Refusal> {
    let source = match object.get("source") {
        None | Some(Value::Null) => None,
        Some(Value::String(source)) => Some(source.clone()),
        Some(_) => return Err(pairs::refusal("\"source\" is not text")),
    };
    if object.contains_key("responses") || object.contains_key("pairs") {
        let (text, pairs) = group(object)?;
        return Ok(PreferenceLine { text, pairs, source, scores: None });
    }
    let text = match pairs::pair_text(object)? {
        PairText::Messages { prompt, chosen, rejected } => {
            Text::Messages { prompt, responses: vec![chosen, rejected] }
        }
        PairText::Plain { prompt, chosen, rejected } => {
            Text::Plain { prompt, responses: vec![chosen, rejected] }
        }
    };
    let apart = number(object, "margin")?.unwrap_or(0.0);
    let scores = match (number(object, "chosen_score")?, number(object, "rejected_score")?) {
        (Some(chosen), Some(rejected)) => Some((chosen, rejected)),
        (None, None) => None,
        _ => return Err(pairs::refusal("only one of chosen_score and rejected_score is given")),
    };
    let pairs = vec![Ranked { chosen: 0, rejected: 1, apart }];
    Ok(PreferenceLine { text, pairs, source, scores })
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<f64>, Refusal> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(pairs::refusal(format!("\"{key}\" is not a finite number"))),
        },
    }
}

fn group(object: &Map<String, Value>) -> Result<(Text, Vec<Ranked>), Refusal> {
    if let Some(key) = ["chosen", "rejected", "margin"].iter().find(|k| object.contains_key(**k)) {
        return Err(pairs::refusal(format!(
            "it has \"responses\" or \"pairs\", and \"{key}\" too"
        )));
    }
    let texts = object.get("responses").and_then(Value::as_array);
    let texts = texts.filter(|list| (2..=RESPONSES_MAX).contains(&list.len()));
    let texts: Option<Vec<&str>> = texts.and_then(|list| list.iter().map(Value::as_str).collect());
    let Some(texts) = texts else {
        let wanted = format!("\"responses\" is not a list of 2 to {RESPONSES_MAX} texts");
        return Err(pairs::refusal(wanted));
    };
    if let Some(place) = texts.iter().position(|text| text.trim().is_empty()) {
        return Err(pairs::refusal(format!("response {place} (from 0) is empty")));
    }
    let pairs = ranked(object, &texts)?;
    let owned = texts.into_iter().map(str::to_owned);
    let text = match object.get("prompt") {
        Some(Value::String(prompt)) => {
            Text::Plain { prompt: prompt.clone(), responses: owned.collect() }
        }
        Some(_) => {
            let answer = |content| vec![Message { role: "assistant".to_owned(), content }];
            Text::Messages { prompt: data::prompt(object)?, responses: owned.map(answer).collect() }
        }
        None => return Err(pairs::refusal("it has no \"prompt\"")),
    };
    Ok((text, pairs))
}

/// The pairs of a group, each held to its responses.
fn ranked(object: &Map<String, Value>, texts: &[&str]) -> Result<Vec<Ranked>, Refusal> {
    let list = object.get("pairs").and_then(Value::as_array).filter(|list| !list.is_empty());
    let Some(list) = list else {
        return Err(pairs::refusal("\"pairs\" is not a list of [chosen, rejected]"));
    };
    let mut found: Vec<Ranked> = Vec::with_capacity(list.len());
    for pair in list {
        let sides: Option<Vec<usize>> = pair.as_array().and_then(|sides| {
            let index = |side: &Value| usize::try_from(side.as_u64()?).ok();
            sides.iter().map(index).collect()
        });
        let Some([chosen, rejected]) = sides.as_deref() else {
            return Err(pairs::refusal(format!("{pair} is not a pair of places in \"responses\"")));
        };
        let (chosen, rejected) = (*chosen, *rejected);
        let (Some(better), Some(worse)) = (texts.get(chosen), texts.get(rejected)) else {
            let count = texts.len();
            return Err(pairs::refusal(format!("{pair} is beyond the {count} responses")));
        };
        if better == worse {
            return Err(pairs::refusal(format!("the responses of {pair} are the same")));
        }
        if found.iter().any(|other| (other.chosen, other.rejected) == (chosen, rejected)) {
            return Err(pairs::refusal(format!("the pair {pair} is given twice")));
        }
        found.push(Ranked { chosen, rejected, apart: 0.0 });
    }
    Ok(found)
}

/// Why a line is not learnt from; none where it is.
fn unfit(line: &PreferenceLine, settings: &TrainSettings, seen: &mut Seen) -> Option<&'static str> {
    match line.scores.map(|(chosen, rejected)| chosen - rejected) {
        Some(gap) if gap < 0.0 => return Some("scores_contradict"),
        Some(0.0) => return Some("tie"),
        Some(gap) if gap < settings.score_gap_min => return Some("near_equal_scores"),
        _ => {}
    }
    if let Text::Messages { prompt, responses } = &line.text
        && responses.iter().any(|response| !turns_are_sound(prompt, response))
    {
        return Some("bad_turns");
    }
    match seen.take(&texts(line)) {
        Novelty::New => None,
        Novelty::Exact => settings.drop_duplicates.then_some("duplicate"),
        Novelty::Near => Some("near_duplicate"),
    }
}

/// Whether, after a system turn at most, user and assistant alternate, the assistant ends, and
/// nobody but the system is silent.
fn turns_are_sound(prompt: &[Message], response: &[Message]) -> bool {
    let turns: Vec<&Message> = prompt.iter().chain(response).collect();
    let turns = match turns.split_first() {
        Some((first, rest)) if first.role == "system" => rest,
        _ => &turns[..],
    };
    let mut in_order = turns.iter().zip(["user", "assistant"].into_iter().cycle());
    turns.len().is_multiple_of(2)
        && !turns.is_empty()
        && in_order.all(|(turn, role)| turn.role == role)
        && turns.iter().all(|turn| !turn.content.trim().is_empty())
}

/// All texts of a line, those of the responses in the order of its pairs: what two lines have in
/// common if they teach the same.
fn texts(line: &PreferenceLine) -> Vec<&str> {
    let places = line.pairs.iter().flat_map(|pair| [pair.chosen, pair.rejected]);
    match &line.text {
        Text::Plain { prompt, responses } => {
            let responses = places.filter_map(|place| Some(responses.get(place)?.as_str()));
            std::iter::once(prompt.as_str()).chain(responses).collect()
        }
        Text::Messages { prompt, responses } => {
            let responses = places.filter_map(|place| responses.get(place)).flatten();
            prompt.iter().chain(responses).map(|turn| turn.content.as_str()).collect()
        }
    }
}

/// Each text goes in with its length before it, so that no two prompts have the same bytes.
fn prompt_hash(text: &Text) -> Sha256 {
    let mut sum = Sha256::new();
    sum.update(b"rlhfd preference prompt 1");
    let mut add = |text: &str| {
        sum.update((text.len() as u64).to_le_bytes());
        sum.update(text);
    };
    match text {
        Text::Plain { prompt, .. } => add(prompt),
        Text::Messages { prompt, .. } => {
            for turn in prompt {
                add(&turn.role);
                add(&turn.content);
            }
        }
    }
    sum
}

/// Whether a prompt of this sum is held out when a share (0 to 1) of all is: the first 53 bits of a
/// sum, as a number from 0 to 1.
fn is_held_out(prompt_sum: &[u8; 32], share: f64) -> bool {
    let mut sum = Sha256::new();
    sum.update(b"rlhfd held out 1");
    sum.update(prompt_sum);
    let sum = sum.finalize();
    let bits = sum.iter().take(8).fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte)) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    let uniform = bits as f64 / (1_u64 << 53) as f64;
    uniform < share
}

fn tokenise(
    line: usize,
    preference: &PreferenceLine,
    renderer: &Renderer,
) -> Result<Group, TextError> {
    let tokenizer = &renderer.tokenizer;
    let mut conversations = Vec::new();
    let mut response_tokens = Vec::new();
    match &preference.text {
        Text::Messages { prompt, responses } => {
            for response in responses {
                let whole: Vec<Message> = prompt.iter().chain(response).cloned().collect();
                conversations.push(renderer.conversation(&whole)?);
                let texts = response.iter().filter(|turn| turn.role == "assistant");
                let tokens = texts.map(|turn| tokenizer.encode(&turn.content).map(|ids| ids.len()));
                response_tokens.push(tokens.sum::<Result<usize, TextError>>()?);
            }
        }
        Text::Plain { prompt, responses } => {
            let eos = tokenizer.special.get("eos_token").and_then(Value::as_str);
            for response in responses {
                let eos = eos.filter(|eos| !response.ends_with(eos)).unwrap_or_default();
                let text = format!("{prompt}{response}{eos}");
                conversations.push(tokenizer.encode_with(&text, AddSpecial::Yes)?);
                response_tokens.push(tokenizer.encode(response)?.len());
            }
        }
    }
    Ok(Group {
        line,
        conversations,
        response_tokens,
        pairs: preference.pairs.clone(),
        source: preference.source.clone(),
        prompt_sum: prompt_hash(&preference.text).finalize().into(),
    })
}

/// The pairs of a group whose sides fit and differ; what does not is left out and counted, never cut.
fn fitting(
    group: Group,
    tokens_max: usize,
    dropped: &mut BTreeMap<&'static str, u64>,
) -> Option<Group> {
    let reason = |pair: &Ranked| {
        let [chosen, rejected] =
            [pair.chosen, pair.rejected].map(|index| &group.conversations[index]);
        if chosen == rejected {
            return Some("same_ids");
        }
        (chosen.len().max(rejected.len()) > tokens_max).then_some("too_long")
    };
    for why in group.pairs.iter().filter_map(reason) {
        *dropped.entry(why).or_default() += 1;
    }
    let fits: BTreeSet<(usize, usize)> = group
        .pairs
        .iter()
        .filter(|pair| reason(pair).is_none())
        .map(|pair| (pair.chosen, pair.rejected))
        .collect();
    group.with_pairs(|pair| fits.contains(&(pair.chosen, pair.rejected)))
}

#[cfg(test)]
#[path = "preferences_tests.rs"]
mod tests;
