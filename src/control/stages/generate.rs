//! Generate: prompts' ids to responses, in the main flow and in evaluation's lanes.
//!
//! In: rendered prompts of a unit. Out: n responses a prompt over the arms of the unit's policy, with ids
//! and log-probs.
//! May not enter: sampling.

use std::collections::BTreeSet;

use rlhfd_config::CheckedConfig;
use rlhfd_domain::Stage;
use rlhfd_domain::response::Finish as Ending;
use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Arm, Finish, Item, ItemResult, Purpose, Work};
use rlhfd_store::{Generated, NewResponse, Outcome, UnitRow};

use crate::actors::stage::{
    Answer, Conclude, ItemKeys, Prepared, StageContext, StageError, by_item, finish, reason_word,
    unexpected,
};
use crate::handles::now_ms;

/// The arms of a unit: those of its iteration that sample from its policy, or evaluation's, one a
/// temperature.
async fn arms_of(
    ctx: &StageContext,
    config: &CheckedConfig,
    unit: &UnitRow,
) -> Result<Vec<Arm>, StageError> {
    if unit.stage == Stage::Evaluate {
        return Ok(evaluation_arms(config));
    }
    let (run, iteration) = (unit.run, unit.iteration.unwrap_or_default());
    let rows = ctx.store.read(move |r| r.iteration_arms(run, iteration)).await?;
    let own = rows.into_iter().filter(|arm| unit.policy == Some(arm.policy));
    Ok(own.map(arm).collect())
}

fn arm(row: rlhfd_store::Arm) -> Arm {
    Arm {
        name: row.name,
        temperature: row.temperature,
        top_p: row.top_p,
        top_k: row.top_k,
        n: row.n,
        first_sample: row.first_sample,
    }
}

/// The ways to sample of evaluation.
#[must_use]
pub fn evaluation_arms(config: &CheckedConfig) -> Vec<Arm> {
    let settings = super::sums::evaluation_settings(config);
    let evaluate = &config.evaluate;
    let mut first_sample = 0;
    let arm = |temperature: &f64| {
        let arm = Arm {
            name: format!("evaluate-{settings}-t{temperature:?}"),
            temperature: *temperature,
            top_p: 1.0,
            top_k: 0,
            // Greedy writes the same each time.
            n: if *temperature == 0.0 { 1 } else { evaluate.n },
            first_sample,
        };
        first_sample += arm.n;
        arm
    };
    evaluate.temperatures.iter().map(arm).collect()
}

/// Responses that each prompt gets in a stage, over all arms.
#[must_use]
pub fn responses_per_prompt(config: &CheckedConfig, stage: Stage) -> u32 {
    match stage {
        Stage::Evaluate => evaluation_arms(config).iter().map(|arm| arm.n).sum(),
        _ => config.generate.responses_per_prompt(),
    }
}

/// The rendered prompts of the unit.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let (id, run) = (unit.id, unit.run);
    let run = ctx.store.read(move |r| r.run(run)).await?;
    let rows = ctx.store.read(move |r| r.generate_items(id)).await?;
    let config = ctx.config_of(unit).await?;
    let policy = ctx.model(ctx.policy_of(unit).await?).await?;
    let evaluates = unit.stage == Stage::Evaluate;
    let mut items = Vec::with_capacity(rows.len());
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push((row.ordinal, row.prompt));
        let item = Item::PromptIds { occurrence: row.occurrence };
        items.push((item, frame::ids_to_bytes(&row.ids)));
    }
    let work = Work::Generate {
        policy: policy.clone(),
        run_seed: run.seed,
        purpose: if evaluates { Purpose::Evaluate } else { Purpose::Generate },
        // Policies are compared on common random numbers, whatever the iteration.
        iteration: if evaluates { 0 } else { unit.iteration.unwrap_or(0) },
        arms: arms_of(ctx, &config, unit).await?,
        max_new_tokens: if evaluates {
            config.evaluate.max_new_tokens
        } else {
            config.generate.max_new_tokens
        },
        batch_items: batch_items(unit),
    };
    Ok(Prepared { work, load: Some(vec![policy]), items, keys: ItemKeys::Prompts(keys) })
}

/// The batch plan of a unit's row.
#[must_use]
pub fn batch_items(unit: &UnitRow) -> u32 {
    unit.plan.map_or(1, |plan| u32::try_from(plan.batch_items).unwrap_or(u32::MAX)).max(1)
}

