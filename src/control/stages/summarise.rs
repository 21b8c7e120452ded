//! Summarise: the new policy beside the initial one, per scorer and temperature; it ends the
//! iteration.
//!
//! In: answered, scored evaluation prompts. Out: evaluation rows with intervals. Deterministic: the
//! bootstrap is seeded by the run. May not enter: statistics (`rlhfd_domain::evaluation`).

use rlhfd_config::CheckedConfig;
use rlhfd_domain::evaluation::compare;
use rlhfd_domain::{RunId, ScorerId};
use rlhfd_protocol::worker::Summary;
use rlhfd_store::{Iteration, NewEvaluation, PairedAnswers, Reader, Run, StoreError};

use crate::actors::stage::{Perform, StageContext, StageError, finish};
use crate::handles::now_ms;

/// The divergence is estimated from answers at this temperature only.
const KL_TEMPERATURE: f64 = 1.0;

/// Writes the iteration's evaluations.
pub async fn perform(ctx: &StageContext, work: &Perform) -> Result<(), StageError> {
    let unit = &work.unit;
    let config = ctx.config_of(unit).await?;
    let Some(number) = unit.iteration else {
        return Err(StageError::Input(format!("the unit {} names no iteration", unit.key)));
    };
    let id = unit.run;
    let rows = ctx.store.read(move |reader| evaluate(reader, id, number, &config)).await?;
    let finish = finish(unit, work.attempt, &Summary::default());
    ctx.write_patiently(move |s| s.finish_summarise(&finish, &rows, now_ms())).await?;
    Ok(())
}

/// What all rows of an iteration have in common.
struct Evaluated<'a> {
    reader: &'a Reader,
    run: Run,
    iteration: Iteration,
    scorers: Vec<ScorerId>,
    initial_lane: String,
    config: &'a CheckedConfig,
}

/// Rows of the new policy, then of the initial policy itself, per scorer and temperature. The first
/// row stands for the iteration: its own policy's, by the first scorer that pairing goes by.
fn evaluate(
    reader: &Reader,
    run: RunId,
    number: u32,
    config: &CheckedConfig,
) -> Result<Vec<NewEvaluation>, StoreError> {
    let iteration = reader.iteration(run, number)?;
    let known = reader.iteration_scorers(run, number)?;
    let scorers = super::pair::in_order(config, &known).into_iter().map(|scorer| scorer.id);
    let of = Evaluated {
        reader,
        run: reader.run(run)?,
        iteration,
        scorers: scorers.collect(),
        initial_lane: super::plan::initial_lane(config),
        config,
    };
    let mut rows = Vec::new();
    of.policy(number, &mut rows)?;
    of.policy(0, &mut rows)?;
    Ok(rows)
}

impl Evaluated<'_> {
    /// The rows of iteration `number`'s policy; 0: the initial one, as its own baseline.
    fn policy(&self, number: u32, rows: &mut Vec<NewEvaluation>) -> Result<(), StoreError> {
        let Some(trained) = self.iteration.policy_out else { return Ok(()) };
        let (lane, policy) = match number {
            0 => (self.initial_lane.clone(), self.run.initial),
            number => (rlhfd_domain::checkpoint::iteration_name(number), trained),
        };
        let prompts = self.iteration.evaluate;
        let kl_k3 = self.kl_k3(number, &lane)?;
        for scorer in &self.scorers {
            for temperature in &self.config.evaluate.temperatures {
                let answers = PairedAnswers {
                    run: self.run.id,
                    lane: &lane,
                    baseline_lane: &self.initial_lane,
                    scorer: *scorer,
                    temperature: *temperature,
                    prompts,
                };
                let scores = self.reader.paired_scores(&answers)?;
                let samples = self.config.evaluate.bootstrap_samples;
                let comparison = compare(&scores, samples, self.run.seed);
                let shape = self.reader.lane_shape(self.run.id, &lane, *temperature, prompts)?;
                let (Some(comparison), Some((response_tokens_mean, truncated_share))) =
                    (comparison, shape)
                else {
                    continue;
                };
                rows.push(NewEvaluation {
                    iteration: number,
                    policy,
                    baseline: self.run.initial,
                    scorer: *scorer,
                    temperature: *temperature,
                    comparison,
                    response_tokens_mean,
                    truncated_share,
                    kl_k3: kl_k3.filter(|_| at_kl_temperature(*temperature)),
                });
            }
        }
        Ok(())
    }

    fn kl_k3(&self, number: u32, lane: &str) -> Result<Option<f64>, StoreError> {
        let temperatures = &self.config.evaluate.temperatures;
        if number == 0 || !temperatures.iter().any(|temperature| at_kl_temperature(*temperature)) {
            return Ok(None);
        }
        self.reader.kl_k3(self.run.id, lane, self.run.reference, self.iteration.evaluate)
    }
}

fn at_kl_temperature(temperature: f64) -> bool {
    (temperature - KL_TEMPERATURE).abs() < f64::EPSILON
}
