//! Chat templates, rendered to the letter as transformers renders them.
//!
//! In: a template's source, the tokenizer's special tokens, messages. Out: [`Rendered`] text with the
//! spans that `{% generation %}` marks. A template is code from a model folder, so it runs with
//! bounded fuel and recursion and sees nothing but its variables. May not enter: token ids, files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use rlhfd_protocol::worker::Message;
use serde_json::{Map, Value as Json};

use crate::errors::{TextError, first_line};

mod python;

/// Instructions that one rendering may take: some thousand times what a long conversation needs.
const FUEL: u64 = 50_000_000;

/// How deep macros and loops may nest.
const RECURSION_MAX: usize = 100;

/// Stand for the two ends of a `{% generation %}` block while rendering. Unicode reserves these code
/// points for a program's own use, so that no exchanged text holds them.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, as it is tokenised (without adding special tokens).
    pub text: String,
    /// Byte ranges that the template marks as the assistant's; empty where it marks none.
    pub assistant: Vec<Range<usize>>,
}

/// A point in time as templates ask for it: seconds since 1970, UTC.
pub type Now = fn() -> i64;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    variables: Map<String, Json>,
    dir: PathBuf,
    marks_assistant: bool,
}

impl ChatTemplate {
    /// Compiles a template. `variables`: the tokenizer's special tokens by name (`bos_token`, …).
    ///
    /// Errors: `Template`, with the line of the syntax error.
    pub fn new(
        source: &str,
        variables: Map<String, Json>,
        dir: &Path,
        now: Now,
    ) -> Result<Self, TextError> {
        let mut environment = environment(now);
        let (marked, plain) = (generation_tags(source, Some(MARKS)), generation_tags(source, None));
        let marks_assistant = marked != plain;
        let compiled = syntax()
            .and_then(|syntax| {
                environment.set_syntax(syntax);
                environment.add_template_owned("marked", marked)
            })
            .and_then(|()| environment.add_template_owned("plain", plain));
        match compiled {
            Ok(()) => Ok(Self { environment, variables, dir: dir.to_owned(), marks_assistant }),
            Err(error) => Err(template_error(dir, &error)),
        }
    }

    /// Whether it has `{% generation %}` blocks.
    #[must_use]
    pub fn marks_assistant(&self) -> bool {
        self.marks_assistant
    }

    /// Renders a conversation; `add_generation_prompt` opens the assistant's turn after it.
    ///
    /// Errors: `Template`, with what the template's own `raise_exception` said, where it did.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, TextError> {
        let messages: Vec<Json> = messages
            .iter()
            .map(|message| {
                let mut object = Map::new();
                object.insert("role".to_owned(), Json::from(message.role.as_str()));
                object.insert("content".to_owned(), Json::from(message.content.as_str()));
                Json::Object(object)
            })
            .collect();
        self.render_json(&Json::from(messages), &Json::Null, add_generation_prompt)
    }

    /// Renders messages given as JSON, with tools (`null` for none).
    ///
    /// Errors: as [`Self::render`].
    pub fn render_json(
        &self,
        messages: &Json,
        tools: &Json,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TextError> {
        let mut context = self.variables.clone();
        context.insert("messages".to_owned(), with_reasoning_names(messages));
        context.insert("tools".to_owned(), tools.clone());
        context.insert("documents".to_owned(), Json::Null);
        context.insert("add_generation_prompt".to_owned(), Json::from(add_generation_prompt));
        // A conversation that holds our marks is rendered without them, and without spans.
        let holds_marks = messages.to_string().contains(MARKS);
        let name = if holds_marks { "plain" } else { "marked" };
        let text = self
            .environment
            .get_template(name)
            .and_then(|template| template.render(Value::from(Serde(&context))))
            .map_err(|error| template_error(&self.dir, &error))?;
        if holds_marks {
            return Ok(Rendered { text, assistant: Vec::new() });
        }
        Ok(cut_marks(&text))
    }
}

/// transformers gives a message's reasoning to templates under both names that they look for.
fn with_reasoning_names(messages: &Json) -> Json {
    let Json::Array(list) = messages else { return messages.clone() };
    let renamed = list.iter().map(|message| {
        let reasoning = ["reasoning_content", "thinking", "reasoning"]
            .iter()
            .find_map(|name| message.get(*name).filter(|value| !value.is_null()));
        let (Json::Object(fields), Some(reasoning)) = (message, reasoning) else {
            return message.clone();
        };
        let mut renamed = Map::new();
        renamed.insert("thinking".to_owned(), reasoning.clone());
        renamed.extend(fields.clone());
        renamed.insert("reasoning_content".to_owned(), reasoning.clone());
        Json::Object(renamed)
    });
    Json::Array(renamed.collect())
}

fn template_error(dir: &Path, error: &Error) -> TextError {
    let detail = error.detail().map(first_line);
    let line = error.line().map(|line| format!(" (line {line} of the template)"));
    let mend = match error.kind() {
        ErrorKind::OutOfFuel => "shorten the conversation, or mend the template's endless loop",
        ErrorKind::SyntaxError => "mend the template's syntax",
        _ => "give a conversation that the template accepts, or mend the template",
    };
    TextError::Template {
        dir: dir.to_owned(),
        problem: detail.unwrap_or_else(|| error.kind().to_string()) + &line.unwrap_or_default(),
        mend,
    }
}

