//! Pair: best against worst, done by control in one transaction that asserts the conservation laws.
//!
//! In: an iteration whose responses are labelled. Out: preferences, ties, prompts without a pair.
//! May not enter: the rule itself (`rlhfd_domain::preference`).

use rlhfd_protocol::worker::Summary;
use rlhfd_store::PairRule;

use crate::actors::stage::{Perform, StageContext, StageError, finish};
use crate::handles::now_ms;

/// Pairs an iteration.
pub async fn perform(ctx: &StageContext, work: &Perform) -> Result<(), StageError> {
    let unit = &work.unit;
    let config = ctx.config_of(unit).await?;
    let Some(scorer) = unit.scorer else {
        return Err(StageError::Input(format!("the unit {} names no scorer", unit.key)));
    };
    let rule = PairRule { scorer, score_gap_min: config.pair.score_gap_min };
    let finish = finish(unit, work.attempt, &Summary::default());
    ctx.write_patiently(move |s| s.finish_pair(&finish, &rule, now_ms())).await?;
    Ok(())
}
