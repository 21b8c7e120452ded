//! Prefer: responses to a prompt compared by a preference model; in evaluation a policy's answers with
//! its baseline's.
//!
//! In: responses of a unit. Out: how likely one beats the other, pair by pair, and in the main flow a
//! score a response. The same text is one response: two of them are even, and nobody is asked. May not
//! enter: which pairs are asked, what makes a score of them (`rlhfd_domain::label::compare`).

use std::collections::BTreeMap;

use rlhfd_config::CheckedConfig;
use rlhfd_domain::label::compare::{Compare, EVEN, Known, Places};
use rlhfd_domain::{ResponseId, Stage};
use rlhfd_protocol::worker::{self, Item, ItemResult, Work};
use rlhfd_store::{Compared, Outcome, Scored, UnitRow};

use super::render::messages;
use super::score::responses_together;
use crate::actors::stage::{
    Answer, Conclude, ItemKeys, Prepared, StageContext, StageError, by_item, finish, reason_word,
    unexpected,
};
use crate::handles::now_ms;

/// What a prefer unit's items stand for.
#[derive(Debug, Clone)]
pub struct Comparisons {
    compare: worker::Compare,
    /// Of each item, which responses have each of its texts; the first of them stands for the text.
    asked: Vec<Vec<Vec<ResponseId>>>,
    /// Nothing to ask: a response without another text beside it, or an answer like its baseline's.
    even: Vec<(ResponseId, Option<ResponseId>)>,
}

/// The unit's prompts, each with its different responses.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let config = ctx.config_of(unit).await?;
    let Some(by) = unit.scorer else {
        return Err(StageError::Input(format!("the unit {} names no scorer", unit.key)));
    };
    let model = super::score::scorer(ctx, by).await?;
    let row = ctx.store.read(move |r| r.scorer_by_id(by)).await?;
    let compare = compare(&config, unit, &row.name);
    let mut keys = Comparisons { compare, asked: Vec::new(), even: Vec::new() };
    let items = if unit.stage == Stage::Evaluate {
        beside_the_baseline(ctx, unit, &mut keys).await?
    } else {
        among_each_other(ctx, unit, &mut keys).await?
    };
    let responses = responses_together(&config, unit);
    let work = Work::Prefer {
        model: model.clone(),
        compare,
        batch_items: super::generate::batch_items(unit),
        // A pair is asked twice, in both orders.
        together: (responses / 2).max(1),
    };
    Ok(Prepared { work, load: Some(vec![model]), items, keys: ItemKeys::Comparisons(keys) })
}

fn compare(config: &CheckedConfig, unit: &UnitRow, scorer: &str) -> worker::Compare {
    if unit.stage == Stage::Evaluate {
        return worker::Compare::Halves;
    }
    match config.label.scorer(scorer).map(|scorer| scorer.compare) {
        Some(rlhfd_config::Compare::Linear) => worker::Compare::Linear,
        Some(rlhfd_config::Compare::RoundRobin) | None => worker::Compare::RoundRobin,
    }
}

type Items = Vec<(Item, Vec<u8>)>;

/// The responses to each prompt of the main flow, by their texts.
async fn among_each_other(
    ctx: &StageContext,
    unit: &UnitRow,
    keys: &mut Comparisons,
) -> Result<Items, StageError> {
    let id = unit.id;
    let rows = ctx.store.read(move |r| r.score_items(id)).await?;
    let mut items = Vec::new();
    for prompt in rows.chunk_by(|a, b| a.ordinal == b.ordinal) {
        let Some(first) = prompt.first() else { continue };
        let mut texts: Vec<String> = Vec::new();
        let mut who: Vec<Vec<ResponseId>> = Vec::new();
        for row in prompt {
            match texts.iter().position(|text| *text == row.text).and_then(|i| who.get_mut(i)) {
                Some(same) => same.push(row.response),
                None => {
                    texts.push(row.text.clone());
                    who.push(vec![row.response]);
                }
            }
        }
        if texts.len() < 2 {
            keys.even.extend(prompt.iter().map(|row| (row.response, None)));
            continue;
        }
        let messages = messages(&first.messages)?;
        items.push((Item::Responses { messages, responses: texts }, Vec::new()));
        keys.asked.push(who);
    }
    Ok(items)
}