fn syntax() -> Result<minijinja::syntax::SyntaxConfig, Error> {
    minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// What transformers puts into its Jinja environment, and Python's ways where minijinja has others.
fn environment(now: Now) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_formatter(python::format_value);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("string", |value: &Value| python::display(value));
    environment.add_filter("trim", python::trim);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: &str| python::strftime(now(), format));
    environment
}

/// Turns `{% generation %}` and `{% endgeneration %}`, which minijinja does not know, into blocks that
/// it does, with the same trimming of white space, and writes a mark at each end where asked to.
fn generation_tags(source: &str, marks: Option<[char; 2]>) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (inner_start, inner_end) = (start + 2, start + length);
        let inner = &rest[inner_start..inner_end];
        let left = inner.chars().next().filter(|c| "-+".contains(*c));
        let right = inner.chars().next_back().filter(|c| "-+".contains(*c));
        let word = inner.trim_matches(|c: char| "-+".contains(c) || c.is_whitespace());
        let mark = |index: usize| {
            marks.map(|marks| format!("{{{{ \"{}\" }}}}", marks[index])).unwrap_or_default()
        };
        let (left, right) = (text_of(left), text_of(right));
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&format!(
                "{{%{left} if true %}}{}{{% endif %}}{{% if true {right}%}}",
                mark(0)
            )),
            "endgeneration" => out.push_str(&format!(
                "{{%{left} endif %}}{}{{% if true %}}{{% endif {right}%}}",
                mark(1)
            )),
            _ => out.push_str(&rest[start..inner_end + 2]),
        }
        rest = &rest[inner_end + 2..];
    }
    out.push_str(rest);
    out
}

fn text_of(c: Option<char>) -> String {
    c.map(String::from).unwrap_or_default()
}

/// Takes the marks out of a rendering and says where they stood.
fn cut_marks(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut assistant = Vec::new();
    let mut open = None;
    for c in marked.chars() {
        if c == MARKS[0] {
            open = Some(text.len());
        } else if c == MARKS[1] {
            assistant.extend(open.take().map(|start| start..text.len()));
        } else {
            text.push(c);
        }
    }
    Rendered { text, assistant }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(&str, &str)]) -> Result<Rendered, TextError> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect();
        // 2024-07-26 12:34:56 UTC.
        ChatTemplate::new(source, Map::new(), Path::new("m"), || 1_721_997_296)?
            .render(&messages, false)
    }

    #[test]
    fn generation_blocks_give_the_spans_of_the_assistant_and_leave_no_trace() {
        let source = "{% for m in messages %}\n\
            {%- if m.role == 'assistant' %}{% generation %}\n\
            <{{ m.content }}>{% endgeneration %}\n\
            {% else %}{{ m.content }}|{% endif %}{% endfor %}";
        let rendered =
            render(source, &[("user", "hé"), ("assistant", "yo"), ("user", "x")]).unwrap();
        assert_eq!(rendered.text, "hé|<yo>x|");
        let spans: Vec<_> = rendered.assistant.iter().map(|s| &rendered.text[s.clone()]).collect();
        assert_eq!(spans, ["<yo>"]);
    }

    #[test]
    fn text_that_holds_the_marks_itself_is_kept_as_it_is() {
        let source =
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
        let rendered = render(source, &[("user", "a\u{fdd0}b")]).unwrap();
        assert_eq!(rendered, Rendered { text: "a\u{fdd0}b".to_owned(), assistant: Vec::new() });
    }

    #[test]
    fn values_print_as_python_prints_them() {
        let cases = [
            ("{{ none }} {{ true }} {{ false }} {{ 1.0 }}", "None True False 1.0"),
            ("{{ ['a', 1, none, 'it\\'s'] }}", "['a', 1, None, \"it's\"]"),
            ("{{ {'b': 1, 'a': ['é']} }}", "{'b': 1, 'a': ['é']}"),
            ("{{ {'b': 1, 'a': '<é>'} | tojson }}", "{\"b\": 1, \"a\": \"<é>\"}"),
            ("{{ {'a': 'é'} | tojson(ensure_ascii=true) }}", "{\"a\": \"\\u00e9\"}"),
            ("{{ [1, {'a': []}] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": []\n  }\n]"),
            ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", "{\"a\": 2, \"b\": 1}"),
            ("{{ '\x1f a \u{a0}'.strip() }}|{{ ' a ' | trim }}", "a|a"),
            ("{{ strftime_now('%d %b %Y, %A %H:%M:%S %j') }}", "26 Jul 2024, Friday 12:34:56 208"),
            ("{{ '<b>&' }}", "<b>&"),
        ];
        for (source, wanted) in cases {
            assert_eq!(render(source, &[]).unwrap().text, wanted, "{source}");
        }
    }

    #[test]
    fn a_template_that_fails_or_never_ends_is_an_error_with_its_reason() {
        let raised = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(raised.to_string().contains("roles must alternate"), "{raised}");
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(render(endless, &[]).unwrap_err().to_string().contains("endless"));
        let deep = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
        assert!(render(deep, &[]).is_err());
        assert!(render("{% if %}", &[]).unwrap_err().to_string().contains("syntax"));
    }
}
