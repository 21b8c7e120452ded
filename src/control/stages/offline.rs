//! Offline pairs: preferences that people brought (D_off) to token ids, and the reference's log-probs
//! of both sides; each once a run, kept, never made twice.
//!
//! In: pairs of a unit. Out: ids and log-probs, or the reason why a pair is set aside. Ids are made with
//! the template of the run's initial policy, as those of prompts are. May not enter: templates,
//! training.

use rlhfd_domain::limits::PAIR_TOKENS_MAX;
use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Item, ItemResult, Work};
use rlhfd_store::{Outcome, PairIds, PairLogprobs, RenderedPair, UnitRow};

use super::{generate, logprobs, render};
use crate::actors::stage::{
    Answer, Conclude, ItemKeys, Prepared, StageContext, StageError, by_item, finish, only,
    reason_word, unexpected,
};
use crate::handles::now_ms;

/// Sides of a pair: chosen, then rejected.
const SIDES: usize = 2;

/// The offline preferences of the unit that have no ids yet.
pub async fn prepare_render(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let (row, run) = (unit.clone(), unit.run);
    let run = ctx.store.read(move |r| r.run(run)).await?;
    let rows = ctx.store.read(move |r| r.offline_render_items(&row)).await?;
    let mut items = Vec::with_capacity(rows.len());
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push(row.ordinal);
        let messages = render::messages(&row.messages)?;
        let item = Item::Pair { messages, chosen: row.chosen, rejected: row.rejected };
        items.push((item, Vec::new()));
    }
    Ok(Prepared {
        work: Work::RenderPairs {
            policy: ctx.model(run.initial).await?,
            pair_tokens_max: PAIR_TOKENS_MAX,
        },
        // Only the tokenizer is wanted: whatever is loaded may stay.
        load: None,
        items,
        keys: ItemKeys::Pairs(keys),
    })
}

/// Ids or reasons, one a pair.
pub async fn conclude_render(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let keys = pairs(done.keys)?;
    let mut rows = Vec::with_capacity(keys.len());
    for (ordinal, answers) in keys.iter().zip(by_item(done.answers, keys.len())?) {
        rows.push(RenderedPair { ordinal: *ordinal, outcome: rendered(only(answers)?)? });
    }
    ctx.write_patiently(move |s| s.finish_render_pairs(&finish, &rows, now_ms())).await?;
    Ok(())
}

fn pairs(keys: ItemKeys) -> Result<Vec<u64>, StageError> {
    match keys {
        ItemKeys::Pairs(keys) => Ok(keys),
        _ => Err(StageError::Answers("this unit's items are offline pairs".into())),
    }
}

fn rendered(answer: Answer) -> Result<Outcome<PairIds>, StageError> {
    match &answer.result {
        ItemResult::RenderedPair { prompt_tokens, chosen_tokens, rejected_tokens } => {
            let ids = frame::ids_from_bytes(&answer.payload)
                .map_err(|error| StageError::Answers(error.to_string()))?;
            let lengths = [*prompt_tokens, *chosen_tokens, *rejected_tokens].map(|n| n as usize);
            if lengths.contains(&0) || lengths.iter().sum::<usize>() != ids.len() {
                return Err(StageError::Answers(format!(
                    "pair {} has {} ids and says {lengths:?}",
                    answer.index,
                    ids.len()
                )));
            }
            let (prompt, responses) = ids.split_at(lengths[0]);
            let (chosen, rejected) = responses.split_at(lengths[1]);
            Ok(Outcome::Done(PairIds {
                prompt: prompt.to_vec(),
                chosen: chosen.to_vec(),
                rejected: rejected.to_vec(),
            }))
        }
        ItemResult::Refused { reason, message } => {
            Ok(Outcome::SetAside(reason_word(*reason).to_owned(), message.clone()))
        }
        _ => Err(unexpected(&answer)),
    }
}

