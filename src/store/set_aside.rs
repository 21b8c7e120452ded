//! What an item that was set aside leaves behind, so that no law of conservation breaks.
//!
//! In: a closed unit, or items that a worker refused. Out: reasons in `draws`, `evaluation_prompts`
//! and `labels`. May not enter: the decision that an item is set aside.

use rlhfd_domain::{RunId, ScorerId, UnitId, WorkKind};
use rusqlite::{Connection, params};

use crate::error::Result;
use crate::rows::int;
use crate::units::UnitRow;
use crate::{compared, generate, items, offline_pairs, rows};

/// All items of a unit, which has a plan.
pub(crate) fn items_of(conn: &Connection, unit: &UnitRow, reason: &str) -> Result<()> {
    let Some(plan) = unit.plan else { return Ok(()) };
    match unit.work {
        // One that has ids since an earlier draw was none of its items.
        WorkKind::Render => {
            for item in items::unrendered(conn, unit)? {
                prompt(conn, unit, item.ordinal, reason)?;
            }
            generate::count_occurrences(conn, unit)
        }
        WorkKind::Generate => {
            for ordinal in plan.from..plan.to {
                prompt(conn, unit, ordinal, reason)?;
            }
            Ok(())
        }
        WorkKind::Score => {
            let scorer = rows::found(unit.scorer, "scorer of unit", unit.id)?;
            for response in items::unlabelled_ids(conn, unit)? {
                label(conn, response, scorer, unit.id, reason)?;
            }
            Ok(())
        }
        WorkKind::Prefer => compared::items_set_aside(conn, unit, reason),
        WorkKind::RenderPairs => offline_pairs::render_set_aside(conn, unit, reason),
        WorkKind::LogprobsPairs => offline_pairs::logprobs_set_aside(conn, unit, reason),
        // A pair whose reference log-probs are missing is left out of the training set; a probe,
        // training and control's own works are never set aside item by item.
        WorkKind::Logprobs
        | WorkKind::Probe
        | WorkKind::Pair
        | WorkKind::Average
        | WorkKind::TrainDpo
        | WorkKind::TrainSft
        | WorkKind::TrainReward
        | WorkKind::TrainPreference
        | WorkKind::Checkpoint
        | WorkKind::Summarise => Ok(()),
    }
}

/// A prompt that gives no responses. In evaluation, only a prompt that cannot be rendered is out for
/// all policies; one that a policy could not answer is missing for that policy alone.
pub(crate) fn prompt(conn: &Connection, unit: &UnitRow, ordinal: u64, reason: &str) -> Result<()> {
    let main = unit.iteration.filter(|_| unit.stage != rlhfd_domain::Stage::Evaluate);
    if let Some(iteration) = main {
        conn.prepare_cached(
            "UPDATE draws SET set_aside = ?4
             WHERE run_id = ?1 AND iteration = ?2 AND ordinal = ?3 AND set_aside IS NULL",
        )?
        .execute(params![unit.run.get(), iteration, int(ordinal), reason])?;
    } else if unit.work == WorkKind::Render {
        evaluation_prompt(conn, unit.run, ordinal, reason)?;
    }
    Ok(())
}

fn evaluation_prompt(conn: &Connection, run: RunId, ordinal: u64, reason: &str) -> Result<()> {
    conn.prepare_cached(
        "UPDATE evaluation_prompts SET set_aside = ?3
         WHERE run_id = ?1 AND ordinal = ?2 AND set_aside IS NULL",
    )?
    .execute(params![run.get(), int(ordinal), reason])?;
    Ok(())
}

/// A response that a scorer could not label.
pub(crate) fn label(
    conn: &Connection,
    response: i64,
    scorer: ScorerId,
    unit: UnitId,
    reason: &str,
) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO labels (response_id, scorer_id, set_aside, unit_id) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![response, scorer.get(), reason, unit.get()])?;
    Ok(())
}
