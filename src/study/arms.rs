//! One arm of one seed: a daemon runs its iterations, and what held-out prompts say of each policy is kept.
//!
//! In: what was prepared, the arm's settings. Out: [`ArmFigures`]. May not enter: other arms.

use std::collections::{BTreeMap, HashSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answers::{self, Answer};
use crate::daemon::Daemon;
use crate::gold::gold;
use crate::models;
use crate::prepare::{Prepared, Scene, set_models, texts};
use crate::prompts::{Prompt, Slices};
use crate::settings::Arm;
use crate::stats;

/// What an arm gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArmFigures {
    /// By iteration and temperature; iteration 0 is the initial policy.
    pub policies: Vec<PolicyFigures>,
    /// What each iteration trained on, and what came of it.
    pub iterations: Vec<Iteration>,
}

/// A policy's answers to the held-out prompts at one temperature.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyFigures {
    /// 0: the initial policy.
    pub iteration: u64,
    /// 0 is greedy.
    pub temperature: f64,
    /// By evaluation prompt: the mean gold score of its answers.
    pub gold: Vec<f64>,
    /// By evaluation prompt: the share of its answers that beat the initial policy's by gold, ties
    /// one half.
    pub wins: Vec<f64>,
    /// By evaluation prompt: the gold score of each answer; of the initial policy alone.
    pub each: Vec<(Prompt, Vec<f64>)>,
    /// Mean tokens of an answer, with the stop id.
    pub tokens: f64,
    /// Mean score by what the arm trains on.
    pub score: f64,
    /// The same over the validation prompts.
    pub validation_score: f64,
    /// Mean score by the canary; none without one.
    pub canary: Option<f64>,
    /// KL from the initial policy in nats an answer; at temperature 1 only.
    pub kl: Option<f64>,
}

/// An iteration, as the database has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Iteration {
    /// From 1.
    pub iteration: u64,
    /// The sum of the checkpoint that came of it.
    pub checkpoint: String,
    /// Pairs that it trained on.
    pub preferences: u64,
    /// Its optimiser steps.
    pub steps: u64,
    /// What the gate said; none without one.
    pub gate: Option<String>,
    /// λ of the length penalty.
    pub length_penalty: f64,
}

/// Runs an arm; what stands already is not made again.
///
/// Errors: whatever its daemon says.
pub fn run(
    scene: &Scene,
    seed: u64,
    (name, arm): (&str, &Arm),
    prepared: &Prepared,
) -> Result<ArmFigures> {
    let folder = scene.folder(seed);
    let kept = folder.join(format!("{name}.json"));
    if let Ok(text) = fs::read_to_string(&kept) {
        return serde_json::from_str(&text)
            .with_context(|| format!("{} is broken", kept.display()));
    }
    let slices = Slices::cut(seed, &scene.settings.sizes())?;
    let own = format!(
        "[run]\nname = \"study\"\nseed = {seed}\niterations_max = {}\n\
         prompts_per_iteration = {}\n[evaluate]\nprompts_max = {}\n",
        scene.settings.study.iterations,
        scene.settings.study.prompts_per_iteration,
        slices.evaluation.len() + slices.validation.len()
    );
    let mut config = scene.config(&arm.daemon, &own)?;
    let weak = || prepared.weak.as_deref().context("there is no weak reward model");
    let scorers = match arm.weak {
        true => (weak()?, Some(prepared.reward.as_path())),
        false => (prepared.reward.as_path(), None),
    };
    set_models(&mut config, &prepared.policy, scorers);
    let daemon = Daemon::start(&scene.programs, &folder.join(name), &toml::to_string(&config)?)?;
    // The held-out prompts come first: an iteration that begins takes those that are there.
    daemon.add_prompts("evaluation", &texts(&slices.evaluation), true)?;
    daemon.add_prompts("validation", &texts(&slices.validation), true)?;
    daemon.add_prompts("iterations", &texts(&slices.iterations), false)?;
    daemon.await_iteration(scene.settings.study.iterations)?;
    let figures = measure(scene, &daemon, &slices, arm.weak.then_some("canary"))?;
    daemon.stop()?;
    models::write(&kept, &serde_json::to_string(&figures)?)?;
    Ok(figures)
}

fn measure(
    scene: &Scene,
    daemon: &Daemon,
    slices: &Slices,
    canary: Option<&str>,
) -> Result<ArmFigures> {
    let iterations = iterations(daemon)?;
    let kls = kls(daemon)?;
    let drawn = "SELECT json_extract(p.messages, '$[0].content') FROM draws d
        JOIN prompts p ON p.id = d.prompt_id";
    for row in daemon.rows(drawn)? {
        let prompt = row.first().and_then(Value::as_str).and_then(Prompt::parse);
        let prompt = prompt.context("an iteration drew a prompt that is none of the study's")?;
        ensure!(!prompt.is_held_out(), "an iteration trained on a held-out prompt");
    }
    let mut answers = answers::evaluated(daemon, "reward", canary)?;
    for answer in &mut answers {
        answer.gold = gold(&scene.lexicon, &answer.prompt, &answer.text, answer.finished);
    }
    let evaluation: HashSet<Prompt> = slices.evaluation.iter().copied().collect();
    let mut by_policy: BTreeMap<(u64, bool), (Vec<Answer>, Vec<Answer>)> = BTreeMap::new();
    for answer in answers {
        ensure!(answer.prompt.is_held_out(), "an evaluation asked a prompt that is trained on");
        let place = by_policy.entry((answer.iteration, answer.temperature == 0.0)).or_default();
        let own = if evaluation.contains(&answer.prompt) { &mut place.0 } else { &mut place.1 };
        own.push(answer);
    }
    let initial: BTreeMap<bool, Vec<Answer>> = by_policy
        .iter()
        .filter(|((iteration, _), _)| *iteration == 0)
        .map(|((_, greedy), (answers, _))| (*greedy, answers.clone()))
        .collect();
    let mut policies = Vec::new();
    for ((iteration, greedy), (answers, validation)) in by_policy {
        let baseline = initial.get(&greedy).context("the initial policy did not answer")?;
        let score = |answers: &[Answer]| average(answers, |answer| answer.score);
        let (gold, wins) = against(&answers, baseline)?;
        ensure!(gold.len() == slices.evaluation.len(), "not every evaluation prompt was answered");
        policies.push(PolicyFigures {
            iteration,
            temperature: if greedy { 0.0 } else { 1.0 },
            gold,
            wins,
            each: if iteration == 0 { each(&answers) } else { Vec::new() },
            tokens: average(&answers, |answer| answer.tokens),
            score: score(&answers),
            validation_score: score(&validation),
            canary: canary.map(|_| average(&answers, |answer| answer.canary)),
            kl: if greedy { None } else { Some(kls.get(&iteration).copied().unwrap_or(0.0)) },
        });
    }
    Ok(ArmFigures { policies, iterations })
}

