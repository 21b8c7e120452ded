//! Where Jinja on Python and minijinja part, Python's way: printing, JSON, stripping, dates.
//!
//! In: minijinja values. Out: the text that Python would give. May not enter: templates, messages.

use std::fmt::Write;

use minijinja::Output;
use minijinja::value::ValueKind;

use super::{Error, ErrorKind, Kwargs, State, Value};

/// `{{ value }}`: Python's `str(value)`, nothing for undefined.
pub(super) fn format_value(
    out: &mut Output<'_>,
    _state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    out.write_str(&display(value)).map_err(Error::from)
}

/// Python's `str(value)`.
pub(super) fn display(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => repr(value),
    }
}

/// Python's `repr(value)`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => repr_text(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items = value.try_iter().map(|items| items.map(|item| repr(&item)).collect());
            let items: Vec<String> = items.unwrap_or_default();
            match (value.is_tuple(), items.len()) {
                (true, 1) => format!("({},)", items[0]),
                (true, _) => format!("({})", items.join(", ")),
                (false, _) => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let entries: Vec<String> = pairs(value)
                .iter()
                .map(|(key, item)| format!("{}: {}", repr(key), repr(item)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    }
}

/// A map's entries in their order.
fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let Ok(keys) = value.try_iter() else { return Vec::new() };
    keys.map(|key| {
        let item = value.get_item(&key).unwrap_or_default();
        (key, item)
    })
    .collect()
}

/// Python quotes with ' unless the text holds a ' and no ".
fn repr_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || c == '\x7f' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `json.dumps(value, ensure_ascii, indent, sort_keys)`, which transformers puts in the place of
/// Jinja's filter, because that one escapes HTML.
pub(super) fn to_json(
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")?.or(indent) {
        Some(value) if !value.is_none() => Some(
            value
                .as_usize()
                .filter(|indent| *indent <= 32)
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "indent is no number"))?,
        ),
        _ => None,
    };
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(value) if !value.is_none() => {
            let items: Vec<String> = value.try_iter()?.map(|item| display(&item)).collect();
            items.first().cloned().zip(items.get(1).cloned())
        }
        _ => None,
    };
    let item_end = if indent.is_some() { "," } else { ", " };
    let (item_end, key_end) = separators.unwrap_or((item_end.to_owned(), ": ".to_owned()));
    let writer = JsonWriter {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_end,
        key_end,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    writer.write(&mut out, value, 0)?;
    Ok(out)
}

struct JsonWriter {
    ascii: bool,
    sorted: bool,
    indent: Option<usize>,
    item_end: String,
    key_end: String,
}

/// How deep JSON may nest in a template's values.
const JSON_DEPTH_MAX: usize = 200;

impl JsonWriter {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > JSON_DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "JSON nests too deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(out, ['[', ']'], depth, &items, |out, item| {
                    self.write(out, item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut entries = pairs(value);
                if self.sorted {
                    entries.sort_by_key(|(key, _)| display(key));
                }
                self.list(out, ['{', '}'], depth, &entries, |out, (key, item)| {
                    self.text(out, &display(key));
                    out.push_str(&self.key_end);
                    self.write(out, item, depth + 1)
                })?;
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("a value of kind {} is not JSON serializable", value.kind()),
                ));
            }
        }
        Ok(())
    }

    fn list<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: &[T],
        mut write: impl FnMut(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_end);
            }
            self.line(out, depth + 1);
            write(out, item)?;
        }
        if !items.is_empty() {
            self.line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// What `str.strip` takes away: Unicode's white space and the four information separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The filter `trim`.
pub(super) fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = display(value);
    match characters {
        Some(set) => text.trim_matches(|c| set.contains(c)).to_owned(),
        None => text.trim_matches(is_python_space).to_owned(),
    }
}

/// `str.title`: a letter is upper case where none stands before it, lower case elsewhere.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// Methods of Python's types: stripping and titles are ours, the rest is minijinja's own list.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), true) = (value.as_str(), arguments.is_empty()) {
        match name {
            "strip" => return Ok(Value::from(text.trim_matches(is_python_space))),
            "lstrip" => return Ok(Value::from(text.trim_start_matches(is_python_space))),
            "rstrip" => return Ok(Value::from(text.trim_end_matches(is_python_space))),
            "title" => return Ok(Value::from(title(text))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// `datetime.strftime` of a time in seconds since 1970, UTC, in English.
///
/// Errors: a directive that is not known here is named.
pub(super) fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;
    // The first of January 1970 was a Thursday.
    let weekday = (days + 3).rem_euclid(7) as usize;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = characters.next().unwrap_or('%');
        let _ = match directive {
            'Y' => write!(out, "{year}"),
            'y' => write!(out, "{:02}", year.rem_euclid(100)),
            'm' => write!(out, "{month:02}"),
            'd' => write!(out, "{day:02}"),
            'e' => write!(out, "{day:2}"),
            'B' => write!(out, "{name}"),
            'b' | 'h' => write!(out, "{}", &name[..3]),
            'A' => write!(out, "{}", DAYS[weekday]),
            'a' => write!(out, "{}", &DAYS[weekday][..3]),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{hour12:02}"),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'j' => write!(out, "{day_of_year:03}"),
            'F' => write!(out, "{year}-{month:02}-{day:02}"),
            'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            '%' => write!(out, "%"),
            other => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{other}"),
                ));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01. Source: Hinnant, "chrono-compatible
/// low-level date algorithms"; eras of 400 years, the year beginning in March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}
