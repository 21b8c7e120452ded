//! What goes to a worker: a unit's items, in order, made from the rows that exist.
//!
//! In: a unit. Out: plain items. What an earlier unit gave or set aside already is left out, so that a
//! unit that is done again gets the same items. May not enter: frames.

use rlhfd_domain::{CheckpointId, PromptId, ResponseId, Stage, UnitId, WorkKind};
use rusqlite::{Connection, params};

use crate::bytes::to_ids;
use crate::error::{Result, StoreError};
use crate::open::Reader;
use crate::rows::{count, found, int};
use crate::runs;
use crate::units::{UnitRow, get};

/// A prompt to render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderItem {
    /// Its place in the draw.
    pub ordinal: u64,
    /// Its row.
    pub prompt: PromptId,
    /// JSON: `[{"role", "content"}, …]`.
    pub messages: String,
}

/// A prompt to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateItem {
    /// Its place in the draw.
    pub ordinal: u64,
    /// Its row.
    pub prompt: PromptId,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Which of the equal prompts of this draw it is, from 0.
    pub occurrence: u32,
}

/// A response to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreItem {
    /// Its row.
    pub response: ResponseId,
    /// Its prompt's place in the draw.
    pub ordinal: u64,
    /// Its number over all arms.
    pub sample: u32,
    /// The prompt: JSON `[{"role", "content"}, …]`.
    pub messages: String,
    /// What the policy wrote.
    pub text: String,
}

/// A response whose log-probs under the reference are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogprobItem {
    /// Its row.
    pub response: ResponseId,
    /// Its prompt's place in the draw.
    pub ordinal: u64,
    /// Its number over all arms.
    pub sample: u32,
    /// The prompt's token ids.
    pub prompt_ids: Vec<u32>,
    /// The response's.
    pub response_ids: Vec<u32>,
}

/// The list that a unit's ordinals count in, as a derived table `d(ordinal, prompt_id, occurrence,
/// set_aside)` of run ?1, iteration ?2 and ordinals ?3..?4.
fn list_of(unit: &UnitRow) -> &'static str {
    if unit.stage == Stage::Evaluate {
        "(SELECT ordinal, prompt_id, occurrence, set_aside FROM evaluation_prompts
          WHERE run_id = ?1 AND ?2 = ?2 AND ordinal >= ?3 AND ordinal < ?4)"
    } else {
        "(SELECT ordinal, prompt_id, occurrence, set_aside FROM draws
          WHERE run_id = ?1 AND iteration = ?2 AND ordinal >= ?3 AND ordinal < ?4)"
    }
}

/// The responses that a unit's ordinals and lane name, as a condition on `responses x`. Those to a
/// prompt that was set aside, which one of several policies may have written, are no part of it.
pub(crate) fn responses_of(unit: &UnitRow) -> &'static str {
    if unit.stage == Stage::Evaluate {
        "x.purpose = 'evaluate' AND x.run_id = ?1 AND ?2 = ?2 AND x.ordinal >= ?3 AND x.ordinal < ?4
         AND x.lane = ?5"
    } else {
        "x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2 AND x.ordinal >= ?3
         AND x.ordinal < ?4 AND x.lane = ?5 AND NOT EXISTS (SELECT 1 FROM draws d
             WHERE d.run_id = ?1 AND d.iteration = ?2 AND d.ordinal = x.ordinal
               AND d.set_aside IS NOT NULL)"
    }
}

pub(crate) struct Range {
    pub(crate) iteration: u32,
    pub(crate) from: i64,
    pub(crate) to: i64,
}

pub(crate) fn range_of(unit: &UnitRow) -> Result<Range> {
    let misfit =
        || StoreError::Misfit { unit: unit.id, why: "it has no items of an iteration".to_owned() };
    let plan = unit.plan.ok_or_else(misfit)?;
    let iteration = drawn_by(unit).ok_or_else(misfit)?;
    Ok(Range { iteration, from: int(plan.from), to: int(plan.to) })
}

