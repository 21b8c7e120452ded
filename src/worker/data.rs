//! JSONL files of the file mode, read line by line.
//!
//! In: a path. Out: prompts, conversations, pairs; each error names the file, the line, the reason and
//! the mend. Lines are bounded, so that no file can take the machine's memory. May not enter: token
//! ids, models.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use rlhfd_protocol::worker::Message;
use serde_json::{Map, Value};

use crate::errors::{InputError, TextError};
use crate::render::PairText;

/// The longest line that is read.
pub const LINE_BYTES_MAX: usize = 8 << 20;

/// Keys of a message that would change its rendering and that are not supported.
const MESSAGE_KEYS_REFUSED: [&str; 4] =
    ["tool_calls", "tool_call_id", "reasoning_content", "thinking"];

/// A JSONL file, open for reading.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
}

/// One line: its number, counted from 1, and the object on it.
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// The object.
    pub object: Map<String, Value>,
}

/// Lines that are read at most, so that a wrong file is told before it fills the memory.
const LINES_MAX: usize = 50_000_000;

impl Lines {
    /// Opens a file.
    ///
    /// Errors: `File`.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let file = File::open(path).map_err(|source| InputError::File {
            path: path.to_owned(),
            action: "read",
            mend: "check the path",
            source,
        })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), line: 0 })
    }

    /// The next line that is not blank, or nothing at the end.
    ///
    /// Errors: `Line`, with its number.
    pub fn next_line(&mut self) -> Result<Option<Line>, InputError> {
        while self.line < LINES_MAX {
            let mut bytes = Vec::new();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes);
            let read = read.map_err(|source| InputError::File {
                path: self.path.clone(),
                action: "read",
                mend: "check that it is a file",
                source,
            })?;
            if read == 0 {
                break;
            }
            self.line += 1;
            if read as u64 == limit {
                return Err(self.wrong(
                    format!("the line is longer than {} MiB", LINE_BYTES_MAX >> 20),
                    "one JSON object to a line, each shorter than that",
                ));
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return self.parse(&bytes).map(Some);
        }
        if self.line == 0 {
            return Err(InputError::Empty { path: self.path.clone() });
        }
        Ok(None)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Line, InputError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            self.wrong(
                format!("byte {} is not UTF-8", error.valid_up_to() + 1),
                "save the file as UTF-8",
            )
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Line { number: self.line, object }),
            Ok(other) => Err(self.wrong(
                format!("it is {}, not a JSON object", kind_of(&other)),
                "put one {…} on each line",
            )),
            Err(error) => Err(self.wrong(
                format!("it is no JSON (column {}: {})", error.column(), reason(&error)),
                "put one whole JSON object on each line",
            )),
        }
    }

    fn wrong(&self, problem: String, mend: &str) -> InputError {
        self.wrong_at(self.line, problem, mend)
    }

    /// An error about a line of this file.
    #[must_use]
    pub fn wrong_at(&self, line: usize, problem: String, mend: &str) -> InputError {
        InputError::Line { path: self.path.clone(), line, problem, mend: mend.to_owned() }
    }

    /// Reads every line with `read`; an empty file is an error.
    ///
    /// Errors: the first line's that `read` refuses.
    pub fn read_all<T>(
        path: &Path,
        read: impl Fn(&Map<String, Value>) -> Result<T, Refusal>,
    ) -> Result<Vec<(usize, T)>, InputError> {
        let mut lines = Self::open(path)?;
        let mut items = Vec::new();
        while let Some(line) = lines.next_line()? {
            let item = read(&line.object)
                .map_err(|refusal| lines.wrong(refusal.problem, &refusal.mend))?;
            items.push((line.number, item));
        }
        if items.is_empty() {
            return Err(InputError::Empty { path: path.to_owned() });
        }
        Ok(items)
    }
}

/// Why an object cannot be used.
#[derive(Debug)]
pub struct Refusal {
    /// What is wrong.
    pub problem: String,
    /// How to mend it.
    pub mend: String,
}

impl Refusal {
    fn new(problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { problem: problem.into(), mend: mend.into() }
    }
}