/// A policy's answers to each prompt, and behind them the baseline's in the same order.
async fn beside_the_baseline(
    ctx: &StageContext,
    unit: &UnitRow,
    keys: &mut Comparisons,
) -> Result<Items, StageError> {
    let id = unit.id;
    let rows = ctx.store.read(move |r| r.versus_items(id)).await?;
    let mut items = Vec::new();
    for prompt in rows.chunk_by(|a, b| a.ordinal == b.ordinal) {
        let (same, differ): (Vec<_>, Vec<_>) =
            prompt.iter().partition(|row| row.text == row.versus_text);
        keys.even.extend(same.iter().map(|row| (row.response, Some(row.versus))));
        let Some(first) = differ.first() else { continue };
        let own = differ.iter().map(|row| (row.text.clone(), vec![row.response]));
        let others = differ.iter().map(|row| (row.versus_text.clone(), vec![row.versus]));
        let (responses, who) = own.chain(others).unzip();
        let messages = messages(&first.messages)?;
        items.push((Item::Responses { messages, responses }, Vec::new()));
        keys.asked.push(who);
    }
    Ok(items)
}

/// Comparisons, and in the main flow scores.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let ItemKeys::Comparisons(keys) = done.keys else {
        return Err(StageError::Answers("a prefer unit's items are compared".into()));
    };
    let mut rows = Rows::default();
    for (response, versus) in &keys.even {
        let outcome = Outcome::Done(EVEN);
        match versus {
            Some(versus) => rows.pair(*response, *versus, outcome),
            None => rows.scores.push(Scored { response: *response, outcome }),
        }
    }
    let scored = done.unit.stage != Stage::Evaluate;
    for (who, answers) in keys.asked.iter().zip(by_item(done.answers, keys.asked.len())?) {
        let told = Told::of(answers, who.len())?;
        told.check(keys.compare.into(), who.len())?;
        rows.add(&told, keys.compare.into(), who, scored);
    }
    let (compared, scores) = (rows.compared, rows.scores);
    ctx.write_patiently(move |s| s.finish_prefer(&finish, &compared, &scores, now_ms())).await?;
    Ok(())
}

/// Why a comparison was not made: a word, and a sentence.
type Refusal = (String, String);

/// What was told of one item.
#[derive(Debug, Default)]
struct Told {
    known: Known,
    refused: BTreeMap<Places, Refusal>,
    /// The item as a whole.
    whole: Option<Refusal>,
}

impl Told {
    /// Errors: a pair that is none of the item's, or one that was answered twice.
    fn of(answers: Vec<Answer>, texts: usize) -> Result<Self, StageError> {
        let mut told = Self::default();
        for answer in answers {
            let index = answer.index;
            let (first, second, outcome) = match answer.result {
                ItemResult::Preference { first, second, preference, .. } => {
                    (first, second, Ok(preference))
                }
                ItemResult::NotCompared { first, second, reason, message } => {
                    (first, second, Err((reason_word(reason).to_owned(), message)))
                }
                ItemResult::Refused { reason, message } => {
                    told.whole = Some((reason_word(reason).to_owned(), message));
                    continue;
                }
                _ => return Err(unexpected(&answer)),
            };
            let pair = (first as usize, second as usize);
            if pair.0 >= pair.1 || pair.1 >= texts {
                let what = format!("item {index} has no pair {first} and {second}");
                return Err(StageError::Answers(what));
            }
            let outcome = outcome.and_then(|preference| match preference.is_finite() {
                true => Ok(preference),
                false => Err(("non_finite".to_owned(), format!("the preference is {preference}"))),
            });
            let preference = match outcome {
                Ok(preference) => Some(preference),
                Err(refusal) => {
                    told.refused.insert(pair, refusal);
                    None
                }
            };
            if told.known.insert(pair, preference).is_some() {
                let what = format!("{first} and {second} of item {index} were compared twice");
                return Err(StageError::Answers(what));
            }
        }
        Ok(told)
    }

    /// Errors: a comparison is missing.
    fn check(&self, compare: Compare, texts: usize) -> Result<(), StageError> {
        match compare.wanted(texts, &self.known).first().filter(|_| self.whole.is_none()) {
            None => Ok(()),
            Some((first, second)) => {
                let what = format!("responses {first} and {second} of an item were not compared");
                Err(StageError::Answers(what))
            }
        }
    }

    fn refusal(&self, text: usize) -> Refusal {
        let of = |((a, b), _): &(&Places, &Refusal)| *a == text || *b == text;
        let first = self.refused.iter().find(of).map(|(_, refusal)| refusal);
        let (reason, message) = self.whole.as_ref().or(first).cloned().unwrap_or_default();
        (reason, message)
    }
}

/// Rows of a unit, as they grow.
#[derive(Debug, Default)]
struct Rows {
    compared: Vec<Compared>,
    scores: Vec<Scored>,
}

impl Rows {
    fn pair(&mut self, response: ResponseId, versus: ResponseId, outcome: Outcome<f64>) {
        self.compared.push(Compared { response, versus, outcome });
    }

