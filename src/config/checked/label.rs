//! Rules between the knobs of `[label]`, `[[label.scorers]]` and `[pair]`.
//!
//! In: entries. Out: scorers, and findings with what to write instead.

use std::collections::BTreeSet;
use std::path::Path;

use super::{repeated, unique};
use crate::knobs;
use crate::problem::Findings;
use crate::raw::RawTable;
use crate::sections::{
    ArmConfig, Compare, Normalise, ScorePosition, ScorerConfig, ScorerKind, ScorerModel, ScorerRole,
};
use crate::values::{Entry, Value, dotted};

const SCORERS_MAX: usize = 16;

/// The scorers, or the reward model that this run trains.
pub(super) fn scorers(
    table: &RawTable,
    base_dir: &Path,
    findings: &mut Findings,
) -> Option<Vec<ScorerConfig>> {
    let entries = repeated(&knobs::SCORERS, table, findings)?;
    let Some(first) = entries.first() else {
        return Some(vec![ScorerConfig {
            name: "reward".to_owned(),
            kind: ScorerKind::Reward,
            model: ScorerModel::Job("main".to_owned()),
            compare: Compare::RoundRobin,
            score_position: ScorePosition::Transformers,
            role: ScorerRole::Weighted(1.0),
            normalise: Normalise::None,
        }]);
    };
    if entries.len() > SCORERS_MAX {
        let what = format!("are {}, but at most {SCORERS_MAX} are taken", entries.len());
        findings.add(first.line, "label.scorers", what);
        return None;
    }
    let mut names = BTreeSet::new();
    let mut scorers = Vec::new();
    for entry in &entries {
        let given = ["model", "job"].map(|key| entry.value(key).is_some());
        if given[0] == given[1] {
            let what = if given[0] { "names both model and job" } else { "names no model" };
            let what = format!("{what}: give either model = \"FOLDER\" or job = \"reward/NAME\"");
            findings.add(entry.line, "label.scorers", what);
            return None;
        }
        kind(entry, findings)?;
        let scorer = ScorerConfig::of(entry, base_dir)?;
        unique(&mut names, &scorer.name, entry, findings);
        role(entry, findings);
        scorers.push(scorer);
    }
    if scorers.iter().all(|scorer| scorer.role == ScorerRole::Canary) {
        let what = "are canaries alone, but pairing needs a scorer that it may use: take the mark \
                    canary away from one, or add another";
        findings.add(first.line, "label.scorers", what.to_owned());
    }
    Some(scorers)
}

/// A scorer has the model of its kind, and no key of the other kind.
fn kind(entry: &Entry, findings: &mut Findings) -> Option<()> {
    let mut add = |key: &str, what: String| {
        findings.add(entry.line_of(key), dotted(entry.section, key), what);
    };
    let word = |key| match entry.value(key) {
        Some(Value::Text(word)) => Some(word.as_str()),
        _ => None,
    };
    let kind = word("kind")?;
    if kind == ScorerKind::Reward.label() && word("compare").is_some() {
        add("compare", "belongs to kind = \"preference\": leave it out".to_owned());
    }
    if kind == ScorerKind::Preference.label() && word("score_position") != Some("transformers") {
        add("score_position", "belongs to kind = \"reward\": leave it out".to_owned());
    }
    let Some((of, name)) = word("job").and_then(|job| job.split_once('/')) else { return Some(()) };
    if of != kind {
        let what = format!(
            "is \"{of}/{name}\", and this scorer is of the kind \"{kind}\": write kind = \"{of}\", or \
             job = \"{kind}/NAME\""
        );
        add("job", what);
        return None;
    }
    Some(())
}

