//! All seeds and arms together, and their CSV files.
//!
//! In: what the arms kept. Out: [`Results`], study/results.csv, study/weak.csv and study/best.csv. May
//! not enter: daemons, drawing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::answers::Answer;
use crate::arms::{self, ArmFigures, PolicyFigures};
use crate::prepare::{self, Prepared, Scene};
use crate::prompts::Prompt;
use crate::settings::{OFFLINE, ONLINE};
use crate::stats::{self, Interval};

/// The initial policy, and the best of its answers by score: arms without a daemon of their own.
pub const SFT: &str = "sft";
/// See [`SFT`].
pub const BEST_OF_N: &str = "best_of_n";

/// What one seed gave.
pub struct SeedResults {
    /// Its number.
    pub seed: u64,
    /// Models, and what the reward models are worth.
    pub prepared: Prepared,
    /// By name; empty where the reward model was worth too little.
    pub arms: BTreeMap<String, ArmFigures>,
}

/// A line of results.csv.
#[derive(Debug, Clone)]
pub struct Row {
    /// The seed.
    pub seed: u64,
    /// The arm.
    pub arm: String,
    /// 0 is greedy.
    pub temperature: f64,
    /// 0: before any update.
    pub iteration: u64,
    /// Mean gold score.
    pub gold: f64,
    /// Mean difference to the offline arm at the same iteration and temperature, paired by prompt.
    pub minus_offline: Option<f64>,
    /// Share of wins by gold over the initial policy's answers, with its interval over prompts.
    pub win: Interval,
    /// KL from the initial policy.
    pub kl: Option<f64>,
    /// Mean tokens of an answer.
    pub tokens: f64,
    /// Mean score by what the arm trains on.
    pub score: f64,
    /// By the canary.
    pub canary: Option<f64>,
    /// What the gate said.
    pub gate: Option<String>,
}

/// Everything.
pub struct Results {
    /// In the order of the configuration.
    pub seeds: Vec<SeedResults>,
    /// Without the arms of the weak reward model.
    pub rows: Vec<Row>,
    /// Those, from the initial policy on.
    pub weak: Vec<Row>,
}

/// Reads what every arm kept, and checks what must hold between arms.
///
/// Errors: something is missing, or offline and online did not begin alike.
pub fn gather(scene: &Scene) -> Result<Results> {
    let mut results = Results { seeds: Vec::new(), rows: Vec::new(), weak: Vec::new() };
    for seed in scene.settings.seeds() {
        let prepared = prepare::prepare(scene, seed)?;
        let mut arms = BTreeMap::new();
        if prepared.worth.per_gold >= scene.settings.study.score_per_gold_min {
            for (name, arm) in scene.settings.arms_of(seed) {
                arms.insert(name.clone(), arms::run(scene, seed, (name, arm), &prepared)?);
            }
        }
        let one = SeedResults { seed, prepared, arms };
        began_alike(&one)?;
        rows_of(scene, &one, &mut results);
        results.seeds.push(one);
    }
    Ok(results)
}

/// Iteration 1 is shared data: offline and online must have made the very same checkpoint.
fn began_alike(one: &SeedResults) -> Result<()> {
    let first = |arm| Some(one.arms.get(arm)?.iterations.first()?.checkpoint.clone());
    if let (Some(offline), Some(online)) = (first(OFFLINE), first(ONLINE)) {
        ensure!(
            offline == online && !offline.is_empty(),
            "seed {}: offline and online differ after iteration 1, which they share",
            one.seed
        );
    }
    Ok(())
}

fn rows_of(scene: &Scene, one: &SeedResults, results: &mut Results) {
    let offline = one.arms.get(OFFLINE);
    // A seed that only the weak condition has is no part of the study's own figures.
    let own = one.arms.iter().find(|(name, _)| !scene.settings.arms[*name].weak);
    if let Some((_, any)) = own {
        let initial = any.policies.iter().filter(|policy| policy.iteration == 0);
        results.rows.extend(initial.map(|policy| row(one.seed, SFT, policy, None)));
        results.rows.extend(any.at(0, 1.0).map(|initial| best_of_n(one, initial)));
    }
    for (name, figures) in &one.arms {
        let weak = scene.settings.arms[name].weak;
        // The weak scorer's figures of the initial policy stand in no other arm.
        for policy in figures.policies.iter().filter(|policy| weak || policy.iteration > 0) {
            let beside = offline.and_then(|arm| arm.at(policy.iteration, policy.temperature));
            let mut row = row(one.seed, name, policy, beside);
            let iteration = figures.iterations.iter().find(|i| i.iteration == policy.iteration);
            row.gate = iteration.and_then(|iteration| iteration.gate.clone());
            if weak { results.weak.push(row) } else { results.rows.push(row) }
        }
    }
}

impl ArmFigures {
    /// The policy of an iteration at a temperature.
    pub fn at(&self, iteration: u64, temperature: f64) -> Option<&PolicyFigures> {
        let own = |policy: &&PolicyFigures| {
            policy.iteration == iteration && policy.temperature == temperature
        };
        self.policies.iter().find(own)
    }

