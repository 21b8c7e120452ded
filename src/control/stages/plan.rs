//! The plan of an iteration: which units it is cut into, all of them at its start.
//!
//! In: the configuration, what was drawn, sizes. Out: new units in flow order. Pure. May not enter:
//! the store, time.

use rlhfd_config::CheckedConfig;
use rlhfd_domain::plan::{BatchPlan, PlanError, cut, unit_items};
use rlhfd_domain::{CheckpointId, ScorerId, Stage, WorkKind};
use rlhfd_store::{Drawn, NewUnit};

use super::sums::evaluation_settings;

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
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The scorer.
    pub scorer: ScorerId,
    /// The run's initial policy.
    pub initial: CheckpointId,
    /// What the initial policy has of its evaluation already.
    pub answered: Answered,
    /// Batches and units.
    pub sizes: Sizes,
}

/// For how many of the first evaluation prompts a policy's answers stand. They part where an
/// iteration was cancelled between the two.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answered {
    /// They are written.
    pub generated: u64,
    /// They are scored.
    pub scored: u64,
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

/// What one kind of ranged unit has in common.
struct Ranged<'a> {
    stage: Stage,
    work: WorkKind,
    lane: &'a str,
    prefix: String,
    policy: Option<CheckpointId>,
    scorer: Option<ScorerId>,
    batch: u64,
    tokens_per_item: u64,
}

impl Planner<'_> {
    fn main_flow(&mut self, drawn: &Drawn) -> Result<(), PlanError> {
        let t = self.t;
        let n = u64::from(self.config.generate.responses_per_prompt());
        let new_tokens = u64::from(self.config.generate.max_new_tokens);
        let scorer = &self.config.label.scorers;
        let scorer_name = scorer.first().map_or("reward", |s| s.name.as_str());
        self.render(Stage::Prompts, "", format!("{t}/prompts/render"), 0, drawn.prompts)?;
        let generate = Ranged {
            stage: Stage::Generate,
            work: WorkKind::Generate,
            lane: "",
            prefix: format!("{t}/generate"),
            policy: Some(drawn.policy_in),
            scorer: None,
            batch: self.given.sizes.prompts_together(n),
            tokens_per_item: n * new_tokens,
        };
        self.ranged(&generate, 0, drawn.prompts)?;
        let score = Ranged {
            stage: Stage::Label,
            work: WorkKind::Score,
            prefix: format!("{t}/label/{scorer_name}"),
            policy: None,
            scorer: Some(self.given.scorer),
            batch: self.given.sizes.score_batch,
            ..generate
        };
        self.aligned(&score, &generate, 0, drawn.prompts)?;
        self.whole(Stage::Pair, WorkKind::Pair, format!("{t}/pair"));
        let logprobs = Ranged {
            stage: Stage::Train,
            work: WorkKind::Logprobs,
            prefix: format!("{t}/train/logprobs"),
            scorer: None,
            batch: self.given.sizes.logprobs_batch,
            tokens_per_item: 2 * new_tokens,
            ..score
        };
        self.ranged(&logprobs, 0, drawn.prompts)?;
        self.whole(Stage::Train, WorkKind::TrainDpo, format!("{t}/train"));
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
        self.lane(&lane, &prefix, Some(self.given.initial), self.given.answered, to)?;
        let policy = rlhfd_domain::checkpoint::iteration_name(t);
        let prefix = format!("{t}/evaluate/{policy}");
        self.lane(&policy, &prefix, None, Answered::default(), to)?;
        let lane = &policy;
        let logprobs = Ranged {
            stage: Stage::Evaluate,
            work: WorkKind::Logprobs,
            lane,
            prefix: format!("{prefix}/logprobs"),
            policy: None,
            scorer: None,
            batch: self.given.sizes.logprobs_batch,
            tokens_per_item: self.evaluation_tokens(),
        };
        self.ranged(&logprobs, 0, to)?;
        self.whole(Stage::Evaluate, WorkKind::Summarise, format!("{t}/evaluate"));
        Ok(())
    }

    /// Answers and scores of one policy.
    fn lane(
        &mut self,
        lane: &str,
        prefix: &str,
        policy: Option<CheckpointId>,
        answered: Answered,
        to: u64,
    ) -> Result<(), PlanError> {
        let scorer_name = self.config.label.scorers.first().map_or("reward", |s| s.name.as_str());
        let generate = Ranged {
            stage: Stage::Evaluate,
            work: WorkKind::Generate,
            lane,
            prefix: format!("{prefix}/generate"),
            policy,
            scorer: None,
            batch: self.given.sizes.prompts_together(self.evaluation_responses()),
            tokens_per_item: self.evaluation_tokens(),
        };
        self.ranged(&generate, answered.generated.min(to), to)?;
        let score = Ranged {
            work: WorkKind::Score,
            prefix: format!("{prefix}/score/{scorer_name}"),
            scorer: Some(self.given.scorer),
            batch: self.given.sizes.score_batch,
            ..generate
        };
        self.aligned(&score, &generate, answered.scored.min(to), to)
    }

    /// Responses that each prompt of evaluation gets.
    fn evaluation_responses(&self) -> u64 {
        let arms = super::generate::arms(self.config, Stage::Evaluate);
        arms.iter().map(|arm| u64::from(arm.n)).sum()
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
                policy: ranged.policy,
                scorer: ranged.scorer,
                detail: None,
            });
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
            policy: None,
            scorer: Some(self.given.scorer),
            detail: None,
        });
    }
}

