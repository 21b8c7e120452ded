//! Summarise: the new policy beside the initial one and the one before, per scorer and temperature;
//! the gate's verdict; it ends the iteration.
//!
//! In: answered, scored evaluation prompts. Out: evaluation rows with intervals, where the head goes.
//! Deterministic: the bootstrap is seeded by the run. May not enter: statistics
//! (`rlhfd_domain::evaluation`), the gate's figures (`stages::gate`).

use rlhfd_config::{CheckedConfig, GateFailure, ScorerKind, ScorerRole};
use rlhfd_domain::checkpoint::iteration_name;
use rlhfd_domain::evaluation::compare;
use rlhfd_domain::gate::{OnFail, Verdict};
use rlhfd_domain::{CheckpointId, RunId, ScorerId};
use rlhfd_protocol::worker::Summary;
use rlhfd_store::{
    Iteration, NewEvaluation, NewSummary, PairedAnswers, Reader, Run, Scorer, StoreError,
};

use super::gate::Evidence;
use crate::actors::stage::{Perform, StageContext, StageError, finish};
use crate::handles::now_ms;

/// The divergence is estimated from answers at this temperature only.
const KL_TEMPERATURE: f64 = 1.0;

/// Writes the iteration's evaluations and its verdict.
pub async fn perform(ctx: &StageContext, work: &Perform) -> Result<(), StageError> {
    let unit = &work.unit;
    let config = ctx.config_of(unit).await?;
    let Some(number) = unit.iteration else {
        return Err(StageError::Input(format!("the unit {} names no iteration", unit.key)));
    };
    let id = unit.run;
    let summary = ctx.store.read(move |reader| summary(reader, id, number, &config)).await?;
    let finish = finish(unit, work.attempt, &Summary::default());
    ctx.write_patiently(move |s| s.finish_summarise(&finish, &summary, now_ms())).await?;
    Ok(())
}

/// What all rows of an iteration have in common.
struct Evaluated<'a> {
    reader: &'a Reader,
    run: Run,
    iteration: Iteration,
    scorers: Vec<Scorer>,
    config: &'a CheckedConfig,
}

/// A policy and its answers.
pub struct Side {
    /// 0: the initial policy.
    iteration: u32,
    policy: CheckpointId,
    /// Where they stand.
    pub lane: String,
}

/// The policy that an iteration begins with, where it is not the initial one and answered with the
/// same settings.
///
/// Errors: the store's.
pub fn previous(
    reader: &Reader,
    config: &CheckedConfig,
    run: RunId,
    policy_in: CheckpointId,
) -> Result<Option<Side>, StoreError> {
    let policy = reader.checkpoint(policy_in)?;
    let Some(iteration) = policy.iteration else { return Ok(None) };
    let frozen = reader.iteration(run, iteration)?.config;
    let lane = super::plan::initial_lane(config);
    let same =
        config.with_frozen(&frozen).is_ok_and(|config| super::plan::initial_lane(&config) == lane);
    let lane = iteration_name(iteration);
    Ok(same.then_some(Side { iteration, policy: policy.id, lane }))
}

fn summary(
    reader: &Reader,
    run: RunId,
    number: u32,
    config: &CheckedConfig,
) -> Result<NewSummary, StoreError> {
    let known = reader.iteration_scorers(run, number)?;
    let of = Evaluated {
        reader,
        run: reader.run(run)?,
        iteration: reader.iteration(run, number)?,
        scorers: super::pair::in_order(config, &known),
        config,
    };
    let evaluations = of.rows()?;
    let verdict = of.verdict(&evaluations)?;
    Ok(NewSummary {
        evaluations,
        verdict,
        on_fail: match config.gate.on_fail {
            GateFailure::KeepHead => OnFail::KeepHead,
            GateFailure::Pause => OnFail::Pause,
        },
        ranked_by: of.first(),
    })
}