/// The iteration in whose draw a unit's ordinals count: its own, but for log-probs of the pairs that an
/// earlier one collected, which the unit's detail names.
fn drawn_by(unit: &UnitRow) -> Option<u32> {
    let earlier = unit.detail.as_deref().filter(|_| unit.work == WorkKind::Logprobs);
    earlier.map_or(unit.iteration, |earlier| earlier.parse().ok())
}

/// Responses of a score unit that its scorer has not labelled yet.
pub(crate) fn unlabelled(conn: &Connection, unit: &UnitRow) -> Result<Vec<ScoreItem>> {
    let range = range_of(unit)?;
    let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT x.id, x.ordinal, x.sample, p.messages, t.text
         FROM responses x JOIN prompts p ON p.id = x.prompt_id
         JOIN response_texts t ON t.response_id = x.id
         WHERE {} AND NOT EXISTS (SELECT 1 FROM labels l
               WHERE l.response_id = x.id AND l.scorer_id = ?6 AND l.versus_id IS NULL)
         ORDER BY x.ordinal, x.sample",
        responses_of(unit)
    ))?;
    let key =
        params![unit.run.get(), range.iteration, range.from, range.to, unit.lane, scorer.get()];
    let rows = statement
        .query_map(key, |row| {
            Ok(ScoreItem {
                response: ResponseId(row.get(0)?),
                ordinal: count(row.get(1)?),
                sample: row.get(2)?,
                messages: row.get(3)?,
                text: row.get(4)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

/// Prompts of a render unit that have no ids yet and were not refused.
pub(crate) fn unrendered(conn: &Connection, unit: &UnitRow) -> Result<Vec<RenderItem>> {
    let range = range_of(unit)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT d.ordinal, d.prompt_id, p.messages FROM {} d
         JOIN prompts p ON p.id = d.prompt_id
         WHERE d.set_aside IS NULL AND NOT EXISTS
               (SELECT 1 FROM prompt_ids i WHERE i.prompt_id = d.prompt_id AND i.run_id = ?1)
         ORDER BY d.ordinal",
        list_of(unit)
    ))?;
    let key = params![unit.run.get(), range.iteration, range.from, range.to];
    let rows = statement
        .query_map(key, |row| {
            Ok(RenderItem {
                ordinal: count(row.get(0)?),
                prompt: PromptId(row.get(1)?),
                messages: row.get(2)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

/// Which prompts `d` of a generate unit are answered: the rendered ones. One that another policy's unit
/// set aside is among them, so that what a policy writes does not depend on which of them is first.
fn answered(unit: &UnitRow) -> &'static str {
    if unit.stage == Stage::Evaluate { "d.set_aside IS NULL" } else { "TRUE" }
}

/// Ordinals of a generate unit's prompts.
pub(crate) fn answerable(conn: &Connection, unit: &UnitRow) -> Result<Vec<u64>> {
    let range = range_of(unit)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT d.ordinal FROM {} d
         JOIN prompt_ids i ON i.prompt_id = d.prompt_id AND i.run_id = ?1
         WHERE {} ORDER BY d.ordinal",
        list_of(unit),
        answered(unit)
    ))?;
    let key = params![unit.run.get(), range.iteration, range.from, range.to];
    let rows =
        statement.query_map(key, |row| row.get(0).map(count))?.collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

/// Ids of a score unit's responses that its scorer has not labelled yet.
pub(crate) fn unlabelled_ids(conn: &Connection, unit: &UnitRow) -> Result<Vec<i64>> {
    let range = range_of(unit)?;
    let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT x.id FROM responses x WHERE {} AND NOT EXISTS (SELECT 1 FROM labels l
             WHERE l.response_id = x.id AND l.scorer_id = ?6 AND l.versus_id IS NULL)",
        responses_of(unit)
    ))?;
    let key =
        params![unit.run.get(), range.iteration, range.from, range.to, unit.lane, scorer.get()];
    let rows = statement.query_map(key, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

impl Reader {
    /// Prompts of a render unit that have no ids yet.
    pub fn render_items(&self, unit: UnitId) -> Result<Vec<RenderItem>> {
        unrendered(&self.conn, &get(&self.conn, unit)?)
    }

    /// Prompts of a generate unit, with their ids; those that could not be rendered are left out.
    pub fn generate_items(&self, unit: UnitId) -> Result<Vec<GenerateItem>> {
        let unit = get(&self.conn, unit)?;
        let range = range_of(&unit)?;
        let mut statement = self.conn.prepare_cached(&format!(
            "SELECT d.ordinal, d.prompt_id, i.ids, d.occurrence FROM {} d
             JOIN prompt_ids i ON i.prompt_id = d.prompt_id AND i.run_id = ?1
             WHERE {} ORDER BY d.ordinal",
            list_of(&unit),
            answered(&unit)
        ))?;
        let key = params![unit.run.get(), range.iteration, range.from, range.to];
        let rows = statement
            .query_map(key, |row| {
                Ok(GenerateItem {
                    ordinal: count(row.get(0)?),
                    prompt: PromptId(row.get(1)?),
                    ids: to_ids(row.get_ref(2)?.as_blob()?),
                    occurrence: row.get(3)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// Responses of a score unit that its scorer has not labelled yet.
    pub fn score_items(&self, unit: UnitId) -> Result<Vec<ScoreItem>> {
        unlabelled(&self.conn, &get(&self.conn, unit)?)
    }

    /// Responses of a logprobs unit whose log-probs under the iteration's reference are not known:
    /// chosen and rejected ones in the main flow, those at temperature 1 in evaluation.
    pub fn logprob_items(&self, unit: UnitId) -> Result<Vec<LogprobItem>> {
        let unit = get(&self.conn, unit)?;
        let range = range_of(&unit)?;
        let reference = reference_of(&self.conn, &unit)?;
        let wanted = if unit.stage == Stage::Evaluate {
            "x.temperature = 1.0"
        } else {
            "EXISTS (SELECT 1 FROM preferences f WHERE f.run_id = ?1 AND f.iteration = ?2
                     AND f.ordinal = x.ordinal AND x.id IN (f.chosen_id, f.rejected_id))"
        };
        let mut statement = self.conn.prepare_cached(&format!(
            "SELECT x.id, x.ordinal, x.sample, i.ids, t.ids
             FROM responses x JOIN prompt_ids i ON i.prompt_id = x.prompt_id AND i.run_id = ?1
             JOIN response_texts t ON t.response_id = x.id
             WHERE {} AND {wanted} AND NOT EXISTS (SELECT 1 FROM reference_logprobs k
                   WHERE k.response_id = x.id AND k.reference_id = ?6)
             ORDER BY x.ordinal, x.sample",
            responses_of(&unit)
        ))?;
        let key = params![
            unit.run.get(),
            range.iteration,
            range.from,
            range.to,
            unit.lane,
            reference.get()
        ];
        let rows = statement
            .query_map(key, |row| {
                Ok(LogprobItem {
                    response: ResponseId(row.get(0)?),
                    ordinal: count(row.get(1)?),
                    sample: row.get(2)?,
                    prompt_ids: to_ids(row.get_ref(3)?.as_blob()?),
                    response_ids: to_ids(row.get_ref(4)?.as_blob()?),
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }
}

/// The reference that a unit's log-probs are taken under: its iteration's.
pub(crate) fn reference_of(conn: &Connection, unit: &UnitRow) -> Result<CheckpointId> {
    match unit.iteration {
        Some(iteration) => Ok(crate::iterations::get(conn, unit.run, iteration)?.reference),
        None => Ok(runs::get(conn, unit.run)?.reference),
    }
}
