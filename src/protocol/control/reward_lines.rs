//! The lines that a reward model is trained on: preferences with what may stand beside them, and
//! groups of responses with the pairs among them.
//!
//! In: the bytes of one line. Out: a checked line in its canonical form, which the worker reads, or
//! the reason for which it is bad. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lines::{Message, PreferenceLine, object, preference_line, prompt_messages, prompt_of};

/// The most responses of one group.
const RESPONSES_MAX: usize = 1024;

/// A checked line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RewardLine {
    /// Two responses.
    Pair(RewardPair),
    /// Any number of responses.
    Group(RewardGroup),
}

/// A preference, and what the data says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardPair {
    /// The two conversations.
    #[serde(flatten)]
    pub preference: PreferenceLine,
    /// How far the scores are asked to lie apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// The data's own score of the chosen response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_score: Option<f64>,
    /// That of the rejected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_score: Option<f64>,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Responses to one prompt, and which of them is better than which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardGroup {
    /// Ends with what is answered.
    pub prompt: Vec<Message>,
    /// At least two.
    pub responses: Vec<String>,
    /// `[chosen, rejected]`, as places in `responses`; at least one.
    pub pairs: Vec<[usize; 2]>,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Reads a line: a preference as [`preference_line`] has it, with `margin`, `source`, `chosen_score`
/// and `rejected_score` where they are given, or `{"prompt", "responses", "pairs"}` with a `source`.
///
/// Errors: the reason why the line is bad, as a sentence.
pub fn reward_line(line: &[u8]) -> Result<RewardLine, String> {
    let object = object(line)?;
    let source = match object.get("source") {
        None | Some(Value::Null) => None,
        Some(Value::String(source)) => Some(source.clone()),
        Some(_) => return Err("has a `source` that is not a string".to_owned()),
    };
    if object.contains_key("responses") || object.contains_key("pairs") {
        return group(&object, source).map(RewardLine::Group);
    }
    let preference = preference_line(line)?;
    let margin = number(&object, "margin")?;
    let (chosen_score, rejected_score) =
        (number(&object, "chosen_score")?, number(&object, "rejected_score")?);
    if chosen_score.is_some() != rejected_score.is_some() {
        return Err("has only one of `chosen_score` and `rejected_score`".to_owned());
    }
    Ok(RewardLine::Pair(RewardPair { preference, margin, chosen_score, rejected_score, source }))
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("has a `{key}` that is not a finite number")),
        },
    }
}

fn group(object: &Map<String, Value>, source: Option<String>) -> Result<RewardGroup, String> {
    if let Some(key) = ["chosen", "rejected", "margin"].iter().find(|k| object.contains_key(**k)) {
        return Err(format!("has `responses` or `pairs`, and `{key}` too; keep one form"));
    }
    let prompt = object.get("prompt").ok_or("has no `prompt`")?;
    let prompt = prompt_messages("prompt", prompt)?;
    prompt_of("prompt", &prompt)?;
    let list = object.get("responses").and_then(Value::as_array);
    let list = list.filter(|list| (2..=RESPONSES_MAX).contains(&list.len()));
    let responses: Vec<String> = list
        .and_then(|list| list.iter().map(|r| Some(r.as_str()?.to_owned())).collect())
        .ok_or_else(|| {
            format!("has no `responses` that is a list of 2 to {RESPONSES_MAX} texts")
        })?;
    let pairs = pairs(object, &responses)?;
    Ok(RewardGroup { prompt, responses, pairs, source })
}