/// Responses, or the reason why a prompt has none.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let config = ctx.config_of(&done.unit).await?;
    let arms = arms_of(ctx, &config, &done.unit).await?;
    let ItemKeys::Prompts(keys) = done.keys else {
        return Err(StageError::Answers("a generate unit's items are prompts".into()));
    };
    let mut rows = Vec::with_capacity(keys.len());
    for ((ordinal, prompt), answers) in keys.iter().zip(by_item(done.answers, keys.len())?) {
        let outcome = outcome(answers, &arms)?;
        rows.push(Generated { ordinal: *ordinal, prompt: *prompt, outcome });
    }
    ctx.write_patiently(move |s| s.finish_generate(&finish, &rows, now_ms())).await?;
    Ok(())
}

fn outcome(answers: Vec<Answer>, arms: &[Arm]) -> Result<Outcome<Vec<NewResponse>>, StageError> {
    if let [Answer { result: ItemResult::Refused { reason, message }, .. }] = answers.as_slice() {
        return Ok(Outcome::SetAside(reason_word(*reason).to_owned(), message.clone()));
    }
    let wanted = || arms.iter().flat_map(|arm| arm.first_sample..arm.first_sample + arm.n);
    let mut samples = BTreeSet::new();
    let mut responses = Vec::with_capacity(answers.len());
    for answer in answers {
        let response = response(answer, arms)?;
        samples.insert(response.sample);
        responses.push(response);
    }
    let whole = samples.len() == responses.len() && samples.iter().copied().eq(wanted());
    if !whole {
        return Err(StageError::Answers(format!(
            "a prompt has {} responses where the samples {:?} were asked",
            responses.len(),
            wanted().collect::<Vec<_>>()
        )));
    }
    responses.sort_by_key(|response| response.sample);
    Ok(Outcome::Done(responses))
}

fn response(answer: Answer, arms: &[Arm]) -> Result<NewResponse, StageError> {
    let ItemResult::Response { arm, sample, finish, tokens, logprob, text } = &answer.result else {
        return Err(unexpected(&answer));
    };
    let arm = arms
        .get(*arm as usize)
        .ok_or_else(|| StageError::Answers(format!("arm {arm} was never asked for")))?;
    let count = *tokens as usize;
    let misfit = |_| StageError::Answers(format!("item {}: ids and log-probs", answer.index));
    let ids_bytes = count * 4;
    if answer.payload.len() != 2 * ids_bytes || !logprob.is_finite() {
        return Err(StageError::Answers(format!(
            "item {} sample {sample}: {} bytes for {tokens} tokens, log-prob {logprob}",
            answer.index,
            answer.payload.len()
        )));
    }
    let (ids, logprobs) = answer.payload.split_at(ids_bytes);
    Ok(NewResponse {
        arm: arm.name.clone(),
        temperature: arm.temperature,
        sample: *sample,
        finish: match finish {
            Finish::Stop => Ending::Stop,
            Finish::Length => Ending::Length,
        },
        ids: frame::ids_from_bytes(ids).map_err(misfit)?,
        logprobs: frame::floats_from_bytes(logprobs).map_err(misfit)?,
        logprob: *logprob,
        text: text.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(n: u32) -> Arm {
        Arm { name: "a".into(), temperature: 1.0, top_p: 1.0, top_k: 0, n, first_sample: 0 }
    }

    fn answer(sample: u32, payload: usize) -> Answer {
        let text = "x".into();
        let result = ItemResult::Response {
            arm: 0,
            sample,
            finish: Finish::Stop,
            tokens: 1,
            logprob: -1.0,
            text,
        };
        Answer { index: 0, result, payload: vec![0; payload] }
    }

    #[test]
    fn every_sample_once_and_whole_payloads_are_taken_in_any_order() {
        let Ok(Outcome::Done(rows)) = outcome(vec![answer(1, 8), answer(0, 8)], &[arm(2)]) else {
            panic!("both samples are there");
        };
        assert_eq!(rows.iter().map(|row| row.sample).collect::<Vec<_>>(), [0, 1]);
        for wrong in [
            vec![answer(0, 8)],
            vec![answer(0, 8), answer(0, 8)],
            vec![answer(0, 8), answer(2, 8)],
            vec![answer(0, 8), answer(1, 7)],
        ] {
            assert!(matches!(outcome(wrong, &[arm(2)]), Err(StageError::Answers(_))));
        }
        // Another policy writes the samples between those of these two arms.
        let own = [arm(1), Arm { first_sample: 3, ..arm(1) }];
        assert!(outcome(vec![answer(3, 8), answer(0, 8)], &own).is_ok());
        let others = outcome(vec![answer(1, 8), answer(0, 8)], &own);
        assert!(matches!(others, Err(StageError::Answers(_))));
    }
}
