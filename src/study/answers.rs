//! Answers, as a daemon's database tells of them.
//!
//! In: a daemon. Out: [`Answer`]s. May not enter: what they are worth.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::prompts::Prompt;

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked.
    pub prompt: Prompt,
    /// The iteration whose policy wrote it; 0: the initial one.
    pub iteration: u64,
    /// 0 is greedy.
    pub temperature: f64,
    /// Its number among the prompt's answers.
    pub sample: u64,
    /// Its text, without the stop id.
    pub text: String,
    /// Whether it ended with the stop id.
    pub finished: bool,
    /// With the stop id.
    pub tokens: f64,
    /// The first scorer's score.
    pub score: f64,
    /// The canary's; NaN where there is none.
    #[serde(with = "maybe")]
    pub canary: f64,
    /// Its gold score; 0 until somebody asks for it.
    pub gold: f64,
}

/// JSON knows no NaN.
mod maybe {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        (!value.is_nan()).then_some(*value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// The answers that iterations drew, by prompt in the order of the draw.
///
/// Errors: SQL's.
pub fn generated(daemon: &Daemon, scorer: &str, canary: Option<&str>) -> Result<Vec<Vec<Answer>>> {
    let answers = all(daemon, "generate", scorer, canary)?;
    Ok(by_prompt(answers))
}

/// The answers to held-out prompts, of all policies.
///
/// Errors: SQL's.
pub fn evaluated(daemon: &Daemon, scorer: &str, canary: Option<&str>) -> Result<Vec<Answer>> {
    all(daemon, "evaluate", scorer, canary)
}

fn all(daemon: &Daemon, purpose: &str, scorer: &str, canary: Option<&str>) -> Result<Vec<Answer>> {
    let label = |table: &str, name: &str| {
        format!(
            "LEFT JOIN labels {table} ON {table}.response_id = r.id
             AND {table}.scorer_id = (SELECT max(id) FROM scorers WHERE name = '{name}')"
        )
    };
    let statement = format!(
        "SELECT r.id, json_extract(p.messages, '$[0].content'), coalesce(c.iteration, 0),
                r.temperature, r.sample, t.text, r.finish, r.tokens, l.score, k.score, r.iteration,
                r.ordinal
         FROM responses r JOIN response_texts t ON t.response_id = r.id
         JOIN prompts p ON p.id = r.prompt_id JOIN checkpoints c ON c.id = r.policy_id
         {} {} WHERE r.purpose = '{purpose}' AND",
        label("l", scorer),
        label("k", canary.unwrap_or(""))
    );
    let mut rows = daemon.pages(&statement, "r.id")?;
    let key = |row: &[Value], column: usize| row.get(column).and_then(Value::as_i64).unwrap_or(0);
    rows.sort_by_key(|row| (key(row, 10), key(row, 11), key(row, 4)));
    rows.iter().map(|row| answer(row).context("an answer's row is broken")).collect()
}

fn answer(row: &[Value]) -> Option<Answer> {
    let number = |column: usize| row.get(column).and_then(Value::as_f64);
    let text = |column: usize| row.get(column).and_then(Value::as_str);
    Some(Answer {
        prompt: Prompt::parse(text(1)?)?,
        iteration: row.get(2)?.as_u64()?,
        temperature: number(3)?,
        sample: row.get(4)?.as_u64()?,
        text: text(5)?.to_owned(),
        finished: text(6)? == "stop",
        tokens: number(7)?,
        score: number(8)?,
        canary: number(9).unwrap_or(f64::NAN),
        gold: 0.0,
    })
}

fn by_prompt(answers: Vec<Answer>) -> Vec<Vec<Answer>> {
    let mut groups: Vec<Vec<Answer>> = Vec::new();
    for answer in answers {
        match groups.last_mut().filter(|group| group[0].prompt == answer.prompt) {
            Some(group) => group.push(answer),
            None => groups.push(vec![answer]),
        }
    }
    groups
}
