//! Probe: a few conversations with each model of the run, before anything is generated or trained.
//!
//! In: the run's models. Out: the run's `probed_key`, or a pause with what was found. May not enter:
//! which conversations (the worker has them).

use rlhfd_config::{Reference, ScorerKind};
use rlhfd_domain::ScorerId;
use rlhfd_protocol::worker::Work;
use rlhfd_store::UnitRow;
use serde::{Deserialize, Serialize};

use crate::actors::stage::{Conclude, ItemKeys, Prepared, StageContext, StageError, finish};
use crate::handles::now_ms;

/// Tokens that each policy writes in the probe.
const NEW_TOKENS: u32 = 8;

/// All models of the run, to be loaded one after the other.
pub async fn prepare(ctx: &StageContext, unit: &UnitRow) -> Result<Prepared, StageError> {
    let id = unit.run;
    let run = ctx.store.read(move |r| r.run(id)).await?;
    let config = ctx.config_of(unit).await?;
    let mut policies = vec![ctx.model(run.head).await?];
    // One that moves is a policy of the run, or made of some: the head stands for it.
    if config.train.reference.which == Reference::Fixed && run.reference != run.head {
        policies.push(ctx.model(run.reference).await?);
    }
    let (mut scorers, mut preference_models) = (Vec::new(), Vec::new());
    for scorer in detail(unit).scorers {
        let id = ScorerId(scorer);
        let row = ctx.store.read(move |r| r.scorer_by_id(id)).await?;
        let read = super::score::scorer_read(ctx, &config, id).await?;
        // Two scorers of one model are probed once.
        if row.kind == ScorerKind::Preference.label() {
            if !preference_models.contains(&read.0) {
                preference_models.push(read.0);
            }
        } else if !scorers.contains(&read) {
            scorers.push(read);
        }
    }
    Ok(Prepared {
        work: Work::Probe { policies, scorers, preference_models, max_new_tokens: NEW_TOKENS },
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
    let key = detail(&done.unit).probed_key;
    ctx.write_patiently(move |s| s.finish_probe(&finish, &key, now_ms())).await?;
    Ok(())
}

/// What a probe unit covers, as its row keeps it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Detail {
    /// The sum of models and settings.
    pub probed_key: String,
    /// The rows of all scorers.
    pub scorers: Vec<i64>,
}

fn detail(unit: &UnitRow) -> Detail {
    let kept = unit.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
    kept.unwrap_or_default()
}