fn average(answers: &[Answer], value: impl Fn(&Answer) -> f64) -> f64 {
    stats::mean(&answers.iter().map(value).collect::<Vec<_>>())
}

/// By prompt, in the order of the draw: the gold of each answer.
fn each(answers: &[Answer]) -> Vec<(Prompt, Vec<f64>)> {
    let golds = |group: &[Answer]| group.iter().map(|answer| answer.gold).collect();
    let groups = answers.chunk_by(|a, b| a.prompt == b.prompt);
    groups.map(|group| (group[0].prompt, golds(group))).collect()
}

/// By prompt, in the order of the draw: mean gold, and the share of wins over the same sample of the
/// baseline.
fn against(answers: &[Answer], baseline: &[Answer]) -> Result<(Vec<f64>, Vec<f64>)> {
    let known: BTreeMap<(Prompt, u64), f64> =
        baseline.iter().map(|answer| ((answer.prompt, answer.sample), answer.gold)).collect();
    let (mut gold, mut wins) = (Vec::new(), Vec::new());
    for group in answers.chunk_by(|a, b| a.prompt == b.prompt) {
        let mut won = Vec::with_capacity(group.len());
        for answer in group {
            let other = known.get(&(answer.prompt, answer.sample));
            let other = other.context("the initial policy has no answer to compare with")?;
            won.push(win(answer.gold, *other));
        }
        gold.push(average(group, |answer| answer.gold));
        wins.push(stats::mean(&won));
    }
    Ok((gold, wins))
}

/// 1 for more gold, one half for the same.
pub fn win(own: f64, other: f64) -> f64 {
    match own - other {
        gap if gap > 1e-9 => 1.0,
        gap if gap < -1e-9 => 0.0,
        _ => 0.5,
    }
}

fn iterations(daemon: &Daemon) -> Result<Vec<Iteration>> {
    let statement = "SELECT i.iteration, c.sha256, i.preferences,
            (SELECT count(*) FROM training_steps s JOIN units u ON u.id = s.unit_id
             WHERE u.work = 'train_dpo' AND u.iteration = i.iteration),
            i.gate, i.length_penalty
        FROM iteration_history i LEFT JOIN checkpoints c ON c.iteration = i.iteration
        ORDER BY i.iteration";
    let row = |row: &Vec<Value>| {
        Some(Iteration {
            iteration: row.first()?.as_u64()?,
            checkpoint: row.get(1)?.as_str().unwrap_or_default().to_owned(),
            preferences: row.get(2)?.as_u64().unwrap_or(0),
            steps: row.get(3)?.as_u64()?,
            gate: row.get(4)?.as_str().map(str::to_owned),
            length_penalty: row.get(5)?.as_f64().unwrap_or(0.0),
        })
    };
    let rows = daemon.rows(statement)?;
    rows.iter().map(|r| row(r).context("an iteration's row is broken")).collect()
}

/// KL by iteration, over all held-out prompts.
fn kls(daemon: &Daemon) -> Result<BTreeMap<u64, f64>> {
    let statement = "SELECT iteration, max(kl_k3) FROM evaluations
        WHERE temperature = 1.0 AND kl_k3 IS NOT NULL GROUP BY iteration";
    let rows = daemon.rows(statement)?;
    Ok(rows
        .iter()
        .filter_map(|row| Some((row.first()?.as_u64()?, row.get(1)?.as_f64()?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(prompt: &str, sample: u64, gold: f64) -> Answer {
        Answer {
            prompt: Prompt::parse(prompt).unwrap(),
            iteration: 0,
            temperature: 1.0,
            sample,
            text: String::new(),
            finished: true,
            tokens: 1.0,
            score: 0.0,
            canary: f64::NAN,
            gold,
        }
    }

    #[test]
    fn wins_are_counted_by_sample_and_ties_are_one_half() {
        let (a, b) = ("one plain near river then slowly", "two plain near river then slowly");
        let own = [answer(a, 0, 0.5), answer(a, 1, 0.7), answer(b, 0, 0.2), answer(b, 1, 0.2)];
        let base = [answer(a, 1, 0.7), answer(a, 0, 0.1), answer(b, 0, 0.4), answer(b, 1, 0.1)];
        let (gold, wins) = against(&own, &base).unwrap();
        assert!((gold[0] - 0.6).abs() < 1e-12 && (gold[1] - 0.2).abs() < 1e-12);
        assert_eq!(wins, [0.75, 0.5]);
        assert!(against(&own, &base[..3]).is_err());
    }
}
