//! Render: prompts to token ids, with the template of the run's initial policy.
//!
//! In: prompts of a draw. Out: ids, or the reason why a prompt is set aside. Every policy of a run
//! descends from the initial one and has its tokenizer, so that ids are made once a run. May not
//! enter: templates.

use rlhfd_protocol::frame;
use rlhfd_protocol::worker::{Item, ItemResult, Message, Work};
use rlhfd_store::{Outcome, Rendered, UnitRow};

use crate::actors::stage::{
    Answer, Conclude, ItemKeys, Prepared, StageContext, StageError, by_item, finish, only,
    reason_word, unexpected,
};
use crate::handles::now_ms;

/// The prompts of the unit that have no ids yet.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let (id, run) = (unit.id, unit.run);
    let run = ctx.store.read(move |r| r.run(run)).await?;
    let rows = ctx.store.read(move |r| r.render_items(id)).await?;
    let config = ctx.config_of(unit).await?;
    let mut items = Vec::with_capacity(rows.len());
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push((row.ordinal, row.prompt));
        items.push((Item::Prompt { messages: messages(&row.messages)? }, Vec::new()));
    }
    Ok(Prepared {
        work: Work::Render {
            policy: ctx.model(run.initial).await?,
            prompt_tokens_max: config.prompts.prompt_tokens_max,
        },
        // Only the tokenizer is wanted: whatever is loaded may stay.
        load: None,
        items,
        keys: ItemKeys::Prompts(keys),
    })
}

/// A prompt's messages as the store keeps them.
pub fn messages(json: &str) -> Result<Vec<Message>, StageError> {
    serde_json::from_str(json)
        .map_err(|error| StageError::Input(format!("a prompt's messages cannot be read: {error}")))
}

/// Ids or reasons, one a prompt.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let ItemKeys::Prompts(keys) = done.keys else {
        return Err(StageError::Answers("a render unit's items are prompts".into()));
    };
    let mut rows = Vec::with_capacity(keys.len());
    for ((ordinal, prompt), answers) in keys.iter().zip(by_item(done.answers, keys.len())?) {
        let outcome = outcome(only(answers)?)?;
        rows.push(Rendered { ordinal: *ordinal, prompt: *prompt, outcome });
    }
    ctx.write_patiently(move |s| s.finish_render(&finish, &rows, now_ms())).await?;
    Ok(())
}

fn outcome(answer: Answer) -> Result<Outcome<Vec<u32>>, StageError> {
    match &answer.result {
        ItemResult::Rendered { tokens } => {
            let ids = frame::ids_from_bytes(&answer.payload)
                .map_err(|error| StageError::Answers(error.to_string()))?;
            if ids.len() != *tokens as usize || ids.is_empty() {
                return Err(StageError::Answers(format!(
                    "item {} has {} ids and says {tokens}",
                    answer.index,
                    ids.len()
                )));
            }
            Ok(Outcome::Done(ids))
        }
        ItemResult::Refused { reason, message } => {
            Ok(Outcome::SetAside(reason_word(*reason).to_owned(), message.clone()))
        }
        _ => Err(unexpected(&answer)),
    }
}