/// Both sides of the unit's pairs without log-probs of the reference.
pub async fn prepare_logprobs(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let row = unit.clone();
    let rows = ctx.store.read(move |r| r.offline_logprob_items(&row)).await?;
    let model = ctx.reference_of(unit).await?;
    let mut items = Vec::with_capacity(SIDES * rows.len());
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push(row.ordinal);
        let prompt_tokens = u32::try_from(row.ids.prompt.len()).unwrap_or(0);
        for side in [&row.ids.chosen, &row.ids.rejected] {
            let mut payload = frame::ids_to_bytes(&row.ids.prompt);
            payload.extend(frame::ids_to_bytes(side));
            items.push((Item::ResponseIds { prompt_tokens }, payload));
        }
    }
    let batch_items = generate::batch_items(unit).saturating_mul(SIDES as u32);
    let work = Work::Logprobs { model: model.clone(), batch_items };
    Ok(Prepared { work, load: Some(vec![model]), items, keys: ItemKeys::Pairs(keys) })
}

/// Log-probs or reasons, one a pair.
pub async fn conclude_logprobs(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let keys = pairs(done.keys)?;
    let mut sides = by_item(done.answers, SIDES * keys.len())?.into_iter();
    let mut rows = Vec::with_capacity(keys.len());
    for ordinal in keys {
        let (Some(chosen), Some(rejected)) = (sides.next(), sides.next()) else {
            return Err(StageError::Answers(format!("pair {ordinal} has no answer")));
        };
        let chosen = logprobs::outcome(only(chosen)?)?;
        let outcome = both(chosen, logprobs::outcome(only(rejected)?)?);
        rows.push(PairLogprobs { ordinal, outcome });
    }
    ctx.write_patiently(move |s| s.finish_logprobs_pairs(&finish, &rows, now_ms())).await?;
    Ok(())
}

type Side = Outcome<(Vec<f32>, f64)>;

/// A pair needs both sides: the first that was refused speaks for it.
fn both(chosen: Side, rejected: Side) -> Outcome<[(Vec<f32>, f64); SIDES]> {
    match (chosen, rejected) {
        (Outcome::Done(chosen), Outcome::Done(rejected)) => Outcome::Done([chosen, rejected]),
        (Outcome::SetAside(reason, message), _) | (_, Outcome::SetAside(reason, message)) => {
            Outcome::SetAside(reason, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::worker::Reason;

    use super::*;

    fn answer(lengths: [u32; 3], ids: &[u32]) -> Answer {
        let [prompt_tokens, chosen_tokens, rejected_tokens] = lengths;
        let result = ItemResult::RenderedPair { prompt_tokens, chosen_tokens, rejected_tokens };
        Answer { index: 0, result, payload: frame::ids_to_bytes(ids) }
    }

    #[test]
    fn ids_are_cut_where_the_lengths_say_and_nowhere_else() {
        let Ok(Outcome::Done(ids)) = rendered(answer([1, 2, 1], &[7, 8, 9, 5])) else {
            panic!("the pair is whole");
        };
        assert_eq!((ids.prompt, ids.chosen, ids.rejected), (vec![7], vec![8, 9], vec![5]));
        for wrong in [[1, 2, 2], [2, 2, 0], [0, 3, 1]] {
            let error = rendered(answer(wrong, &[7, 8, 9, 5]));
            assert!(matches!(error, Err(StageError::Answers(_))), "{wrong:?}");
        }
        let message = "too long".to_owned();
        let result = ItemResult::Refused { reason: Reason::SameIds, message };
        let refused = rendered(Answer { index: 0, result, payload: Vec::new() }).unwrap();
        assert_eq!(refused, Outcome::SetAside("same_ids".into(), "too long".into()));
    }

    #[test]
    fn a_pair_with_one_refused_side_has_no_log_probs() {
        let done = || Outcome::Done((vec![-1.0], -1.0));
        let refused = || Outcome::SetAside("non_finite".into(), String::new());
        assert!(matches!(both(done(), done()), Outcome::Done(_)));
        assert!(matches!(both(done(), refused()), Outcome::SetAside(..)));
        assert!(matches!(both(refused(), done()), Outcome::SetAside(..)));
    }
}
