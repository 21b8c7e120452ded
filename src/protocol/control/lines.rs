//! The lines of an upload: one JSON object each, read strictly.
//!
//! In: the bytes of one line, without its end. Out: a checked prompt, conversation or preference, or the
//! reason for which the line is bad. Pure. A prompt is what `rlhfd_domain::prompt` takes for one; both
//! sides of a preference share such a prompt and end with the assistant's message; in a conversation to
//! learn from the assistant says something.

use rlhfd_domain::limits::{LINE_BYTES_MAX, PROMPT_MESSAGES_MAX};
use rlhfd_domain::offline::OfflinePreference;
use rlhfd_domain::prompt::{Prompt, Turn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation. The order of the fields is the canonical one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

/// A preference as it is kept: two whole conversations that differ in their last message only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceLine {
    /// Ends with the preferred answer.
    pub chosen: Vec<Message>,
    /// Ends with the other one.
    pub rejected: Vec<Message>,
}

/// A conversation to learn from, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationLine {
    /// Its turns, the assistant's among them.
    pub messages: Vec<Message>,
}

/// Reads a prompt: `{"messages": […]}`, `{"prompt": "…"}` or `{"context_messages": […]}`; other keys
/// are passed over.
///
/// Errors: the reason why the line is bad, as a sentence.
pub fn prompt_line(line: &[u8]) -> Result<Prompt, String> {
    let object = object(line)?;
    let keys = ["messages", "prompt", "context_messages"];
    let mut given = keys.into_iter().filter(|key| object.contains_key(*key));
    let Some(key) = given.next() else {
        return Err("has none of `messages`, `prompt` and `context_messages`".to_owned());
    };
    if let Some(other) = given.next() {
        return Err(format!("has both `{key}` and `{other}`; keep the one that is the prompt"));
    }
    prompt_of(key, &prompt_messages(key, &object[key])?)
}

/// A prompt's messages as the store keeps them: a JSON array of `{"role", "content"}`.
pub fn canonical(prompt: &Prompt) -> String {
    let message = |turn: &Turn| {
        let (role, content) = (Value::from(turn.role.as_str()), Value::from(turn.content.as_str()));
        Value::Object(Map::from_iter([("role".to_owned(), role), ("content".to_owned(), content)]))
    };
    Value::Array(prompt.turns().iter().map(message).collect()).to_string()
}

/// Reads a conversation to learn from: `{"messages": […]}`; other keys are passed over.
///
/// Errors: the reason why the line is bad, as a sentence.
pub fn conversation_line(line: &[u8]) -> Result<ConversationLine, String> {
    let object = object(line)?;
    let value = object.get("messages").ok_or("has no `messages`")?;
    let messages = messages("messages", value)?;
    let roles = ["system", "user", "assistant", "tool"];
    for (i, message) in messages.iter().enumerate() {
        if !roles.contains(&message.role.as_str()) {
            let role: String = message.role.chars().take(32).collect();
            return Err(format!("`messages[{i}]` has the role `{role}`: use {}", roles.join(", ")));
        }
        if message.role == "assistant" && message.content.trim().is_empty() {
            return Err(format!("`messages[{i}]`, the assistant's, is empty"));
        }
    }
    if messages.iter().all(|message| message.role != "assistant") {
        return Err("has no message of the assistant; there is nothing to learn".to_owned());
    }
    Ok(ConversationLine { messages })
}

/// Reads a preference: `{"chosen": [messages], "rejected": [messages]}`, or
/// `{"prompt", "chosen", "rejected"}` with texts or messages.
///
/// Errors: the reason why the line is bad, as a sentence.
pub fn preference_line(line: &[u8]) -> Result<PreferenceLine, String> {
    let object = object(line)?;
    let side = |key: &str| object.get(key).ok_or_else(|| format!("has no `{key}`"));
    let (chosen, rejected) = (side("chosen")?, side("rejected")?);
    let prompt = match object.get("prompt") {
        Some(value) => {
            let messages = prompt_messages("prompt", value)?;
            prompt_of("prompt", &messages)?;
            Some(messages)
        }
        None => None,
    };
    let chosen = conversation("chosen", chosen, prompt.as_deref())?;
    let rejected = conversation("rejected", rejected, prompt.as_deref())?;
    let shared = chosen.len() - 1;
    if shared != rejected.len() - 1 || chosen[..shared] != rejected[..shared] {
        return Err("the prompts of `chosen` and `rejected` differ; all messages before the last \
                    must be the same"
            .to_owned());
    }
    if chosen[shared] == rejected[shared] {
        return Err("`chosen` and `rejected` are the same; such a pair teaches nothing".to_owned());
    }
    prompt_of("chosen", &chosen[..shared])?;
    Ok(PreferenceLine { chosen, rejected })
}