    /// The iteration whose policy has the highest score on the validation prompts at temperature 1.
    pub fn best_by_score(&self) -> Option<u64> {
        let scored = self.policies.iter().filter(|policy| policy.temperature == 1.0);
        let best = scored.max_by(|a, b| a.validation_score.total_cmp(&b.validation_score));
        best.map(|policy| policy.iteration)
    }
}

/// The mean of paired differences of gold.
pub fn difference(own: &PolicyFigures, other: &PolicyFigures) -> f64 {
    stats::mean(&own.gold) - stats::mean(&other.gold)
}

fn row(seed: u64, arm: &str, policy: &PolicyFigures, beside: Option<&PolicyFigures>) -> Row {
    Row {
        seed,
        arm: arm.to_owned(),
        temperature: policy.temperature,
        iteration: policy.iteration,
        gold: stats::mean(&policy.gold),
        minus_offline: beside.map(|other| difference(policy, other)),
        win: stats::interval(&policy.wins),
        kl: policy.kl,
        tokens: policy.tokens,
        score: policy.score,
        canary: policy.canary,
        gate: None,
    }
}

/// The best of the initial policy's n answers by score, against each of its answers in `initial`.
fn best_of_n(one: &SeedResults, initial: &PolicyFigures) -> Row {
    let best = one
        .prepared
        .best
        .iter()
        .filter_map(|answers| answers.iter().max_by(|a, b| a.score.total_cmp(&b.score)));
    let best: Vec<_> = best.collect();
    let mean =
        |value: &dyn Fn(usize) -> f64| stats::mean(&(0..best.len()).map(value).collect::<Vec<_>>());
    let others: BTreeMap<Prompt, &Vec<f64>> =
        initial.each.iter().map(|(prompt, golds)| (*prompt, golds)).collect();
    let won = |own: &&Answer| {
        let others = others.get(&own.prompt)?.iter();
        Some(stats::mean(&others.map(|other| arms::win(own.gold, *other)).collect::<Vec<_>>()))
    };
    let wins: Vec<f64> = best.iter().filter_map(won).collect();
    Row {
        seed: one.seed,
        arm: BEST_OF_N.to_owned(),
        temperature: 1.0,
        iteration: 0,
        gold: mean(&|index| best[index].gold),
        minus_offline: None,
        win: stats::interval(&wins),
        kl: None,
        tokens: mean(&|index| best[index].tokens),
        score: mean(&|index| best[index].score),
        canary: None,
        gate: None,
    }
}

/// Writes the CSV files.
///
/// Errors: the disk.
pub fn write(scene: &Scene, results: &Results, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    crate::models::write(&out.join("results.csv"), &csv(&results.rows, false))?;
    if !results.weak.is_empty() {
        crate::models::write(&out.join("weak.csv"), &csv(&results.weak, true))?;
    }
    crate::models::write(&out.join("best.csv"), &best_csv(scene, results))
}

const COLUMNS: &str = "seed,arm,temperature,iteration,gold_score_mean,gold_minus_offline,win_rate,\
                       win_rate_low,win_rate_high,kl,response_tokens_mean,score_mean";

fn csv(rows: &[Row], weak: bool) -> String {
    let mut text = COLUMNS.to_owned();
    text.push_str(if weak { ",canary_score_mean,gate\n" } else { "\n" });
    for row in rows {
        let Row { seed, arm, temperature, iteration, gold, minus_offline, .. } = row;
        let Interval { mean, low, high } = row.win;
        let minus = optional(*minus_offline);
        let kl = optional(row.kl);
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{seed},{arm},{temperature:.1},{iteration},{gold:.5},{minus},{mean:.4},{low:.4},\
             {high:.4},{kl},{:.3},{:.4}",
            row.tokens, row.score
        );
        if weak {
            let gate = row.gate.as_deref().unwrap_or_default().replace(',', ";");
            let _ = write!(text, ",{},{gate}", optional(row.canary));
        }
        text.push('\n');
    }
    text
}

fn optional(value: Option<f64>) -> String {
    value.map(|value| format!("{value:.5}")).unwrap_or_default()
}

/// By arm: the iteration that the score on validation prompts chooses, never gold.
fn best_csv(scene: &Scene, results: &Results) -> String {
    let mut text = "seed,arm,iteration,validation_score,temperature,gold_score_mean,\
                    gold_minus_offline\n"
        .to_owned();
    for one in &results.seeds {
        let chosen = |arm: &ArmFigures, temperature| {
            arm.best_by_score().and_then(|best| arm.at(best, temperature).cloned())
        };
        for (name, figures) in &one.arms {
            if scene.settings.arms[name].weak {
                continue;
            }
            for temperature in [1.0, 0.0] {
                let Some(own) = chosen(figures, temperature) else { continue };
                let offline = one.arms.get(OFFLINE).and_then(|arm| chosen(arm, temperature));
                let minus = offline.map(|offline| difference(&own, &offline));
                let _ = writeln!(
                    text,
                    "{},{name},{},{:.4},{temperature:.1},{:.5},{}",
                    one.seed,
                    own.iteration,
                    own.validation_score,
                    stats::mean(&own.gold),
                    optional(minus)
                );
            }
        }
    }
    text
}
