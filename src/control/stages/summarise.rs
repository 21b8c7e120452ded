//! Summarise: the new policy beside the initial one, per temperature; it ends the iteration.
//!
//! In: answered, scored evaluation prompts. Out: evaluation rows with intervals. Deterministic: the
//! bootstrap is seeded by the run. May not enter: statistics (`rlhfd_domain::evaluation`).

use rlhfd_domain::evaluation::compare;
use rlhfd_protocol::worker::Summary;
use rlhfd_store::{NewEvaluation, PairedAnswers, Reader, StoreError};

use crate::actors::stage::{Perform, StageContext, StageError, finish};
use crate::handles::now_ms;

/// The divergence is estimated from answers at this temperature only.
const KL_TEMPERATURE: f64 = 1.0;

/// Writes the iteration's evaluations.
pub async fn perform(ctx: &StageContext, work: &Perform) -> Result<(), StageError> {
    let unit = &work.unit;
    let config = ctx.config_of(unit).await?;
    let (Some(number), Some(scorer)) = (unit.iteration, unit.scorer) else {
        return Err(StageError::Input(format!(
            "the unit {} names no iteration or scorer",
            unit.key
        )));
    };
    let (id, lane) = (unit.run, rlhfd_domain::checkpoint::iteration_name(number));
    let initial_lane = super::plan::initial_lane(&config);
    let temperatures = config.evaluate.temperatures.clone();
    let samples = config.evaluate.bootstrap_samples;
    let rows = ctx
        .store
        .read(move |reader| {
            let lanes = Lanes { policy: &lane, initial: &initial_lane };
            evaluate(reader, id, number, &lanes, scorer, &temperatures, samples)
        })
        .await?;
    let finish = finish(unit, work.attempt, &Summary::default());
    ctx.write_patiently(move |s| s.finish_summarise(&finish, &rows, now_ms())).await?;
    Ok(())
}

struct Lanes<'a> {
    policy: &'a str,
    initial: &'a str,
}

/// A row of the new policy and one of the initial policy itself, per temperature. The iteration's own
/// policy comes first.
fn evaluate(
    reader: &Reader,
    run: rlhfd_domain::RunId,
    number: u32,
    lanes: &Lanes<'_>,
    scorer: rlhfd_domain::ScorerId,
    temperatures: &[f64],
    samples: u32,
) -> Result<Vec<NewEvaluation>, StoreError> {
    let iteration = reader.iteration(run, number)?;
    let run = reader.run(run)?;
    let Some(policy) = iteration.policy_out else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for (lane, number, policy) in [(lanes.policy, number, policy), (lanes.initial, 0, run.initial)]
    {
        for temperature in temperatures {
            let prompts = iteration.evaluate;
            let answers = PairedAnswers {
                run: run.id,
                lane,
                baseline_lane: lanes.initial,
                scorer,
                temperature: *temperature,
                prompts,
            };
            let scores = reader.paired_scores(&answers)?;
            let comparison = compare(&scores, samples, run.seed);
            let shape = reader.lane_shape(run.id, lane, *temperature, prompts)?;
            let (Some(comparison), Some((response_tokens_mean, truncated_share))) =
                (comparison, shape)
            else {
                continue;
            };
            let at_one = (*temperature - KL_TEMPERATURE).abs() < f64::EPSILON;
            let kl_k3 = match (at_one, number) {
                (true, 1..) => reader.kl_k3(run.id, lane, run.reference, prompts)?,
                _ => None,
            };
            rows.push(NewEvaluation {
                iteration: number,
                policy,
                baseline: run.initial,
                scorer,
                temperature: *temperature,
                comparison,
                response_tokens_mean,
                truncated_share,
                kl_k3,
            });
        }
    }
    Ok(rows)
}