fn pairs(object: &Map<String, Value>, responses: &[String]) -> Result<Vec<[usize; 2]>, String> {
    if let Some(place) = responses.iter().position(|text| text.trim().is_empty()) {
        return Err(format!("`responses[{place}]` is empty"));
    }
    let list = object.get("pairs").and_then(Value::as_array).filter(|list| !list.is_empty());
    let list = list.ok_or("has no `pairs` that is a list of [chosen, rejected]")?;
    let mut found: Vec<[usize; 2]> = Vec::with_capacity(list.len());
    for pair in list {
        let sides: [usize; 2] = serde_json::from_value(pair.clone())
            .map_err(|_| format!("{pair} of `pairs` is no pair of places in `responses`"))?;
        let [Some(chosen), Some(rejected)] = sides.map(|side| responses.get(side)) else {
            return Err(format!("{pair} of `pairs` is beyond the {} responses", responses.len()));
        };
        if chosen == rejected {
            return Err(format!("the responses of {pair} in `pairs` are the same"));
        }
        if found.contains(&sides) {
            return Err(format!("{pair} stands twice in `pairs`"));
        }
        found.push(sides);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(line: &str) -> String {
        serde_json::to_string(&reward_line(line.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn what_stands_beside_a_preference_is_kept_and_nothing_else() {
        let line = r#"{"prompt": "Q", "chosen": "yes", "rejected": "no", "margin": 0.5, "id": 3,
            "source": "hh", "chosen_score": 4, "rejected_score": 1.5}"#;
        assert_eq!(
            canonical(line),
            r#"{"chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"yes"}],"rejected":[{"role":"user","content":"Q"},{"role":"assistant","content":"no"}],"margin":0.5,"chosen_score":4.0,"rejected_score":1.5,"source":"hh"}"#
        );
        assert_eq!(canonical(&canonical(line)), canonical(line));
    }

    #[test]
    fn a_group_is_kept_whole() {
        let line = r#"{"prompt": "Q", "responses": ["a", "b", "c"], "pairs": [[2, 0], [0, 1]]}"#;
        assert_eq!(
            canonical(line),
            r#"{"prompt":[{"role":"user","content":"Q"}],"responses":["a","b","c"],"pairs":[[2,0],[0,1]]}"#
        );
        assert_eq!(canonical(&canonical(line)), canonical(line));
    }

    #[test]
    fn each_bad_line_has_its_reason() {
        let group = |responses: &str, pairs: &str| {
            format!(r#"{{"prompt": "Q", "responses": {responses}, "pairs": {pairs}}}"#)
        };
        let pair =
            |more: &str| format!(r#"{{"prompt": "Q", "chosen": "a", "rejected": "b", {more}}}"#);
        for (line, reason) in [
            (r#"{"prompt": "Q", "chosen": "a"}"#.to_owned(), "has no `rejected`"),
            (pair(r#""margin": "x""#), "`margin` that is not a finite number"),
            (pair(r#""source": 3"#), "`source` that is not a string"),
            (pair(r#""chosen_score": 3"#), "only one of"),
            (pair(r#""pairs": []"#), "and `chosen` too"),
            (r#"{"responses": ["a", "b"], "pairs": [[0, 1]]}"#.to_owned(), "has no `prompt`"),
            (group(r#"["a"]"#, "[[0, 1]]"), "2 to 1024 texts"),
            (group(r#"["a", 1]"#, "[[0, 1]]"), "2 to 1024 texts"),
            (group(r#"["a", ""]"#, "[[0, 1]]"), "`responses[1]` is empty"),
            (group(r#"["a", "b"]"#, "[]"), "has no `pairs`"),
            (group(r#"["a", "b"]"#, "[[0, -1]]"), "[0,-1] of `pairs` is no pair"),
            (group(r#"["a", "b"]"#, "[[0, 1, 2]]"), "is no pair"),
            (group(r#"["a", "b"]"#, "[[0, 2]]"), "beyond the 2 responses"),
            (group(r#"["a", "b", "a"]"#, "[[0, 2]]"), "are the same"),
            (group(r#"["a", "b"]"#, "[[1, 0], [1, 0]]"), "stands twice"),
        ] {
            let found = reward_line(line.as_bytes()).unwrap_err();
            assert!(found.contains(reason), "{line}: {found}");
        }
    }
}
