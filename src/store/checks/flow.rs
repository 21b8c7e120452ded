//! An iteration that the checks work off by hand: its plan, and what each kind of unit gives.

use rlhfd_domain::checkpoint::{CheckpointKind, PolicyChoice, iteration_name};
use rlhfd_domain::evaluation::compare;
use rlhfd_domain::gate::{OnFail, Verdict};
use rlhfd_domain::label::combine::Normalise;
use rlhfd_domain::label::penalty::{Fit, LengthUnit};
use rlhfd_domain::preference::{Arms, Choice, PairRule, Unfinished};
use rlhfd_domain::response::Finish as ResponseFinish;
use rlhfd_domain::train::{History, ReferenceRule, TrainStep};
use rlhfd_domain::{CheckpointId, ScorerId};

use super::*;
use crate::{
    Generated, Logprobs, NewArm, NewCheckpoint, NewEvaluation, NewIteration, NewResponse,
    NewSummary, PairedAnswers, Penalty, Scored, ScorerUse, Scoring,
};

pub(crate) const INITIAL: &str = "initial-0a1b2c3d";
pub(crate) const PAPER: PairRule = PairRule {
    choice: Choice::BestWorst,
    arms: Arms::Any,
    unfinished: Unfinished::Keep,
    score_gap_min: 0.0,
    pairs_max: 1,
};

/// A run with prompts, a scorer, and the plan of an iteration of `prompts` prompts.
pub(crate) struct Flow {
    pub(crate) bench: Bench,
    pub(crate) run: RunId,
    pub(crate) scorer: ScorerId,
    /// Scorers beside it, which score the main flow too.
    pub(crate) others: Vec<ScorerId>,
    /// The ways to sample, of which one policy may have several.
    pub(crate) arms: Vec<NewArm>,
    pub(crate) offline: crate::OfflineUse,
    /// What updates are held to.
    pub(crate) reference: ReferenceRule,
    /// What a gate says of the next iterations.
    pub(crate) verdict: Option<Verdict>,
}

impl Flow {
    pub(crate) fn new(prompts: u32) -> Self {
        let mut bench = Bench::new();
        let run = bench.run().id;
        bench.add("s", 0.0, &texts(0, prompts));
        let sum = "5".repeat(64);
        let scorer = bench.store.scorer("help", "reward", "models/help", &sum).unwrap();
        let offline = crate::OfflineUse::default();
        let arms = vec![an_arm("plain", PolicyChoice::Current, 2)];
        let (others, reference) = (Vec::new(), ReferenceRule::Fixed);
        Self { bench, run, scorer, others, arms, offline, reference, verdict: None }
    }

    pub(crate) fn start(&mut self, prompts: u64, evaluate: u64) -> u32 {
        self.try_start(prompts, evaluate).unwrap().iteration
    }

    pub(crate) fn try_start(
        &mut self,
        prompts: u64,
        evaluate: u64,
    ) -> crate::Result<crate::Iteration> {
        let new = NewIteration {
            run: self.run,
            config: "[run]".into(),
            config_sha256: "c".repeat(64),
            prompts_max: prompts,
            reuse_prompts: false,
            evaluate_prompts_max: evaluate,
            arms: self.arms.clone(),
            offline: self.offline.clone(),
            reference: self.reference,
            history: History::All,
        };
        let (scorer, others) = (self.scorer, self.others.clone());
        let done =
            self.bench.store.lane_done(self.run, INITIAL, WorkKind::Score, Some(scorer)).unwrap();
        let plan = |drawn: &crate::Drawn| {
            let mut all = plan_units(drawn, scorer, done);
            all.extend(others.iter().flat_map(|other| label_units(drawn, *other)));
            all
        };
        self.bench.store.start_iteration(&new, NOW, plan)
    }

    pub(crate) fn ready(&self) -> Vec<String> {
        self.bench.ready(self.run)
    }

    /// Works off all ready units of a kind. Texts and scores follow from ordinal, sample and lane.
    pub(crate) fn work(&mut self, kind: WorkKind) {
        for unit in self.bench.store.ready_units(self.run, 1_000).unwrap() {
            if unit.work == kind {
                self.one(&unit);
            }
        }
    }

