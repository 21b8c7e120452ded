//! Values as text: tables, CSV, times, durations, counts. Pure.

use std::borrow::Cow;

use serde_json::Value;

/// A cell's text is cut here in a table; JSON and CSV have all of it.
const CELL_CHARS_MAX: usize = 80;

/// Columns with their headers, as wide as they need to be; numbers to the right.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let cut: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|c| cell(c)).collect()).collect();
    let width = |i: usize, header: &str| {
        let longest = cut.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max();
        longest.unwrap_or(0).max(header.chars().count())
    };
    let widths: Vec<usize> = headers.iter().enumerate().map(|(i, h)| width(i, h)).collect();
    let right: Vec<bool> = (0..headers.len())
        .map(|i| {
            let mut cells =
                cut.iter().filter_map(|row| row.get(i)).filter(|c| *c != "–").peekable();
            cells.peek().is_some() && cells.all(|c| is_number(c))
        })
        .collect();
    let line = |cells: &[&str]| {
        let mut text = String::new();
        for (i, value) in cells.iter().enumerate().take(widths.len()) {
            let gap = if i == 0 { "" } else { "  " };
            let width = widths[i];
            if right[i] {
                text.push_str(&format!("{gap}{value:>width$}"));
            } else {
                text.push_str(&format!("{gap}{value:<width$}"));
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(headers);
    for row in &cut {
        text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    text
}

/// A value of a row as text: `–` for null, numbers with as many digits as are worth reading.
pub fn value(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => n.as_f64().map_or_else(|| n.to_string(), float),
        other => other.to_string(),
    }
}

/// Four digits behind the point, or as many as a small number needs.
pub fn float(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e7) {
        format!("{x:.3e}")
    } else {
        format!("{x:.4}")
    }
}

/// A number or nothing.
pub fn maybe<T: ToString>(x: Option<T>) -> String {
    x.map_or_else(|| "–".to_owned(), |x| x.to_string())
}

/// A count with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and its noun: `1 prompt`, `3 prompts`.
pub fn counted(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{} {noun}s", count(n)) }
}

/// A duration as a person says it: `8 s`, `3 min 05 s`, `2 h 07 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3_600, s % 3_600 / 60),
    }
}

/// A size as people say it: `512 B`, `2.0 KiB`, `513.2 MiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A time in UTC, to the second: `2026-11-23 22:10:05`.
pub fn time(ms: i64) -> String {
    let s = ms.div_euclid(1000);
    let (day, s) = (s.div_euclid(86_400), s.rem_euclid(86_400));
    // Days to a date in the proleptic Gregorian calendar, by eras of 400 years that begin in March.
    let z = day + 719_468;
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02} {:02}:{:02}:{:02}", s / 3_600, s % 3_600 / 60, s % 60)
}

/// One field of CSV, quoted where it must be (RFC 4180); null is empty.
pub fn csv_field(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// A text without control characters but for line ends.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n';
    if text.contains(harmful) {
        Cow::Owned(text.chars().map(|c| if harmful(c) { '·' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

fn cell(text: &str) -> String {
    // Whatever a model wrote, it stays on its line and sends the terminal no commands.
    let clean = |c: char| match c {
        '\n' => '⏎',
        c if c.is_control() => '·',
        c => c,
    };
    if text.chars().count() <= CELL_CHARS_MAX {
        return text.chars().map(clean).collect();
    }
    text.chars().take(CELL_CHARS_MAX - 1).map(clean).chain(['…']).collect()
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.'))
        && text.replace(',', "").parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_lines_its_columns_up() {
        let rows = vec![
            vec!["ultra".to_owned(), "20,000".to_owned(), "–".to_owned()],
            vec!["own".to_owned(), "7".to_owned(), "x\ny\u{1b}".to_owned()],
        ];
        assert_eq!(
            table(&["set", "prompts", "note"], &rows),
            "set    prompts  note\nultra   20,000  –\nown          7  x⏎y·\n"
        );
    }

    #[test]
    fn nothing_that_is_printed_commands_the_terminal() {
        assert_eq!(harmless("a\n\u{1b}[2Jb\r"), "a\n·[2Jb·");
        assert_eq!(harmless("plain ✓\n"), "plain ✓\n");
    }

    #[test]
    fn long_cells_are_cut_in_tables_only() {
        let text = table(&["t"], &[vec!["é".repeat(200)]]);
        assert_eq!(text.lines().nth(1).unwrap().chars().count(), CELL_CHARS_MAX);
        assert_eq!(csv_field(&json!("é".repeat(200))).chars().count(), 200);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(value(&json!(0.123_456)), "0.1235");
        assert_eq!(value(&json!(5e-7)), "5.000e-7");
        assert_eq!(value(&json!(12)), "12");
        assert_eq!(value(&json!(null)), "–");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "prompt"), "1 prompt");
        assert_eq!(counted(1_000, "prompt"), "1,000 prompts");
    }

    #[test]
    fn times_and_durations_read_well() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        // `date -u -d @951868799`: the last second of a leap day.
        assert_eq!(time(951_782_399_000), "2000-02-28 23:59:59");
        assert_eq!(time(951_868_799_999), "2000-02-29 23:59:59");
        assert_eq!(time(1_795_471_805_000), "2026-11-23 22:10:05");
        assert_eq!([size(512), size(2_048), size(538_090_400)], ["512 B", "2.0 KiB", "513.2 MiB"]);
        assert_eq!(duration(8.2), "8 s");
        assert_eq!(duration(185.0), "3 min 05 s");
        assert_eq!(duration(7_620.0), "2 h 07 min");
    }

    #[test]
    fn csv_quotes_what_it_must() {
        assert_eq!(csv_field(&json!("a,\"b\"\n")), "\"a,\"\"b\"\"\n\"");
        assert_eq!(csv_field(&json!(null)), "");
        assert_eq!(csv_field(&json!(1.5)), "1.5");
    }
}
