//! Rules between `[gate]` and what it looks at.
//!
//! In: an entry, scorers, temperatures. Out: findings with what to write instead.

use crate::problem::Findings;
use crate::sections::{ScorerConfig, ScorerRole};
use crate::values::{Entry, Value, dotted};

/// Every limit's figure is measured, and every other knob has a limit to go with.
pub(super) fn figures(
    gate: &Entry,
    evaluate: &Entry,
    scorers: &[ScorerConfig],
    findings: &mut Findings,
) {
    let given = |key| gate.value(key).is_some();
    let word = |key, word: &str| gate.value(key) == Some(&Value::Text(word.to_owned()));
    let mut add = |key: &str, what: &str| {
        findings.add(gate.line_of(key), dotted(gate.section, key), what.to_owned());
    };
    let at_one = match evaluate.value("temperatures") {
        Some(Value::Numbers(numbers)) => numbers.contains(&1.0),
        _ => true,
    };
    if given("kl_max") && !at_one {
        let what = "is never measured: KL is estimated at temperature 1, so add 1.0 to [evaluate] \
                    temperatures";
        add("kl_max", what);
    }
    let canary = scorers.iter().any(|scorer| scorer.role == ScorerRole::Canary);
    if given("canary_gain_min") && !canary {
        let what = "has no canary to ask: add one of [[label.scorers]] with canary = true";
        add("canary_gain_min", what);
    }
    if word("against", "previous") && !given("win_rate_min") {
        add("against", "belongs to win_rate_min: set it, as win_rate_min = 0.5");
    }
    let limits = [
        "win_rate_min",
        "kl_max",
        "length_growth_max",
        "chosen_logprob_fall_max",
        "canary_gain_min",
    ];
    if word("on_fail", "pause") && !limits.into_iter().any(given) {
        add("on_fail", "is \"pause\", but nothing can fail: set a limit, as win_rate_min = 0.5");
    }
}