impl Evaluated<'_> {
    /// Rows of the new policy, then of the initial policy itself, then of the new one beside the one
    /// before, per scorer and temperature. The first row stands for the iteration: its own policy's
    /// beside the initial one, by the first scorer that pairing goes by.
    fn rows(&self) -> Result<Vec<NewEvaluation>, StoreError> {
        let mut rows = Vec::new();
        let Some(policy) = self.iteration.policy_out else { return Ok(rows) };
        let number = self.iteration.iteration;
        let trained = Side { iteration: number, policy, lane: iteration_name(number) };
        let lane = super::plan::initial_lane(self.config);
        let initial = Side { iteration: 0, policy: self.run.initial, lane };
        self.compared(&trained, &initial, &mut rows)?;
        self.compared(&initial, &initial, &mut rows)?;
        let (run, begun_with) = (self.run.id, self.iteration.policy_in);
        if let Some(previous) = previous(self.reader, self.config, run, begun_with)? {
            self.compared(&trained, &previous, &mut rows)?;
        }
        Ok(rows)
    }

    fn compared(
        &self,
        policy: &Side,
        baseline: &Side,
        rows: &mut Vec<NewEvaluation>,
    ) -> Result<(), StoreError> {
        let prompts = self.iteration.evaluate;
        let kl_k3 = self.kl_k3(policy)?;
        for scorer in &self.scorers {
            for temperature in &self.config.evaluate.temperatures {
                let answers = PairedAnswers {
                    run: self.run.id,
                    lane: &policy.lane,
                    baseline_lane: &baseline.lane,
                    scorer: scorer.id,
                    temperature: *temperature,
                    prompts,
                };
                let scores = if scorer.kind == ScorerKind::Preference.label() {
                    self.reader.paired_preferences(&answers)?
                } else {
                    self.reader.paired_scores(&answers)?
                };
                let samples = self.config.evaluate.bootstrap_samples;
                let comparison = compare(&scores, samples, self.run.seed);
                let shape =
                    self.reader.lane_shape(self.run.id, &policy.lane, *temperature, prompts)?;
                let (Some(comparison), Some(shape)) = (comparison, shape) else { continue };
                rows.push(NewEvaluation {
                    iteration: policy.iteration,
                    policy: policy.policy,
                    baseline: baseline.policy,
                    scorer: scorer.id,
                    temperature: *temperature,
                    comparison,
                    shape,
                    kl_k3: kl_k3.filter(|_| at_kl_temperature(*temperature)),
                });
            }
        }
        Ok(())
    }

    fn kl_k3(&self, policy: &Side) -> Result<Option<f64>, StoreError> {
        let temperatures = &self.config.evaluate.temperatures;
        let measured = temperatures.iter().any(|temperature| at_kl_temperature(*temperature));
        if policy.iteration == 0 || !measured {
            return Ok(None);
        }
        let (reference, prompts) = (self.iteration.reference, self.iteration.evaluate);
        self.reader.kl_k3(self.run.id, &policy.lane, reference, prompts)
    }

    /// Who stands for the iteration, at which temperature.
    fn first(&self) -> Option<(ScorerId, f64)> {
        let scorer = self.scorers.first()?.id;
        Some((scorer, *self.config.evaluate.temperatures.first()?))
    }

    fn verdict(&self, rows: &[NewEvaluation]) -> Result<Option<Verdict>, StoreError> {
        let train = format!("{}/train", self.iteration.iteration);
        let steps = match self.reader.unit_by_key(self.run.id, &train)? {
            Some(unit) => self.reader.training_steps(unit.id)?,
            None => Vec::new(),
        };
        let is_canary = |scorer: &&Scorer| {
            let used = self.config.label.scorer(&scorer.name);
            used.is_some_and(|used| used.role == ScorerRole::Canary)
        };
        let canaries: Vec<ScorerId> =
            self.scorers.iter().filter(is_canary).map(|scorer| scorer.id).collect();
        let evidence = Evidence {
            gate: &self.config.gate,
            iteration: &self.iteration,
            initial: self.run.initial,
            rows,
            first: self.first(),
            canaries: &canaries,
            steps: &steps,
            beta: self.config.train.settings.beta,
        };
        Ok(evidence.verdict())
    }
}

fn at_kl_temperature(temperature: f64) -> bool {
    (temperature - KL_TEMPERATURE).abs() < f64::EPSILON
}