    pub(crate) fn one(&mut self, unit: &UnitRow) -> Finish {
        let end = self.bench.begin(unit);
        self.end(unit, &end).unwrap();
        end
    }

    pub(crate) fn end(&mut self, unit: &UnitRow, end: &Finish) -> crate::Result<()> {
        let other = self.others.iter().position(|other| Some(*other) == unit.scorer);
        let store = &mut self.bench.store;
        match unit.work {
            WorkKind::Generate => {
                let samples = samples_of(store, unit)?;
                let items: Vec<Generated> = store
                    .generate_items(unit.id)?
                    .iter()
                    .map(|item| Generated {
                        ordinal: item.ordinal,
                        prompt: item.prompt,
                        outcome: Outcome::Done(
                            samples.iter().map(|s| response(item.ordinal, *s)).collect(),
                        ),
                    })
                    .collect();
                store.finish_generate(end, &items, NOW)
            }
            WorkKind::Score => {
                let bonus = if unit.lane.starts_with("iteration") { 1.0 } else { 0.0 };
                let items: Vec<Scored> = store
                    .score_items(unit.id)?
                    .iter()
                    .map(|item| Scored {
                        response: item.response,
                        outcome: Outcome::Done(match other {
                            None => score(item.ordinal, item.sample) + bonus,
                            Some(other) => other_score(other, item.sample),
                        }),
                    })
                    .collect();
                store.finish_score(end, &items, NOW)
            }
            WorkKind::Logprobs => {
                let items: Vec<Logprobs> = store
                    .logprob_items(unit.id)?
                    .iter()
                    .map(|item| Logprobs {
                        response: item.response,
                        outcome: Outcome::Done((vec![-1.0; item.response_ids.len()], -3.0)),
                    })
                    .collect();
                store.finish_logprobs(end, &items, NOW)
            }
            WorkKind::Pair => {
                let scoring = paper_scoring(store, unit, self.scorer)?;
                store.finish_pair(end, &scoring, &PAPER, NOW).map(|_| ())
            }
            WorkKind::TrainDpo
            | WorkKind::TrainSft
            | WorkKind::TrainReward
            | WorkKind::TrainPreference => {
                store.finish_train(end, &[step(1, 0.69), step(2, 0.6)], 1, NOW)
            }
            WorkKind::Checkpoint => {
                let iteration = unit.iteration.unwrap();
                let row = store.iteration(unit.run, iteration)?;
                let new = checkpoint(iteration, row.policy_in, row.reference);
                store.finish_checkpoint(end, &new, NOW).map(|_| ())
            }
            other => panic!("{other} is not done here"),
        }
    }

    pub(crate) fn summarise(&mut self, iteration: u32) -> Finish {
        let unit = self.bench.unit(self.run, &format!("{iteration:04}/evaluate"));
        let end = self.bench.begin(&unit);
        let row = self.bench.store.iteration(self.run, iteration).unwrap();
        let run = self.bench.store.run(self.run).unwrap();
        let lane = iteration_name(iteration);
        let of = PairedAnswers {
            run: self.run,
            lane: &lane,
            baseline_lane: INITIAL,
            scorer: self.scorer,
            temperature: 1.0,
            prompts: row.evaluate,
        };
        let store = &mut self.bench.store;
        let scores = store.paired_scores(&of).unwrap();
        let shape = store.lane_shape(self.run, &lane, 1.0, row.evaluate).unwrap().unwrap();
        let evaluation = NewEvaluation {
            iteration,
            policy: row.policy_out.unwrap(),
            baseline: run.initial,
            scorer: self.scorer,
            temperature: 1.0,
            comparison: compare(&scores, 200, 1).unwrap(),
            shape,
            kl_k3: store.kl_k3(self.run, &lane, row.reference, row.evaluate).unwrap(),
        };
        let summary = NewSummary {
            evaluations: vec![evaluation],
            verdict: self.verdict.clone(),
            on_fail: OnFail::KeepHead,
            ranked_by: Some((self.scorer, 1.0)),
        };
        store.finish_summarise(&end, &summary, NOW + 9_000).unwrap();
        end
    }
}

