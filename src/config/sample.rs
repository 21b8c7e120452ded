//! The commented sample: every knob with its default, range and source, from the rows of `knobs`.
//!
//! In: nothing. Out: the text of `configs/rlhfd.toml`; a test holds the file equal to it.

use std::fmt::Write;

use crate::knobs::{Knob, SECTIONS, Section};
use crate::values::wanted;

const LINE_CHARS: usize = 98;

const HEAD: &str = "\
# Every knob of rlhfd, with its default, what it takes and where the default comes from.
# A line that begins with \"# \" and a key shows the default (or, where there is none, an example):
# take the mark away to change it. Relative paths are meant from this file's folder. An unknown key
# is an error that names the nearest right one; `rlhfd check --config FILE` tells all that is wrong.
# \"paper\" is arXiv 2405.07863 (RLHF Workflow: From Reward Modeling to Online RLHF).
#
# [run] to [gate] in flow order: prompts, generate, label, pair, train, checkpoint, evaluate.
# An iteration freezes the sections that shape what it computes; [control] to [worker] describe
# this machine, and apply when the daemon starts.
";

/// The text of `configs/rlhfd.toml`.
#[must_use]
pub fn commented_toml() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        text.push('\n');
        wrapped(&mut text, section.doc);
        head(&mut text, section);
        for knob in section.knobs {
            row(&mut text, knob);
        }
    }
    text
}

fn head(text: &mut String, section: &Section) {
    // Writing to a string cannot fail.
    let _ = match section.repeated {
        true => writeln!(text, "# [[{}]]", section.name),
        false => writeln!(text, "[{}]", section.name),
    };
}

fn row(text: &mut String, knob: &Knob) {
    let mut about = knob.doc.to_owned();
    let unit = if knob.unit.is_empty() { String::new() } else { format!(", in {}", knob.unit) };
    let _ = write!(about, " ({}{unit})", wanted(knob.kind));
    if !knob.unset.is_empty() {
        let _ = write!(about, "; left out: {}", knob.unset);
    }
    let _ = write!(about, ". Source: {}.", knob.source);
    text.push_str("#\n");
    wrapped(text, &about);
    let value = if knob.default.is_empty() { knob.example } else { knob.default };
    let mark = if knob.is_required() { "" } else { "# " };
    let _ = writeln!(text, "{mark}{} = {value}", knob.key);
}

/// Comment lines of at most so many characters.
fn wrapped(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > LINE_CHARS {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