    fn add(&mut self, told: &Told, compare: Compare, who: &[Vec<ResponseId>], scored: bool) {
        let stands = |text: usize| who.get(text).and_then(|same| same.first()).copied();
        let pairs: Vec<(Places, Option<f64>)> = match (&told.whole, scored) {
            (Some(_), true) => Vec::new(),
            (Some(_), false) => {
                compare.wanted(who.len(), &Known::new()).into_iter().map(|p| (p, None)).collect()
            }
            (None, _) => told.known.iter().map(|(pair, known)| (*pair, *known)).collect(),
        };
        for ((first, second), preference) in pairs {
            let (Some(response), Some(versus)) = (stands(first), stands(second)) else { continue };
            let refusal = told.refused.get(&(first, second)).or(told.whole.as_ref());
            let outcome = match (preference, refusal) {
                (Some(preference), _) => Outcome::Done(preference),
                (None, refusal) => {
                    let (reason, message) = refusal.cloned().unwrap_or_default();
                    Outcome::SetAside(reason, message)
                }
            };
            self.pair(response, versus, outcome);
        }
        if !scored {
            return;
        }
        let known = if told.whole.is_some() { &Known::new() } else { &told.known };
        for (text, score) in compare.scores(who.len(), known).into_iter().enumerate() {
            for response in who.get(text).into_iter().flatten() {
                let outcome = match score {
                    Some(score) => Outcome::Done(score),
                    None => {
                        let (reason, message) = told.refusal(text);
                        Outcome::SetAside(reason, message)
                    }
                };
                self.scores.push(Scored { response: *response, outcome });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::worker::Reason;

    use super::*;

    fn answer(result: ItemResult) -> Answer {
        Answer { index: 0, result, payload: Vec::new() }
    }

    fn prefers(first: u32, second: u32, preference: f64) -> Answer {
        answer(ItemResult::Preference { first, second, preference, tokens: 1 })
    }

    fn who() -> Vec<Vec<ResponseId>> {
        vec![vec![ResponseId(1), ResponseId(4)], vec![ResponseId(2)], vec![ResponseId(3)]]
    }

    fn added(told: &Told, compare: Compare, scored: bool) -> Rows {
        let mut rows = Rows::default();
        rows.add(told, compare, &who(), scored);
        rows
    }

    #[test]
    fn equal_texts_share_a_score_and_a_refused_response_is_set_aside() {
        let message = "x".to_owned();
        let refused = |first, second| {
            let (reason, message) = (Reason::OverLong, message.clone());
            answer(ItemResult::NotCompared { first, second, reason, message })
        };
        let answers = vec![prefers(0, 1, 0.75), refused(0, 2), refused(1, 2)];
        let told = Told::of(answers, 3).unwrap();
        told.check(Compare::RoundRobin, 3).unwrap();
        let rows = added(&told, Compare::RoundRobin, true);
        let scores: Vec<_> = rows
            .scores
            .iter()
            .map(|row| (row.response.get(), matches!(row.outcome, Outcome::Done(_))))
            .collect();
        assert_eq!(scores, [(1, true), (4, true), (2, true), (3, false)]);
        assert_eq!(rows.scores[0].outcome, Outcome::Done(0.75));
        assert_eq!(rows.scores[2].outcome, Outcome::Done(0.25));
        assert_eq!(rows.scores[3].outcome, Outcome::SetAside("over_long".into(), "x".into()));
        assert_eq!(rows.compared.len(), 3);
        let whole = answer(ItemResult::Refused { reason: Reason::Template, message });
        let told = Told::of(vec![whole], 3).unwrap();
        told.check(Compare::RoundRobin, 3).unwrap();
        let rows = added(&told, Compare::RoundRobin, true);
        assert!(rows.compared.is_empty() && rows.scores.len() == 4);
        assert!(rows.scores.iter().all(|row| matches!(row.outcome, Outcome::SetAside(..))));
    }

    #[test]
    fn a_comparison_that_is_missing_double_or_strange_is_told() {
        let told = Told::of(vec![prefers(0, 1, 0.5), prefers(0, 2, 0.5)], 3).unwrap();
        assert!(told.check(Compare::RoundRobin, 3).is_err());
        told.check(Compare::Linear, 3).unwrap();
        assert!(Told::of(vec![prefers(0, 1, 0.5), prefers(0, 1, 0.5)], 3).is_err());
        assert!(Told::of(vec![prefers(1, 0, 0.5)], 3).is_err());
        assert!(Told::of(vec![prefers(0, 3, 0.5)], 3).is_err());
        let told = Told::of(vec![prefers(0, 1, f64::NAN)], 2).unwrap();
        assert_eq!(told.refusal(1).0, "non_finite");
    }
}