/// Reads a preference as the domain has it: a prompt and two answers.
///
/// Errors: as [`preference_line`].
pub fn offline_line(line: &[u8]) -> Result<OfflinePreference, String> {
    let PreferenceLine { mut chosen, mut rejected } = preference_line(line)?;
    let (Some(better), Some(worse)) = (chosen.pop(), rejected.pop()) else {
        return Err("has a side without messages".to_owned());
    };
    let prompt = prompt_of("chosen", &chosen)?;
    OfflinePreference::new(prompt, better.content, worse.content).map_err(|e| e.to_string())
}

/// The largest weight of a line.
pub const WEIGHT_MAX: f64 = 1000.0;

/// How often a line of training data is taken: its `"weight"`, else once.
///
/// Errors: the reason why the line is bad, as a sentence.
pub fn weight(line: &[u8]) -> Result<f64, String> {
    let named = b"\"weight\"";
    // Few lines have one, and nothing else is looked for here.
    if !line.windows(named.len()).any(|bytes| bytes == named) {
        return Ok(1.0);
    }
    match object(line)?.get("weight") {
        None | Some(Value::Null) => Ok(1.0),
        Some(value) => {
            value.as_f64().filter(|weight| *weight > 0.0 && *weight <= WEIGHT_MAX).ok_or_else(
                || format!("has a `weight` that is no number above 0, at most {WEIGHT_MAX}"),
            )
        }
    }
}

pub(super) fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(too_long());
    }
    let text = std::str::from_utf8(line)
        .map_err(|e| format!("is not UTF-8 at byte {}", e.valid_up_to() + 1))?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("is {}, not a JSON object", kind(&other))),
        Err(e) => Err(format!("is not JSON: {} (column {})", cause(&e), e.column())),
    }
}

/// The reason for a line over [`LINE_BYTES_MAX`]; also said by those who never held all of it.
pub fn too_long() -> String {
    format!("is longer than {} MiB", LINE_BYTES_MAX >> 20)
}

/// serde_json's message without its own position: the line of a one-line document is always 1.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// A whole conversation, with the prompt's messages in front where they are given apart.
fn conversation(
    key: &str,
    value: &Value,
    prompt: Option<&[Message]>,
) -> Result<Vec<Message>, String> {
    let answer = match (value, prompt) {
        (Value::String(_), None) => {
            return Err(format!("`{key}` is a text, but there is no `prompt`; give messages"));
        }
        (Value::String(text), Some(_)) => vec![Message::new("assistant", text)],
        (value, _) => messages(key, value)?,
    };
    is_answer(key, &answer)?;
    let all = match prompt {
        None => answer,
        // Some data sets repeat the prompt in both sides: the same, said twice.
        Some(prompt) if answer.len() == prompt.len() + 1 && answer.starts_with(prompt) => answer,
        Some(prompt) if answer.len() == 1 => [prompt, &answer].concat(),
        Some(_) => {
            return Err(format!("`{key}` has messages before the answer that are not `prompt`'s"));
        }
    };
    if all.len() < 2 {
        return Err(format!("`{key}` has no message before the answer"));
    }
    Ok(all)
}

pub(super) fn prompt_messages(key: &str, value: &Value) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) if key == "prompt" => Ok(vec![Message::new("user", text)]),
        value => messages(key, value),
    }
}

