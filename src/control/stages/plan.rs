//! The plan of an iteration: which units it is cut into, all of them at its start.
//!
//! In: the configuration, what was drawn, sizes. Out: new units in flow order. Pure. May not enter:
//! the store, time.

mod job;
mod offline;
mod replayed;

use rlhfd_config::{CheckedConfig, ScorerKind, Training};
use rlhfd_domain::plan::{BatchPlan, PlanError, cut, unit_items};
use rlhfd_domain::{CheckpointId, ScorerId, Stage, WorkKind};
use rlhfd_store::{Arm, Drawn, NewUnit};

use super::sums::evaluation_settings;

pub use job::job;

/// What the daemon holds of a unit's answers at once, at most; a plan keeps below it.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// An answered token: its id, its log-prob and its text.
const BYTES_PER_TOKEN: u64 = 13;
/// Prompts of a render unit at most.
const RENDER_ITEMS_MAX: u64 = 128;
/// Responses written together. A step of generation reads all weights once, however many rows it has:
/// on two cores 64 rows take little longer than 8.
const ROWS_CPU: u64 = 64;
/// The same on a GPU.
const ROWS_GPU: u64 = 256;

/// How many prompts are computed together, and how much makes a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens that a unit aims at.
    pub unit_tokens: u64,
    /// Responses of a batch of generate, over all its prompts.
    pub generate_rows: u64,
    /// Prompts of a batch of score.
    pub score_batch: u64,
    /// Prompts of a batch of logprobs.
    pub logprobs_batch: u64,
}

impl Sizes {
    /// By the configuration, or for the kind of device where that says 0.
    #[must_use]
    pub fn of(config: &CheckedConfig, cuda: bool) -> Self {
        let per_prompt = u64::from(config.generate.responses_per_prompt()).max(1);
        let auto = |configured: u64, cpu: u64, gpu: u64| match configured {
            0 if cuda => gpu,
            0 => cpu,
            given => given,
        };
        let scored = u64::from(config.label.batch_responses).div_ceil(per_prompt);
        Self {
            unit_tokens: if cuda {
                config.scheduler.unit_tokens_gpu
            } else {
                config.scheduler.unit_tokens_cpu
            },
            generate_rows: auto(
                u64::from(config.generate.batch_prompts) * per_prompt,
                ROWS_CPU,
                ROWS_GPU,
            ),
            score_batch: auto(scored, 1, 8),
            logprobs_batch: auto(0, 2, 8),
        }
    }

    /// Prompts of a batch of generate, where each gets so many responses.
    #[must_use]
    pub fn prompts_together(&self, responses_per_prompt: u64) -> u64 {
        (self.generate_rows / responses_per_prompt.max(1)).max(1)
    }
}

/// What the plan must know beside the configuration.
#[derive(Debug, Clone)]
pub struct Given {
    /// All scorers.
    pub scorers: Vec<Scores>,
    /// The run's initial policy.
    pub initial: CheckpointId,
    /// The lane of the policy that the iteration begins with, where that is another one.
    pub previous: Option<String>,
    /// For how many of the first evaluation prompts the initial policy's answers stand.
    pub answered: u64,
    /// Batches and units.
    pub sizes: Sizes,
}

/// A scorer, and what it has done before.
#[derive(Debug, Clone)]
pub struct Scores {
    /// The scorer.
    pub id: ScorerId,
    /// What it does.
    pub kind: ScorerKind,
    /// Its name.
    pub name: String,
    /// For how many of the first evaluation prompts it scored the initial policy's answers: fewer
    /// than were answered where it is new, or an iteration was cancelled between the two.
    pub initial: u64,
}

/// The lane of the initial policy's evaluation.
#[must_use]
pub fn initial_lane(config: &CheckedConfig) -> String {
    format!("initial-{}", evaluation_settings(config))
}

