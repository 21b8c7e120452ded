//! What came out, as a table for people.
//!
//! In: [`Results`]. Out: Markdown. May not enter: what is hoped for.

use std::fmt::Write as _;

use crate::prepare::Scene;
use crate::results::{BEST_OF_N, Results, Row, SFT, difference};
use crate::settings::{OFFLINE, ONLINE};
use crate::stats::{self, Interval};

/// The whole of it.
pub fn tell(scene: &Scene, results: &Results) -> String {
    let last = scene.settings.study.iterations;
    let mut text = String::new();
    primary(results, last, &mut text);
    for temperature in [1.0, 0.0] {
        table(scene, results, last, temperature, &mut text);
    }
    budget(scene, results, &mut text);
    best(results, &mut text);
    worth(scene, results, &mut text);
    weak(scene, results, &mut text);
    text
}

/// By seed: online − offline at an iteration.
pub fn differences(results: &Results, iteration: u64, temperature: f64) -> Vec<f64> {
    let of = |one: &crate::results::SeedResults| {
        let online = one.arms.get(ONLINE)?.at(iteration, temperature)?;
        Some(difference(online, one.arms.get(OFFLINE)?.at(iteration, temperature)?))
    };
    results.seeds.iter().filter_map(of).collect()
}

fn primary(results: &Results, last: u64, text: &mut String) {
    let each = differences(results, last, 1.0);
    let list: Vec<String> = each.iter().map(|value| format!("{value:+.4}")).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "Primary figure: gold score, online − offline, iteration {last}, temperature 1, paired by \
         prompt: **{}**, mean and 95 % interval over seeds (by seed: {}).\n",
        told(&each, 4),
        list.join(", ")
    );
}

/// The mean over seeds with its interval, and without one where there is one seed.
fn told(values: &[f64], digits: usize) -> String {
    let Interval { mean, low, high } = stats::interval(values);
    match values.len() {
        0 => "–".to_owned(),
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} [{low:.digits$}, {high:.digits$}]"),
    }
}

fn rows_at<'a>(results: &'a Results, arm: &str, last: u64, temperature: f64) -> Vec<&'a Row> {
    let iteration = if arm == SFT || arm == BEST_OF_N { 0 } else { last };
    let own =
        |row: &&Row| row.arm == arm && row.iteration == iteration && row.temperature == temperature;
    results.rows.iter().filter(own).collect()
}

fn table(scene: &Scene, results: &Results, last: u64, temperature: f64, text: &mut String) {
    let how = if temperature == 0.0 { "greedy" } else { "temperature 1" };
    let _ = writeln!(
        text,
        "| arm, {how} | gold score | − offline | win rate over SFT | KL, nats | tokens | score |\n\
         |---|---|---|---|---|---|---|"
    );
    let arms =
        scene.settings.arms.iter().filter(|(_, arm)| !arm.weak).map(|(name, _)| name.as_str());
    for arm in [SFT, BEST_OF_N].into_iter().chain(arms) {
        let rows = rows_at(results, arm, last, temperature);
        if rows.is_empty() {
            continue;
        }
        let of = |value: &dyn Fn(&Row) -> Option<f64>| -> Vec<f64> {
            rows.iter().filter_map(|row| value(row)).collect()
        };
        let minus = if arm == OFFLINE { Vec::new() } else { of(&|row| row.minus_offline) };
        let short = |values: Vec<f64>| match values.is_empty() {
            true => "–".to_owned(),
            false => format!("{:.1}", stats::mean(&values)),
        };
        let _ = writeln!(
            text,
            "| `{arm}` | {} | {} | {} | {} | {} | {:.2} |",
            told(&of(&|row| Some(row.gold)), 3),
            told(&minus, 4),
            told(&of(&|row| Some(row.win.mean)), 3),
            short(of(&|row| row.kl)),
            short(of(&|row| Some(row.tokens))),
            stats::mean(&of(&|row| Some(row.score)))
        );
    }
    text.push('\n');
}