/// The units of a reward training job.
#[must_use]
pub fn reward_job(name: &str) -> Vec<NewUnit> {
    let unit = |stage, work, last: &str| NewUnit {
        stage,
        work,
        lane: String::new(),
        key: format!("job/reward/{name}/{last}"),
        plan: None,
        policy: None,
        scorer: None,
        detail: None,
    };
    vec![
        unit(Stage::Train, WorkKind::TrainReward, "train"),
        unit(Stage::Checkpoint, WorkKind::Checkpoint, "checkpoint"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn config() -> CheckedConfig {
        let text = "[run]\npolicy = \"p\"\n[generate]\nmax_new_tokens = 64\n\
                    [scheduler]\nunit_tokens_cpu = 4096\n";
        CheckedConfig::from_text(text, Path::new("/")).unwrap()
    }

    fn drawn(prompts: u64, evaluate: u64) -> Drawn {
        Drawn { iteration: 1, prompts, evaluate, evaluate_rendered: 0, policy_in: CheckpointId(1) }
    }

    fn given(done: u64) -> Given {
        let answered = Answered { generated: done, scored: done };
        let sizes = Sizes::of(&config(), false);
        Given { scorer: ScorerId(3), initial: CheckpointId(1), answered, sizes }
    }

    #[test]
    fn keys_are_unique_and_every_ordinal_is_covered_once_by_each_work() {
        let units = iteration(&config(), &drawn(37, 5), &given(0)).unwrap();
        let keys: BTreeSet<_> = units.iter().map(|unit| unit.key.clone()).collect();
        assert_eq!(keys.len(), units.len());
        for (stage, work) in [
            (Stage::Prompts, WorkKind::Render),
            (Stage::Generate, WorkKind::Generate),
            (Stage::Label, WorkKind::Score),
            (Stage::Train, WorkKind::Logprobs),
        ] {
            let mut at = 0;
            for unit in units.iter().filter(|unit| (unit.stage, unit.work) == (stage, work)) {
                let plan = unit.plan.unwrap();
                assert_eq!(plan.from, at, "{}", unit.key);
                at = plan.to;
            }
            assert_eq!(at, 37, "{stage} {work}");
        }
    }

    #[test]
    fn a_score_unit_covers_what_a_generate_unit_covers() {
        let units = iteration(&config(), &drawn(37, 0), &given(0)).unwrap();
        let ranges = |work| -> Vec<_> {
            units
                .iter()
                .filter(|unit| unit.work == work && unit.stage <= Stage::Label)
                .filter_map(|unit| unit.plan.map(|plan| (plan.from, plan.to)))
                .collect()
        };
        assert_eq!(ranges(WorkKind::Generate), ranges(WorkKind::Score));
        // 8 responses of 64 tokens are 512 a prompt: 4096 hold 8 prompts, two batches of 4.
        assert_eq!(ranges(WorkKind::Generate)[0], (0, 8));
    }

    #[test]
    fn the_initial_policy_answers_only_what_it_has_not_answered() {
        let units = iteration(&config(), &drawn(4, 9), &given(9)).unwrap();
        assert!(units.iter().all(|unit| !unit.lane.starts_with("initial")));
        let units = iteration(&config(), &drawn(4, 9), &given(8)).unwrap();
        let initial: Vec<_> =
            units.iter().filter(|unit| unit.lane == initial_lane(&config())).collect();
        assert_eq!(initial.len(), 2);
        assert!(initial.iter().all(|unit| unit.plan.is_some_and(|p| (p.from, p.to) == (8, 9))));
    }
}