/// All units of an iteration.
///
/// Errors: `PlanError` never for a checked configuration; kept so that nothing has to unwrap.
pub fn iteration(
    config: &CheckedConfig,
    drawn: &Drawn,
    given: &Given,
) -> Result<Vec<NewUnit>, PlanError> {
    let mut planner = Planner { config, given, t: drawn.iteration, units: Vec::new() };
    planner.main_flow(drawn)?;
    planner.evaluation(drawn)?;
    Ok(planner.units)
}

struct Planner<'a> {
    config: &'a CheckedConfig,
    given: &'a Given,
    t: u32,
    units: Vec<NewUnit>,
}

/// A policy that generates, and how many responses a prompt.
struct Generating<'a> {
    id: CheckpointId,
    name: &'a str,
    n: u64,
}

/// The policies of the arms, each once, in the order in which the arms name them.
fn policies(arms: &[Arm]) -> Vec<Generating<'_>> {
    let mut policies: Vec<Generating<'_>> = Vec::new();
    for arm in arms {
        let n = u64::from(arm.n);
        match policies.iter_mut().find(|policy| policy.id == arm.policy) {
            Some(policy) => policy.n += n,
            None => policies.push(Generating { id: arm.policy, name: &arm.policy_name, n }),
        }
    }
    policies
}

/// What one kind of ranged unit has in common.
struct Ranged<'a> {
    stage: Stage,
    work: WorkKind,
    lane: &'a str,
    prefix: String,
    policy: Option<CheckpointId>,
    scorer: Option<ScorerId>,
    /// What the rows keep beside: the lane that answers are compared with, or the earlier iteration whose
    /// draw is meant.
    detail: Option<&'a str>,
    batch: u64,
    tokens_per_item: u64,
}