/// One scorer of weight 1 and no penalty: the paper's.
pub(crate) fn paper_scoring(
    store: &Store,
    unit: &UnitRow,
    scorer: ScorerId,
) -> crate::Result<Scoring> {
    let spread = store.spreads(unit.run, unit.iteration.unwrap())?.get(&scorer).copied();
    let help = ScorerUse { scorer, weight: Some(1.0), normalise: Normalise::None, spread };
    let fit = Fit { lambda: 0.0, before: None, after: None };
    let penalty = Penalty { unit: LengthUnit::Characters, fitted: false, fit };
    Ok(Scoring { scorers: vec![help], penalty })
}

pub(crate) fn an_arm(name: &str, policy: PolicyChoice, n: u32) -> NewArm {
    NewArm { name: name.into(), policy, temperature: 1.0, top_p: 1.0, top_k: 0, n }
}

/// The samples that a unit writes to each prompt: of its policy's arms, or two in evaluation.
pub(crate) fn samples_of(store: &Store, unit: &UnitRow) -> crate::Result<Vec<u32>> {
    if unit.stage == Stage::Evaluate {
        return Ok(vec![0, 1]);
    }
    let arms = store.iteration_arms(unit.run, unit.iteration.unwrap())?;
    let own = arms.iter().filter(|arm| Some(arm.policy) == unit.policy);
    Ok(own.flat_map(|arm| arm.first_sample..arm.first_sample + arm.n).collect())
}

fn generate_units(drawn: &crate::Drawn) -> Vec<NewUnit> {
    let mut all: Vec<NewUnit> = Vec::new();
    for arm in &drawn.arms {
        if all.iter().any(|unit| unit.policy == Some(arm.policy)) {
            continue;
        }
        let alone = drawn.arms.iter().all(|other| other.policy == arm.policy);
        let name = if alone { String::new() } else { format!("/{}", arm.policy_name) };
        let key = format!("{:04}/generate{name}", drawn.iteration);
        let unit = a_unit(Stage::Generate, WorkKind::Generate, &key);
        all.extend(units(&NewUnit { policy: Some(arm.policy), ..unit }, drawn.prompts, 2, 4));
    }
    all
}

fn plan_units(drawn: &crate::Drawn, scorer: ScorerId, initial_done: u64) -> Vec<NewUnit> {
    let t = format!("{:04}", drawn.iteration);
    let of = |stage, work, key: &str| a_unit(stage, work, &format!("{t}/{key}"));
    let mut all = Vec::new();
    all.extend(units(&of(Stage::Prompts, WorkKind::Render, "prompts/render"), drawn.prompts, 1, 8));
    all.extend(generate_units(drawn));
    let label = NewUnit { scorer: Some(scorer), ..of(Stage::Label, WorkKind::Score, "label/help") };
    all.extend(units(&label, drawn.prompts, 2, 4));
    all.push(of(Stage::Pair, WorkKind::Pair, "pair"));
    let logprobs = of(Stage::Train, WorkKind::Logprobs, "train/logprobs");
    all.extend(units(&logprobs, drawn.prompts, 2, 8));
    for of in &drawn.replayed {
        let key = format!("{}/of-{}", logprobs.key, of.iteration);
        let unit = NewUnit { detail: Some(of.iteration.to_string()), key, ..logprobs.clone() };
        all.extend(units_from(&unit, (of.from / 2 * 2, of.to), 2, 8));
    }
    for (work, from) in [
        (WorkKind::RenderPairs, drawn.offline.rendered),
        (WorkKind::LogprobsPairs, drawn.offline.known),
    ] {
        let unit = of(Stage::Train, work, &format!("train/{work}"));
        all.extend(units_from(&unit, (from, drawn.offline.pairs), 2, 8));
    }
    all.push(of(Stage::Train, WorkKind::TrainDpo, "train"));
    all.push(of(Stage::Checkpoint, WorkKind::Checkpoint, "checkpoint"));
    if drawn.evaluate == 0 {
        return all;
    }
    if drawn.evaluate_rendered < drawn.evaluate {
        let render = of(Stage::Evaluate, WorkKind::Render, "evaluate/render");
        all.extend(units(&render, drawn.evaluate, 1, 8));
    }
    let mut lanes = vec![(iteration_name(drawn.iteration), None)];
    if initial_done < drawn.evaluate {
        lanes.push((INITIAL.to_owned(), Some(drawn.policy_in)));
    }
    for (lane, policy) in lanes {
        for (work, word) in [
            (WorkKind::Generate, "generate"),
            (WorkKind::Score, "score"),
            (WorkKind::Logprobs, "logprobs"),
        ] {
            let unit = NewUnit {
                lane: lane.clone(),
                policy,
                scorer: (work == WorkKind::Score).then_some(scorer),
                ..of(Stage::Evaluate, work, &format!("evaluate/{lane}/{word}"))
            };
            all.extend(units(&unit, drawn.evaluate, 2, 4));
        }
    }
    all.push(of(Stage::Evaluate, WorkKind::Summarise, "evaluate"));
    all
}

