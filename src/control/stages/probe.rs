//! Probe: a few conversations with each model of the run, before anything is generated or trained.
//!
//! In: the run's models. Out: the run's `probed_key`, or a pause with what was found. May not enter:
//! which conversations (the worker has them).

use rlhfd_protocol::worker::{ScorePosition, Work};
use rlhfd_store::UnitRow;

use crate::actors::stage::{Conclude, ItemKeys, Prepared, StageContext, StageError, finish};
use crate::handles::now_ms;

/// Tokens that each policy writes in the probe.
const NEW_TOKENS: u32 = 8;

/// All models of the run, to be loaded one after the other.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let id = unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let mut policies = vec![ctx.model(run.head).await?];
    if run.reference != run.head {
        policies.push(ctx.model(run.reference).await?);
    }
    let mut scorers = Vec::new();
    if let Some(scorer) = unit.scorer {
        let position = score_position(&*ctx.config_of(unit).await?);
        scorers.push((super::score::scorer(ctx, scorer).await?, position));
    }
    Ok(Prepared {
        work: Work::Probe { policies, scorers, max_new_tokens: NEW_TOKENS },
        load: Some(Vec::new()),
        items: Vec::new(),
        keys: ItemKeys::None,
    })
}

/// Findings refuse the models: the run pauses with them.
pub async fn conclude(ctx: &StageContext, done: &Conclude) -> Result<(), StageError> {
    if !done.summary.findings.is_empty() {
        return Err(StageError::Input(done.summary.findings.join("; ")));
    }
    let finish = finish(&done.unit, done.attempt, &done.summary);
    let key = probed_key(&done.unit);
    ctx.write_patiently(move |s| s.finish_probe(&finish, &key, now_ms())).await?;
    Ok(())
}

/// The sum of models and settings that a probe unit covers, as its row keeps it.
fn probed_key(unit: &UnitRow) -> String {
    let detail: Option<serde_json::Value> =
        unit.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
    let kept = detail.as_ref().and_then(|detail| detail["probed_key"].as_str());
    let of_key = || unit.key.rsplit('/').next().unwrap_or_default();
    kept.unwrap_or_else(of_key).to_owned()
}

/// Where the scorer's score is read.
#[must_use]
pub fn score_position(config: &rlhfd_config::CheckedConfig) -> ScorePosition {
    match config.label.scorers.first().map(|scorer| scorer.score_position) {
        Some(rlhfd_config::ScorePosition::Last) => ScorePosition::Last,
        Some(rlhfd_config::ScorePosition::Transformers) | None => ScorePosition::Transformers,
    }
}