fn messages(key: &str, value: &Value) -> Result<Vec<Message>, String> {
    let Value::Array(items) = value else {
        return Err(format!("`{key}` is {}, not an array of messages", kind(value)));
    };
    if items.is_empty() {
        return Err(format!("`{key}` is empty"));
    }
    // One more than a prompt may have: the answer.
    if items.len() > PROMPT_MESSAGES_MAX + 1 {
        return Err(format!(
            "`{key}` has {} messages, more than {PROMPT_MESSAGES_MAX}",
            items.len()
        ));
    }
    items.iter().enumerate().map(|(i, item)| message(key, i, item)).collect()
}

fn message(key: &str, i: usize, item: &Value) -> Result<Message, String> {
    let Value::Object(fields) = item else {
        return Err(format!("`{key}[{i}]` is {}, not an object", kind(item)));
    };
    let text = |field: &str| match fields.get(field) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("`{key}[{i}].{field}` is {}, not a string", kind(other))),
        None => Err(format!("`{key}[{i}]` has no `{field}`")),
    };
    let (role, content) = (text("role")?, text("content")?);
    // A call would change what the template renders: better refused than lost.
    if fields.get("tool_calls").is_some_and(|calls| !calls.is_null()) {
        return Err(format!("`{key}[{i}]` has `tool_calls`, which are not supported"));
    }
    Ok(Message::new(role, content))
}

/// What the domain says of a conversation that is to be answered.
pub(super) fn prompt_of(key: &str, messages: &[Message]) -> Result<Prompt, String> {
    let turn = |m: &Message| Turn { role: m.role.clone(), content: m.content.clone() };
    Prompt::new(messages.iter().map(turn).collect()).map_err(|e| format!("in `{key}`: {e}"))
}