pub(crate) fn response(ordinal: u64, sample: u32) -> NewResponse {
    // Every tenth prompt's answers are the same text.
    let text = if ordinal % 10 == 9 { "same".into() } else { format!("answer {ordinal}.{sample}") };
    NewResponse {
        arm: "plain".into(),
        temperature: 1.0,
        sample,
        finish: if sample == 0 { ResponseFinish::Stop } else { ResponseFinish::Length },
        ids: vec![5, 6, 7 + sample],
        logprobs: vec![-1.0, -1.0, -1.0],
        logprob: -3.0,
        text,
    }
}

/// The first of the other scorers likes the later samples less, the second turns everything over.
pub(crate) fn other_score(other: usize, sample: u32) -> f64 {
    if other == 0 { -0.25 * f64::from(sample) } else { -1e3 * f64::from(sample) }
}

fn label_units(drawn: &crate::Drawn, scorer: ScorerId) -> Vec<NewUnit> {
    let key = format!("{:04}/label/{scorer}", drawn.iteration);
    let label = NewUnit { scorer: Some(scorer), ..a_unit(Stage::Label, WorkKind::Score, &key) };
    units(&label, drawn.prompts, 2, 4)
}

/// Every fifth prompt is a tie; else the second sample is better by one.
fn score(ordinal: u64, sample: u32) -> f64 {
    if ordinal % 5 == 4 { 2.0 } else { f64::from(sample) }
}

pub(crate) fn step(step: u64, loss: f64) -> TrainStep {
    TrainStep {
        step,
        loss,
        lr: 1e-6,
        grad_norm: 2.0,
        accuracy: Some(0.75),
        margin: Some(0.1),
        implicit_reward_chosen: Some(0.05),
        implicit_reward_rejected: Some(-0.05),
        token_accuracy: None,
    }
}

pub(crate) fn checkpoint(
    iteration: u32,
    parent: CheckpointId,
    reference: CheckpointId,
) -> NewCheckpoint {
    let name = iteration_name(iteration);
    NewCheckpoint {
        path: format!("runs/main/checkpoints/{name}"),
        name,
        kind: CheckpointKind::Policy,
        parent: Some(parent),
        reference: Some(reference),
        sha256: format!("{iteration:064}"),
        bytes: 1_000,
    }
}

/// Works an iteration off to its end.
pub(crate) fn to_the_end(flow: &mut Flow, iteration: u32) {
    flow.bench.render(flow.run);
    for kind in [
        WorkKind::Generate,
        WorkKind::Score,
        WorkKind::Pair,
        WorkKind::Logprobs,
        WorkKind::TrainDpo,
        WorkKind::Checkpoint,
        WorkKind::Generate,
        WorkKind::Score,
        WorkKind::Logprobs,
    ] {
        flow.work(kind);
    }
    assert_eq!(flow.ready(), [format!("{iteration:04}/evaluate")]);
    flow.summarise(iteration);
}
