//! Log-probs: those of the iteration's reference, of responses that have none under it yet; kept, never
//! computed twice. Where the reference moved, these are earlier iterations' responses too.
//!
//! In: responses of a unit. Out: one log-prob a token. May not enter: training.

use rlhfd_domain::Stage;
use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Item, ItemResult, Work};
use rlhfd_store::{Logprobs, Outcome, UnitRow};

use crate::actors::stage::{
    Answer, Conclude, ItemKeys, Prepared, StageContext, StageError, by_item, finish, only,
    reason_word, unexpected,
};
use crate::handles::now_ms;

/// The responses of the unit without log-probs of the reference.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let id = unit.id;
    let rows = ctx.store.read(move |r| r.logprob_items(id)).await?;
    let config = ctx.config_of(unit).await?;
    let model = ctx.reference_of(unit).await?;
    let per_prompt: u32 = match unit.stage {
        Stage::Evaluate => super::generate::responses_per_prompt(&config, unit.stage),
        _ => config.pair.responses_max(config.generate.responses_per_prompt()),
    };
    let mut items = Vec::with_capacity(rows.len());
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push(row.response);
        let item =
            Item::ResponseIds { prompt_tokens: u32::try_from(row.prompt_ids.len()).unwrap_or(0) };
        let mut payload = frame::ids_to_bytes(&row.prompt_ids);
        payload.extend(frame::ids_to_bytes(&row.response_ids));
        items.push((item, payload));
    }
    let batch_items = super::generate::batch_items(unit).saturating_mul(per_prompt.max(1));
    let work = Work::Logprobs { model: model.clone(), batch_items };
    Ok(Prepared { work, load: Some(vec![model]), items, keys: ItemKeys::Responses(keys) })
}

/// Log-probs, or reasons.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let ItemKeys::Responses(keys) = done.keys else {
        return Err(StageError::Answers("a logprobs unit's items are responses".into()));
    };
    let mut rows = Vec::with_capacity(keys.len());
    for (response, answers) in keys.iter().zip(by_item(done.answers, keys.len())?) {
        rows.push(Logprobs { response: *response, outcome: outcome(only(answers)?)? });
    }
    ctx.write_patiently(move |s| s.finish_logprobs(&finish, &rows, now_ms())).await?;
    Ok(())
}

/// One response's log-probs, or why it has none.
pub(super) fn outcome(answer: Answer) -> Result<Outcome<(Vec<f32>, f64)>, StageError> {
    match &answer.result {
        ItemResult::Logprobs { logprob, tokens } => {
            let logprobs = frame::floats_from_bytes(&answer.payload)
                .map_err(|error| StageError::Answers(error.to_string()))?;
            if logprobs.len() != *tokens as usize {
                return Err(StageError::Answers(format!(
                    "item {} has {} log-probs and says {tokens}",
                    answer.index,
                    logprobs.len()
                )));
            }
            if !logprob.is_finite() || logprobs.iter().any(|value| !value.is_finite()) {
                let message = format!("the reference's log-prob {logprob} is not finite");
                return Ok(Outcome::SetAside("non_finite".to_owned(), message));
            }
            Ok(Outcome::Done((logprobs, *logprob)))
        }
        ItemResult::Refused { reason, message } => {
            Ok(Outcome::SetAside(reason_word(*reason).to_owned(), message.clone()))
        }
        _ => Err(unexpected(&answer)),
    }
}