impl From<TextError> for Refusal {
    /// Text errors carry their mend after "try: ".
    fn from(error: TextError) -> Self {
        let text = error.to_string();
        match text.split_once("\ntry: ") {
            Some((problem, mend)) => Self::new(problem, mend),
            None => Self::new(text, "mend this line"),
        }
    }
}

/// A prompt: `{"messages": […]}`, `{"context_messages": […]}` or `{"prompt": "…"}`, which is a user's
/// message.
///
/// Errors: a [`Refusal`] that names the key.
pub fn prompt(object: &Map<String, Value>) -> Result<Vec<Message>, Refusal> {
    for key in ["messages", "context_messages"] {
        if let Some(value) = object.get(key) {
            return messages(key, value);
        }
    }
    match object.get("prompt") {
        Some(Value::String(text)) => {
            Ok(vec![Message { role: "user".to_owned(), content: text.clone() }])
        }
        Some(value @ Value::Array(_)) => messages("prompt", value),
        Some(other) => Err(Refusal::new(
            format!("\"prompt\" is {}, not text", kind_of(other)),
            "write {\"prompt\": \"…\"}",
        )),
        None => Err(Refusal::new(
            "it has neither \"messages\" nor \"prompt\"",
            "write {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}]} or {\"prompt\": \"…\"}",
        )),
    }
}

/// A whole conversation: `{"messages": […]}`.
///
/// Errors: a [`Refusal`] that names the key.
pub fn conversation(object: &Map<String, Value>) -> Result<Vec<Message>, Refusal> {
    match object.get("messages") {
        Some(value) => messages("messages", value),
        None => Err(Refusal::new(
            "it has no \"messages\"",
            "write {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}",
        )),
    }
}

/// A pair: `{"chosen": [messages], "rejected": [messages]}`, or with a `"prompt"` that both continue
/// (as messages or as plain text).
///
/// Errors: a [`Refusal`] that names the key, also where the prompts differ.
pub fn pair(object: &Map<String, Value>) -> Result<PairText, Refusal> {
    let get = |key: &str| {
        object.get(key).ok_or_else(|| {
            Refusal::new(
                format!("it has no \"{key}\""),
                "write {\"chosen\": [messages], \"rejected\": [messages]}",
            )
        })
    };
    let (chosen, rejected) = (get("chosen")?, get("rejected")?);
    match (object.get("prompt"), chosen, rejected) {
        (None, chosen, rejected) => {
            let (chosen, rejected) = (messages("chosen", chosen)?, messages("rejected", rejected)?);
            Ok(PairText::from_conversations(&chosen, &rejected)?)
        }
        (Some(Value::String(prompt)), Value::String(chosen), Value::String(rejected)) => {
            Ok(PairText::Plain {
                prompt: prompt.clone(),
                chosen: chosen.clone(),
                rejected: rejected.clone(),
            })
        }
        (Some(prompt @ Value::Array(_)), chosen, rejected) => {
            let prompt = messages("prompt", prompt)?;
            let (chosen, rejected) = (messages("chosen", chosen)?, messages("rejected", rejected)?);
            for (key, answer) in [("chosen", &chosen), ("rejected", &rejected)] {
                if answer[0].role != "assistant" {
                    return Err(Refusal::new(
                        format!("\"{key}\" begins with a message of {:?}", answer[0].role),
                        "beside a \"prompt\" the answers hold only what comes after it",
                    ));
                }
            }
            Ok(PairText::Messages { prompt, chosen, rejected })
        }
        (Some(_), _, _) => Err(Refusal::new(
            "\"prompt\", \"chosen\" and \"rejected\" are of different kinds",
            "give all three as lists of messages, or all three as text",
        )),
    }
}

/// The most messages of one conversation.
const MESSAGES_MAX: usize = 10_000;

