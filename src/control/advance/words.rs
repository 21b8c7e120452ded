//! Words for people: what differs between two configurations, and large numbers.
//!
//! In: canonical texts, numbers. Out: phrases. Pure. May not enter: anything else.

/// What differs between two frozen configurations: `section.key` with both values.
pub(crate) fn changed_knobs(frozen: &str, today: &str) -> Vec<String> {
    let (before, after) = (knobs(frozen), knobs(today));
    let mut changed = Vec::new();
    for (key, value) in &after {
        match before.iter().find(|(known, _)| known == key) {
            Some((_, old)) if old == value => {}
            Some((_, old)) => changed.push(format!("{key} = {value} (was {old})")),
            None => changed.push(format!("{key} = {value}")),
        }
    }
    let gone = before.iter().filter(|(key, _)| after.iter().all(|(known, _)| known != key));
    changed.extend(gone.map(|(key, _)| format!("{key} left out")));
    changed
}

/// The lines of a canonical text, each under its section; repeated sections are counted.
fn knobs(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut tables = 0_u32;
    let mut knobs = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            tables += 1;
            section = format!("{name}[{tables}]");
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            tables = 0;
            name.clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once(" = ") {
            knobs.push((format!("{section}.{key}"), value.to_owned()));
        }
    }
    knobs
}

/// A number with commas between its thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_knob_is_named_with_both_values() {
        let text = |tokens, name| {
            format!(
                "[generate]\nmax_new_tokens = {tokens}\n\n[[generate.arms]]\nname = \"{name}\"\n"
            )
        };
        let changed = changed_knobs(&text(8, "a"), &text(6, "b"));
        assert_eq!(
            changed,
            ["generate.max_new_tokens = 6 (was 8)", "generate.arms[1].name = \"b\" (was \"a\")"]
        );
        assert!(changed_knobs(&text(8, "a"), &text(8, "a")).is_empty());
    }

    #[test]
    fn thousands_are_grouped() {
        let texts: Vec<String> = [0, 120, 1_000, 20_000, 1_234_567].map(grouped).into();
        assert_eq!(texts, ["0", "120", "1,000", "20,000", "1,234,567"]);
    }
}