fn is_answer(key: &str, messages: &[Message]) -> Result<(), String> {
    match messages.last() {
        None => Err(format!("`{key}` is empty")),
        Some(last) if last.role != "assistant" => Err(format!(
            "the last message of `{key}` is of role `{}`: an answer is of role `assistant`",
            last.role.chars().take(32).collect::<String>()
        )),
        Some(last) if last.content.trim().is_empty() => {
            Err(format!("the answer of `{key}` is empty"))
        }
        Some(_) => Ok(()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bad_prompt(line: &str) -> String {
        prompt_line(line.as_bytes()).unwrap_err()
    }

    fn bad_pair(line: &str) -> String {
        preference_line(line.as_bytes()).unwrap_err()
    }

    fn messages_of(line: &str) -> String {
        canonical(&prompt_line(line.as_bytes()).unwrap())
    }

    #[test]
    fn the_three_forms_of_a_prompt_are_one() {
        let expected = r#"[{"role":"user","content":"Hi ✓"}]"#;
        for line in [
            r#"{"prompt": "Hi ✓", "id": 7}"#,
            r#"{"messages": [{"role": "user", "content": "Hi \u2713"}]}"#,
            r#"{"context_messages": [{"content": "Hi ✓", "role": "user"}]}"#,
            r#"{"prompt": [{"role": "user", "content": "Hi ✓"}]}"#,
        ] {
            assert_eq!(messages_of(line), expected, "{line}");
        }
    }

    #[test]
    fn each_bad_prompt_has_its_reason() {
        for (line, reason) in [
            ("{", "is not JSON: EOF while parsing an object (column 1)"),
            ("[1]", "is an array, not a JSON object"),
            ("{}", "has none of"),
            (r#"{"prompt": "a", "messages": []}"#, "has both `messages` and `prompt`"),
            (r#"{"prompt": 3}"#, "`prompt` is a number"),
            (r#"{"prompt": "  "}"#, "no text to answer"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"messages": "hi"}"#, "`messages` is a string"),
            (r#"{"messages": ["hi"]}"#, "`messages[0]` is a string"),
            (r#"{"messages": [{"role": "user"}]}"#, "`messages[0]` has no `content`"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#,
                "`messages[0].content` is an array",
            ),
            (r#"{"messages": [{"role": "bot", "content": "x"}]}"#, "has the role `bot`"),
            (
                r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}"#,
                "the last turn is of role `assistant`",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}"#,
                "turn 2 is a system turn",
            ),
        ] {
            assert!(bad_prompt(line).contains(reason), "{line}: {}", bad_prompt(line));
        }
        assert_eq!(prompt_line(b"{\"prompt\": \"\xff\"}").unwrap_err(), "is not UTF-8 at byte 13");
        let long = vec![b' '; LINE_BYTES_MAX + 1];
        assert_eq!(prompt_line(&long).unwrap_err(), "is longer than 4 MiB");
    }

    #[test]
    fn nesting_beyond_reason_is_an_error_and_no_overflow() {
        let line = format!("{{\"prompt\": {}", "[".repeat(100_000));
        assert!(bad_prompt(&line).contains("recursion limit"));
    }

    #[test]
    fn the_forms_of_a_preference_are_one() {
        let user = Message::new("user", "Q");
        let expected = PreferenceLine {
            chosen: vec![user.clone(), Message::new("assistant", "yes")],
            rejected: vec![user, Message::new("assistant", "no")],
        };
        for line in [
            r#"{"prompt": "Q", "chosen": "yes", "rejected": "no"}"#,
            r#"{"prompt": "Q", "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"}"#,
            r#"{"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "no"}]}"#,
            r#"{"prompt": "Q",
                "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "no"}]}"#,
        ] {
            assert_eq!(preference_line(line.as_bytes()).unwrap(), expected, "{line}");
            let offline = offline_line(line.as_bytes()).unwrap();
            assert_eq!(canonical(offline.prompt()), r#"[{"role":"user","content":"Q"}]"#);
            assert_eq!((offline.chosen(), offline.rejected()), ("yes", "no"));
        }
    }

    #[test]
    fn each_bad_preference_has_its_reason() {
        for (line, reason) in [
            (r#"{"prompt": "Q", "chosen": "a"}"#, "has no `rejected`"),
            (r#"{"prompt": "Q", "rejected": "a"}"#, "has no `chosen`"),
            (r#"{"chosen": "a", "rejected": "b"}"#, "there is no `prompt`"),
            (r#"{"prompt": "Q", "chosen": "a", "rejected": "a"}"#, "are the same"),
            (
                r#"{"prompt": "Q", "chosen": "", "rejected": "a"}"#,
                "the answer of `chosen` is empty",
            ),
            (r#"{"prompt": "Q", "chosen": "a", "rejected": null}"#, "`rejected` is null"),
            (
                r#"{"chosen": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "a"}],
                    "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]}"#,
                "prompts of `chosen` and `rejected` differ",
            ),
            (
                r#"{"chosen": [{"role": "assistant", "content": "a"}],
                    "rejected": [{"role": "assistant", "content": "b"}]}"#,
                "no message before the answer",
            ),
            (
                r#"{"prompt": "Q", "chosen": [{"role": "user", "content": "X"}, {"role": "assistant", "content": "a"}], "rejected": "b"}"#,
                "not `prompt`'s",
            ),
        ] {
            assert!(bad_pair(line).contains(reason), "{line}: {}", bad_pair(line));
        }
    }

    #[test]
    fn each_bad_conversation_has_its_reason() {
        let good =
            r#"{"messages":[{"role":"user","content":""},{"role":"assistant","content":"a"}]}"#;
        let line = conversation_line(good.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&line).unwrap(), good);
        for (line, reason) in [
            (r#"{"prompt": "Q"}"#, "has no `messages`"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no message of the assistant"),
            (
                r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}"#,
                "`messages[1]`, the assistant's, is empty",
            ),
            (r#"{"messages": [{"role": "bot", "content": "q"}]}"#, "has the role `bot`"),
        ] {
            let found = conversation_line(line.as_bytes()).unwrap_err();
            assert!(found.contains(reason), "{line}: {found}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = prompt_line(&line);
            let _ = conversation_line(&line);
            let _ = offline_line(&line);
        }

        #[test]
        fn reading_the_canonical_form_gives_the_same(content in ".{1,40}") {
            prop_assume!(!content.trim().is_empty());
            let messages = serde_json::json!([{"role": "user", "content": content}]).to_string();
            prop_assert_eq!(messages_of(&format!("{{\"messages\": {messages}}}")), messages);
        }
    }
}