/// A list of messages under `key`.
fn messages(key: &str, value: &Value) -> Result<Vec<Message>, Refusal> {
    let mend = "write a list of {\"role\": \"…\", \"content\": \"…\"}";
    let Value::Array(list) = value else {
        return Err(Refusal::new(format!("\"{key}\" is {}, not a list", kind_of(value)), mend));
    };
    if list.is_empty() || list.len() > MESSAGES_MAX {
        return Err(Refusal::new(
            format!("\"{key}\" has {} messages", list.len()),
            format!("give 1 to {MESSAGES_MAX}"),
        ));
    }
    list.iter().enumerate().map(|(index, value)| message(key, index + 1, value)).collect()
}

fn message(key: &str, number: usize, value: &Value) -> Result<Message, Refusal> {
    let text = |field: &str| match value.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(Refusal::new(
            format!("\"{field}\" of message {number} in \"{key}\" is {}, not text", kind_of(other)),
            "only text content is supported",
        )),
        None => Err(Refusal::new(
            format!("message {number} in \"{key}\" has no \"{field}\""),
            "each message is {\"role\": \"…\", \"content\": \"…\"}",
        )),
    };
    let refused = MESSAGE_KEYS_REFUSED
        .iter()
        .find(|key| value.get(**key).is_some_and(|value| !value.is_null()));
    if let Some(refused) = refused {
        return Err(Refusal::new(
            format!("message {number} in \"{key}\" has \"{refused}\", which is not supported"),
            "give plain conversations of text",
        ));
    }
    Ok(Message { role: text("role")?, content: text("content")? })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// serde_json's message without the place, which is told beside it.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(content: &[u8]) -> Result<Vec<(usize, PairText)>, InputError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        Lines::read_all(file.path(), pair)
    }

    #[test]
    fn each_wrong_line_is_told_by_its_number_and_reason() {
        let good =
            r#"{"chosen": [{"role":"user","content":"q"},{"role":"assistant","content":"a"}],
            "rejected": [{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#
                .replace('\n', "");
        let long = format!("{{\"chosen\": \"{}\"}}", "x".repeat(10 << 20));
        let cases: &[(&[u8], &str)] = &[
            (b"{\"chosen\": ", "no JSON"),
            (b"[1, 2]", "a list, not a JSON object"),
            (b"{\"chosen\": []}", "no \"rejected\""),
            (b"{\"chosen\": 3, \"rejected\": 4}", "a number, not a list"),
            (b"{\"chosen\": [], \"rejected\": []}", "0 messages"),
            (b"{\"chosen\": [{\"role\": \"user\"}], \"rejected\": []}", "no \"content\""),
            (b"{\"chosen\": [{\"role\": \"user\", \"content\": 1}], \"rejected\": []}", "not text"),
            (b"\"\xff\xfe\"", "not UTF-8"),
            (long.as_bytes(), "longer than 8 MiB"),
        ];
        for (line, wanted) in cases {
            let mut content = good.clone().into_bytes();
            content.extend_from_slice(b"\n\n");
            content.extend_from_slice(line);
            let error = read(&content).unwrap_err().to_string();
            assert!(error.contains("line 3") && error.contains(wanted), "{error}");
        }
        assert!(matches!(read(b""), Err(InputError::Empty { .. })));
        assert!(matches!(read(b"\n \n"), Err(InputError::Empty { .. })));
        assert_eq!(read(good.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn pairs_whose_prompts_differ_are_refused() {
        let turn =
            |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        let whole = |chosen: Vec<Value>, rejected: Vec<Value>| {
            let mut object = Map::new();
            object.insert("chosen".to_owned(), Value::Array(chosen));
            object.insert("rejected".to_owned(), Value::Array(rejected));
            pair(&object)
        };
        let (q, a, b) = (turn("user", "q"), turn("assistant", "a"), turn("assistant", "b"));
        let other = turn("user", "other");
        assert!(whole(vec![q.clone(), a.clone()], vec![q.clone(), b.clone()]).is_ok());
        assert!(whole(vec![q.clone(), a.clone()], vec![other.clone(), b.clone()]).is_err());
        let deeper = whole(
            vec![q.clone(), a.clone(), q.clone(), a.clone()],
            vec![q.clone(), a.clone(), other, b],
        );
        assert!(deeper.unwrap_err().problem.contains("message 3"));
        assert!(whole(vec![a.clone()], vec![a]).is_err());
    }
}