/// Optimiser steps and preferences of all iterations, by arm: what must be alike.
fn budget(scene: &Scene, results: &Results, text: &mut String) {
    for (name, _) in scene.settings.arms.iter().filter(|(_, arm)| !arm.weak) {
        let figures = results.seeds.iter().filter_map(|one| one.arms.get(name));
        let sums: Vec<(u64, u64)> = figures
            .map(|arm| {
                let steps = arm.iterations.iter().map(|iteration| iteration.steps).sum();
                (steps, arm.iterations.iter().map(|iteration| iteration.preferences).sum())
            })
            .collect();
        let list =
            |values: Vec<u64>| values.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            text,
            "`{name}`: optimiser steps by seed {}; preferences {}.\n",
            list(sums.iter().map(|sum| sum.0).collect()),
            list(sums.iter().map(|sum| sum.1).collect())
        );
    }
}

fn best(results: &Results, text: &mut String) {
    for temperature in [1.0, 0.0] {
        let mut each = Vec::new();
        let mut chosen = Vec::new();
        for one in &results.seeds {
            let pick = |arm: &str| {
                let arm = one.arms.get(arm)?;
                let best = arm.best_by_score()?;
                Some((best, arm.at(best, temperature)?))
            };
            if let (Some((online, own)), Some((offline, other))) = (pick(ONLINE), pick(OFFLINE)) {
                each.push(difference(own, other));
                chosen.push(format!("{online}/{offline}"));
            }
        }
        let how = if temperature == 0.0 { "greedy" } else { "temperature 1" };
        let _ = writeln!(
            text,
            "Best iteration by score on validation prompts, {how}: online − offline {} \
             (iterations online/offline: {}).\n",
            told(&each, 4),
            chosen.join(", ")
        );
    }
}

fn worth(scene: &Scene, results: &Results, text: &mut String) {
    let least = scene.settings.study.score_per_gold_min;
    for one in &results.seeds {
        let worth = one.prepared.worth;
        let verdict = if worth.per_gold >= least { "passed" } else { "failed: the seed stops" };
        let _ = writeln!(
            text,
            "Seed {}: reward model of {} pairs: {:.2} score a unit of gold (at least {least}: \
             {verdict}), {:.3} a token, accuracy {:.3}.",
            one.seed, one.prepared.pairs.0, worth.per_gold, worth.per_token, worth.accuracy
        );
    }
    text.push('\n');
}

fn weak(scene: &Scene, results: &Results, text: &mut String) {
    let names = scene.settings.arms.iter().filter(|(_, arm)| arm.weak).map(|(name, _)| name);
    for name in names {
        for one in &results.seeds {
            let Some(figures) = one.arms.get(name) else { continue };
            if let Some(worth) = one.prepared.weak_worth {
                let _ = writeln!(
                    text,
                    "Seed {}, `{name}`: weak reward model of {} pairs: {:.2} score a unit of gold, \
                     {:.3} a token, accuracy {:.3}.\n",
                    one.seed, one.prepared.pairs.1, worth.per_gold, worth.per_token, worth.accuracy
                );
            }
            text.push_str("| iteration | score | gold score | canary | tokens | gate |\n");
            text.push_str("|---|---|---|---|---|---|\n");
            for policy in figures.policies.iter().filter(|policy| policy.temperature == 1.0) {
                let of = figures.iterations.iter().find(|i| i.iteration == policy.iteration);
                let _ = writeln!(
                    text,
                    "| {} | {:.2} | {:.3} | {} | {:.1} | {} |",
                    policy.iteration,
                    policy.score,
                    stats::mean(&policy.gold),
                    policy.canary.map(|canary| format!("{canary:.2}")).unwrap_or_default(),
                    policy.tokens,
                    of.and_then(|iteration| iteration.gate.as_deref()).unwrap_or("–")
                );
            }
            text.push('\n');
        }
    }
}