impl Planner<'_> {
    fn main_flow(&mut self, drawn: &Drawn) -> Result<(), PlanError> {
        let t = self.t;
        let new_tokens = u64::from(self.config.generate.max_new_tokens);
        self.render(Stage::Prompts, "", format!("{t}/prompts/render"), 0, drawn.prompts)?;
        let policies = policies(&drawn.arms);
        // All policies answer the same ranges in the same batches, so that a label waits for few units.
        let n = policies.iter().map(|policy| policy.n).max().unwrap_or(0);
        let generate = Ranged {
            stage: Stage::Generate,
            work: WorkKind::Generate,
            lane: "",
            prefix: format!("{t}/generate"),
            policy: None,
            scorer: None,
            detail: None,
            batch: self.prompts_together(n),
            tokens_per_item: n * new_tokens,
        };
        for policy in &policies {
            let prefix = match policies.len() {
                1 => generate.prefix.clone(),
                _ => format!("{t}/generate/{}", policy.name),
            };
            let of_policy = Ranged { prefix, policy: Some(policy.id), ..generate };
            self.ranged(&of_policy, 0, drawn.prompts)?;
        }
        for scorer in &self.given.scorers {
            let score = Ranged {
                stage: Stage::Label,
                work: match scorer.kind {
                    ScorerKind::Reward => WorkKind::Score,
                    ScorerKind::Preference => WorkKind::Prefer,
                },
                prefix: format!("{t}/label/{}", scorer.name),
                policy: None,
                scorer: Some(scorer.id),
                batch: self.given.sizes.score_batch,
                ..generate
            };
            self.aligned(&score, &generate, 0, drawn.prompts)?;
        }
        self.whole(Stage::Pair, WorkKind::Pair, format!("{t}/pair"));
        let paired = self.config.pair.responses_max(self.config.generate.responses_per_prompt());
        let logprobs = Ranged {
            stage: Stage::Train,
            work: WorkKind::Logprobs,
            prefix: format!("{t}/train/logprobs"),
            policy: None,
            batch: self.given.sizes.logprobs_batch,
            tokens_per_item: u64::from(paired) * new_tokens,
            ..generate
        };
        self.ranged(&logprobs, 0, drawn.prompts)?;
        self.replayed(&logprobs, &drawn.replayed)?;
        self.offline(&drawn.offline)?;
        self.train(format!("{t}/train"));
        self.whole(Stage::Checkpoint, WorkKind::Checkpoint, format!("{t}/checkpoint"));
        Ok(())
    }

    fn evaluation(&mut self, drawn: &Drawn) -> Result<(), PlanError> {
        let t = self.t;
        let (from, to) = (drawn.evaluate_rendered, drawn.evaluate);
        self.render(Stage::Evaluate, "", format!("{t}/evaluate/render"), from, to)?;
        let lane = initial_lane(self.config);
        // Made once a run: but a cancelled iteration leaves its keys behind.
        let prefix = format!("{t}/evaluate/{lane}");
        self.lane(&lane, &prefix, Some(self.given.initial), to)?;
        let policy = rlhfd_domain::checkpoint::iteration_name(t);
        let prefix = format!("{t}/evaluate/{policy}");
        self.lane(&policy, &prefix, None, to)?;
        let lane = &policy;
        let logprobs = Ranged {
            stage: Stage::Evaluate,
            work: WorkKind::Logprobs,
            lane,
            prefix: format!("{prefix}/logprobs"),
            policy: None,
            scorer: None,
            detail: None,
            batch: self.given.sizes.logprobs_batch,
            tokens_per_item: self.evaluation_tokens(),
        };
        self.ranged(&logprobs, 0, to)?;
        self.whole(Stage::Evaluate, WorkKind::Summarise, format!("{t}/evaluate"));
        Ok(())
    }

    /// Answers of one policy, and the scores of each scorer: of the initial policy, which is named,
    /// those that do not stand already.
    fn lane(
        &mut self,
        lane: &str,
        prefix: &str,
        policy: Option<CheckpointId>,
        to: u64,
    ) -> Result<(), PlanError> {
        let stands = |done: u64| if policy.is_some() { done.min(to) } else { 0 };
        let generate = Ranged {
            stage: Stage::Evaluate,
            work: WorkKind::Generate,
            lane,
            prefix: format!("{prefix}/generate"),
            policy,
            scorer: None,
            detail: None,
            batch: self.given.sizes.prompts_together(self.evaluation_responses()),
            tokens_per_item: self.evaluation_tokens(),
        };
        self.ranged(&generate, stands(self.given.answered), to)?;
        for scorer in &self.given.scorers {
            match (scorer.kind, policy) {
                (ScorerKind::Reward, _) => {
                    let score = Ranged {
                        work: WorkKind::Score,
                        prefix: format!("{prefix}/score/{}", scorer.name),
                        scorer: Some(scorer.id),
                        batch: self.given.sizes.score_batch,
                        ..generate
                    };
                    self.aligned(&score, &generate, stands(scorer.initial), to)?;
                }
                (ScorerKind::Preference, None) => self.compared(&generate, prefix, scorer, to)?,
                // The baseline is compared with nobody.
                (ScorerKind::Preference, Some(_)) => {}
            }
        }
        Ok(())
    }

    /// The new policy's answers beside those of its baselines.
    fn compared(
        &mut self,
        generate: &Ranged<'_>,
        prefix: &str,
        scorer: &Scores,
        to: u64,
    ) -> Result<(), PlanError> {
        let initial = initial_lane(self.config);
        let baselines = [("initial", Some(initial)), ("previous", self.given.previous.clone())];
        for (against, lane) in baselines {
            let Some(lane) = lane else { continue };
            let prefer = Ranged {
                work: WorkKind::Prefer,
                prefix: format!("{prefix}/prefer-{against}/{}", scorer.name),
                scorer: Some(scorer.id),
                detail: Some(&lane),
                batch: self.given.sizes.score_batch,
                ..*generate
            };
            self.aligned(&prefer, generate, 0, to)?;
        }
        Ok(())
    }

    /// Prompts of a batch of generate, of which a policy writes so many responses to each: as asked
    /// for, else by the rows that are computed together.
    fn prompts_together(&self, n: u64) -> u64 {
        match self.config.generate.batch_prompts {
            0 => self.given.sizes.prompts_together(n),
            asked => u64::from(asked),
        }
    }

    /// Responses that each prompt of evaluation gets.
    fn evaluation_responses(&self) -> u64 {
        u64::from(super::generate::responses_per_prompt(self.config, Stage::Evaluate))
    }

    fn evaluation_tokens(&self) -> u64 {
        self.evaluation_responses() * u64::from(self.config.evaluate.max_new_tokens)
    }

    fn render(
        &mut self,
        stage: Stage,
        lane: &str,
        prefix: String,
        from: u64,
        to: u64,
    ) -> Result<(), PlanError> {
        let tokens_max = u64::from(self.config.prompts.prompt_tokens_max).max(1);
        let items = (ANSWER_BYTES_MAX / (4 * tokens_max)).clamp(1, RENDER_ITEMS_MAX);
        let ranged = Ranged {
            stage,
            work: WorkKind::Render,
            lane,
            prefix,
            policy: None,
            scorer: None,
            detail: None,
            batch: 1,
            tokens_per_item: 0,
        };
        self.push_all(&ranged, cut(from, to, 1, items)?);
        Ok(())
    }

    /// Units of their own size.
    fn ranged(&mut self, ranged: &Ranged<'_>, from: u64, to: u64) -> Result<(), PlanError> {
        let items = self.items_per_unit(ranged);
        self.push_all(ranged, cut(from, to, ranged.batch, items)?);
        Ok(())
    }

    /// Units over the same ranges as `other`'s, in batches of their own.
    fn aligned(
        &mut self,
        ranged: &Ranged<'_>,
        other: &Ranged<'_>,
        from: u64,
        to: u64,
    ) -> Result<(), PlanError> {
        let items = self.items_per_unit(other);
        let plans = cut(from, to, other.batch, items)?
            .into_iter()
            .map(|plan| BatchPlan::new(plan.from, plan.to, ranged.batch))
            .collect::<Result<_, _>>()?;
        self.push_all(ranged, plans);
        Ok(())
    }

    fn items_per_unit(&self, ranged: &Ranged<'_>) -> u64 {
        let per_item = ranged.tokens_per_item.max(1);
        let held = ANSWER_BYTES_MAX / BYTES_PER_TOKEN;
        unit_items(self.given.sizes.unit_tokens.min(held), per_item, ranged.batch)
    }

    fn push_all(&mut self, ranged: &Ranged<'_>, plans: Vec<BatchPlan>) {
        for plan in plans {
            self.units.push(NewUnit {
                stage: ranged.stage,
                work: ranged.work,
                lane: ranged.lane.to_owned(),
                key: format!("{}/{}-{}", ranged.prefix, plan.from, plan.to),
                plan: Some(plan),
                micro_batch: None,
                policy: ranged.policy,
                scorer: ranged.scorer,
                detail: ranged.detail.map(str::to_owned),
            });
        }
    }

    /// The update.
    fn train(&mut self, key: String) {
        self.whole(Stage::Train, WorkKind::TrainDpo, key);
        let micro_batch = u64::from(self.config.train.settings.micro_batch(Training::Dpo));
        if let Some(unit) = self.units.last_mut() {
            unit.micro_batch = Some(micro_batch);
        }
    }

    /// A unit in one piece.
    fn whole(&mut self, stage: Stage, work: WorkKind, key: String) {
        self.units.push(NewUnit {
            stage,
            work,
            lane: String::new(),
            key,
            plan: None,
            micro_batch: None,
            policy: None,
            scorer: None,
            detail: None,
        });
    }
}

#[cfg(test)]
mod tests;