/// A linear tournament tells the best from the worst and orders no others, so that everything else
/// which goes by order or distance needs round robin.
pub(super) fn tournaments(
    scorers: &[ScorerConfig],
    (label, pair): (&Entry, &Entry),
    findings: &mut Findings,
) {
    let linear = |scorer: &&ScorerConfig| {
        scorer.kind == ScorerKind::Preference && scorer.compare == Compare::Linear
    };
    let Some(first) = scorers.iter().find(linear) else { return };
    let is =
        |entry: &Entry, key, word: &str| entry.value(key) == Some(&Value::Text(word.to_owned()));
    let weighted = scorers.iter().filter(|scorer| scorer.role != ScorerRole::Canary).count();
    let given = !matches!(label.value("length_penalty"), Some(Value::Number(0.0)) | None);
    let fit = label.value("length_penalty_fit") == Some(&Value::Switch(true));
    let why = if first.role == ScorerRole::Canary || weighted > 1 {
        "it must be the only scorer with a weight, and no canary"
    } else if given || fit {
        "a length penalty weighs all responses"
    } else if !is(pair, "rule", "best_worst") {
        "[pair] rule must be \"best_worst\""
    } else if !is(pair, "arms", "any") || !is(pair, "unfinished", "keep") {
        "[pair] arms must be \"any\" and unfinished \"keep\": else best and worst may not meet"
    } else {
        return;
    };
    let what = format!(
        "of {:?} is \"linear\", which tells the best and the worst response and orders no others: {why}; \
         or write compare = \"round_robin\"",
        first.name
    );
    findings.add(None, "label.scorers.compare", what);
}

/// A canary is told in one way, and has nothing that only pairing would use.
fn role(entry: &Entry, findings: &mut Findings) {
    let canary = entry.value("canary") == Some(&Value::Switch(true));
    let mut add = |key: &str, what: &str| {
        findings.add(entry.line_of(key), dotted(entry.section, key), what.to_owned());
    };
    match (canary, entry.value("weight")) {
        (true, Some(_)) => {
            add("weight", "is given to a canary, which training never uses: leave one of them out");
        }
        (false, Some(Value::Number(0.0))) => {
            add("weight", "is 0: write canary = true for a scorer that training never uses");
        }
        _ => {}
    }
    if canary && entry.value("normalise") != Some(&Value::Text("none".to_owned())) {
        add("normalise", "is given to a canary, which is never weighed: leave it out");
    }
}

/// A penalty is given or fitted, and then says what lengths are counted in.
pub(super) fn penalty(label: &Entry, findings: &mut Findings) {
    let given = !matches!(label.value("length_penalty"), Some(Value::Number(0.0)) | None);
    let fit = label.value("length_penalty_fit") == Some(&Value::Switch(true));
    let key = if fit { "length_penalty_fit" } else { "length_penalty" };
    if given && fit {
        let what = "is given, and length_penalty_fit = true fits it: leave one of them out";
        findings.add(label.line_of("length_penalty"), "label.length_penalty", what.to_owned());
    }
    if (given || fit) && label.value("length_unit").is_none() {
        let what = "has no lengths to go by: add length_unit = \"characters\" (as the paper does) or \
                    \"tokens\"";
        findings.add(label.line_of(key), dotted(label.section, key), what.to_owned());
    }
}

/// Knobs that belong to one rule stand with that rule, and arms that are to meet exist.
pub(super) fn pairs(pair: &Entry, arms: &[ArmConfig], findings: &mut Findings) {
    let word = |key| match pair.value(key) {
        Some(Value::Text(word)) => word.as_str(),
        _ => "",
    };
    let mut add = |key: &str, what: &str| {
        findings.add(pair.line_of(key), dotted(pair.section, key), what.to_owned());
    };
    let threshold = !matches!(pair.value("threshold"), Some(Value::Number(0.0)) | None);
    match (word("rule"), threshold) {
        ("threshold", false) => {
            add("rule", "is \"threshold\": say how far apart, as threshold = 0.5")
        }
        ("threshold", true) | (_, false) => {}
        (_, true) => add("threshold", "belongs to rule = \"threshold\"; a floor is score_gap_min"),
    }
    let several = matches!(word("rule"), "all" | "threshold");
    if !several && !matches!(pair.value("max_pairs"), Some(Value::Count(0)) | None) {
        add("max_pairs", "belongs to rule = \"all\" or \"threshold\"; the others give one pair");
    }
    match word("arms") {
        "across" if arms.len() < 2 => {
            add(
                "arms",
                "is \"across\", but there is one arm: add [[generate.arms]], or write \"any\"",
            );
        }
        "within" if arms.iter().all(|arm| arm.n < 2) => {
            add("arms", "is \"within\", but no arm gives two responses: raise n, or write \"any\"");
        }
        _ => {}
    }
}
