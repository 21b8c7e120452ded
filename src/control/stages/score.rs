//! Score: responses to scores of a reward model, in the main flow and in evaluation's lanes.
//!
//! In: responses of a unit. Out: one finite score a response, or the reason why it has none. May not
//! enter: templates of the scorer.

use rlhfd_config::CheckedConfig;
use rlhfd_domain::ScorerId;
use rlhfd_domain::label::Score;
use rlhfd_protocol::worker::{Item, ItemResult, Message, ModelRef, ScorePosition, Work};
use rlhfd_store::{Outcome, Scored, UnitRow};

use crate::actors::stage::{
    Answer, Conclude, ItemKeys, Prepared, StageContext, StageError, by_item, finish, only,
    reason_word, unexpected,
};
use crate::handles::now_ms;

/// A scorer as a worker is told of it.
pub async fn scorer(ctx: &StageContext, scorer: ScorerId) -> Result<ModelRef, StageError> {
    let row = ctx.store.read(move |r| r.scorer_by_id(scorer)).await?;
    Ok(ModelRef { path: ctx.places.resolve(&row.path), sha256: row.sha256 })
}

/// A scorer, and where its score is read.
pub async fn scorer_read(
    ctx: &StageContext,
    config: &CheckedConfig,
    scorer: ScorerId,
) -> Result<(ModelRef, ScorePosition), StageError> {
    let row = ctx.store.read(move |r| r.scorer_by_id(scorer)).await?;
    let position = config.label.scorer(&row.name).map(|scorer| scorer.score_position);
    let position = match position {
        Some(rlhfd_config::ScorePosition::Last) => ScorePosition::Last,
        Some(rlhfd_config::ScorePosition::Transformers) | None => ScorePosition::Transformers,
    };
    Ok((ModelRef { path: ctx.places.resolve(&row.path), sha256: row.sha256 }, position))
}

/// The responses of the unit, as whole conversations.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let id = unit.id;
    let rows = ctx.store.read(move |r| r.score_items(id)).await?;
    let config = ctx.config_of(unit).await?;
    let Some(by) = unit.scorer else {
        return Err(StageError::Input(format!("the unit {} names no scorer", unit.key)));
    };
    let (scorer, position) = scorer_read(ctx, &config, by).await?;
    let mut items = Vec::with_capacity(rows.len());
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push(row.response);
        let mut messages = super::render::messages(&row.messages)?;
        messages.push(Message { role: "assistant".into(), content: row.text });
        items.push((Item::Conversation { messages }, Vec::new()));
    }
    let work = Work::Score {
        scorer: scorer.clone(),
        position,
        batch_items: responses_together(&config, unit),
    };
    Ok(Prepared { work, load: Some(vec![scorer]), items, keys: ItemKeys::Responses(keys) })
}

/// The plan counts prompts; a worker is told responses.
pub(super) fn responses_together(config: &CheckedConfig, unit: &UnitRow) -> u32 {
    let per_prompt = super::generate::responses_per_prompt(config, unit.stage);
    super::generate::batch_items(unit).saturating_mul(per_prompt.max(1))
}

/// Scores, or reasons.
pub async fn conclude(ctx: &StageContext, done: Conclude) -> Result<(), StageError> {
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let ItemKeys::Responses(keys) = done.keys else {
        return Err(StageError::Answers("a score unit's items are responses".into()));
    };
    let mut rows = Vec::with_capacity(keys.len());
    for (response, answers) in keys.iter().zip(by_item(done.answers, keys.len())?) {
        rows.push(Scored { response: *response, outcome: outcome(only(answers)?)? });
    }
    ctx.write_patiently(move |s| s.finish_score(&finish, &rows, now_ms())).await?;
    Ok(())
}

fn outcome(answer: Answer) -> Result<Outcome<f64>, StageError> {
    match &answer.result {
        ItemResult::Score { score, .. } => match Score::new(*score) {
            Ok(score) => Ok(Outcome::Done(score.get())),
            Err(error) => Ok(Outcome::SetAside("non_finite".to_owned(), error.to_string())),
        },
        ItemResult::Refused { reason, message } => {
            Ok(Outcome::SetAside(reason_word(*reason).to_owned(), message.clone()))
        }
        _ => Err(unexpected(&answer)),
    }
}
