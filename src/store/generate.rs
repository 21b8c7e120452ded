//! What render and generate units give: token ids of prompts, and responses.
//!
//! In: results of a finished attempt. Out: rows of `prompt_ids`, `responses` and `response_texts`,
//! written with the unit's being done. May not enter: sampling.

use std::collections::BTreeSet;

use rlhfd_domain::response::{Finish as ResponseFinish, Purpose, ids_key, text_key};
use rlhfd_domain::{CheckpointId, PromptId, Stage};
use rusqlite::{Connection, params};

use crate::bytes::{from_floats, from_ids};
use crate::error::{Result, StoreError};
use crate::events::Level;
use crate::journal::finish;
use crate::open::Store;
use crate::rows::{found, int, tally};
use crate::units::{Finish, Outcome, UnitRow, tell};
use crate::{items, iterations, runs, set_aside};

/// What rendering one prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Its place in the draw.
    pub ordinal: u64,
    /// Its row.
    pub prompt: PromptId,
    /// Its token ids.
    pub outcome: Outcome<Vec<u32>>,
}

/// What answering one prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Its place in the draw.
    pub ordinal: u64,
    /// Its row.
    pub prompt: PromptId,
    /// Its responses.
    pub outcome: Outcome<Vec<NewResponse>>,
}

/// A response as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewResponse {
    /// The arm's name.
    pub arm: String,
    /// The arm's temperature.
    pub temperature: f64,
    /// Its number over all arms.
    pub sample: u32,
    /// How it ended.
    pub finish: ResponseFinish,
    /// Its token ids, the stop id among them.
    pub ids: Vec<u32>,
    /// One a token, in nats, at temperature 1 and untruncated.
    pub logprobs: Vec<f32>,
    /// Their sum.
    pub logprob: f64,
    /// Its text.
    pub text: String,
}

impl Store {
    /// A finished render unit. Where it was the last of its list, the occurrences are counted.
    pub fn finish_render(&mut self, end: &Finish, items: &[Rendered], now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            for item in items {
                check_ordinal(&unit, item.ordinal)?;
                match &item.outcome {
                    Outcome::Done(ids) => {
                        conn.prepare_cached(
                            "INSERT OR IGNORE INTO prompt_ids (run_id, prompt_id, tokens, ids_key, ids)
                             VALUES (?1, ?2, ?3, ?4, ?5)",
                        )?
                        .execute(params![
                            unit.run.get(),
                            item.prompt.get(),
                            int(ids.len() as u64),
                            ids_key(ids),
                            from_ids(ids)
                        ])?;
                    }
                    Outcome::SetAside(reason, _) => {
                        set_aside::prompt(conn, &unit, item.ordinal, reason)?;
                    }
                }
            }
            check_all(&unit, items::unrendered(conn, &unit)?.len())?;
            tell_refused(conn, &unit, items.iter().map(|item| &item.outcome), now_ms)?;
            count_occurrences(conn, &unit)
        })
    }

    /// A finished generate unit.
    pub fn finish_generate(
        &mut self,
        end: &Finish,
        items: &[Generated],
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            check_answers(conn, &unit, items)?;
            let iteration = found(unit.iteration, "iteration of unit", unit.id)?;
            let row = iterations::get(conn, unit.run, iteration)?;
            let policy = match unit.policy {
                Some(policy) => policy,
                None => found(row.policy_out, "trained policy of iteration", iteration)?,
            };
            let seed = runs::get(conn, unit.run)?.seed;
            let by = By { unit: &unit, iteration, policy, seed };
            for item in items {
                match &item.outcome {
                    Outcome::Done(responses) => {
                        for response in responses {
                            insert(conn, &by, item, response)?;
                        }
                    }
                    Outcome::SetAside(reason, _) => {
                        set_aside::prompt(conn, &unit, item.ordinal, reason)?;
                    }
                }
            }
            tell_refused(conn, &unit, items.iter().map(|item| &item.outcome), now_ms)
        })
    }
}

struct By<'a> {
    unit: &'a UnitRow,
    iteration: u32,
    policy: CheckpointId,
    seed: u64,
}

fn insert(conn: &Connection, by: &By<'_>, item: &Generated, new: &NewResponse) -> Result<()> {
    if new.ids.len() != new.logprobs.len() || !new.logprob.is_finite() {
        return Err(StoreError::Misfit {
            unit: by.unit.id,
            why: format!(
                "sample {} of item {} has {} ids and {} log-probs, in sum {}",
                new.sample,
                item.ordinal,
                new.ids.len(),
                new.logprobs.len(),
                new.logprob
            ),
        });
    }
    let purpose =
        if by.unit.stage == Stage::Evaluate { Purpose::Evaluate } else { Purpose::Generate };
    let replanned = by.unit.plan.is_some_and(|plan| plan.replanned);
    // An evaluation that a cancelled iteration began may be answered again: the responses are the
    // same ones, so the first stay.
    let conflict = if purpose == Purpose::Evaluate { "OR IGNORE" } else { "" };
    let added = conn
        .prepare_cached(&format!(
            "INSERT {conflict} INTO responses (run_id, purpose, iteration, ordinal, prompt_id,
                 policy_id, lane, arm, temperature, sample, seed, finish, tokens, characters,
                 logprob, text_key, replanned, unit_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)"
        ))?
        .execute(params![
            by.unit.run.get(),
            purpose.label(),
            by.iteration,
            int(item.ordinal),
            item.prompt.get(),
            by.policy.get(),
            by.unit.lane,
            new.arm,
            new.temperature,
            new.sample,
            by.seed.cast_signed(),
            new.finish.label(),
            int(new.ids.len() as u64),
            int(new.text.chars().count() as u64),
            new.logprob,
            text_key(&new.text),
            replanned,
            by.unit.id.get(),
        ])?;
    if added == 0 {
        return Ok(());
    }
    conn.prepare_cached(
        "INSERT INTO response_texts (response_id, text, ids, logprobs) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        conn.last_insert_rowid(),
        new.text,
        from_ids(&new.ids),
        from_floats(&new.logprobs)
    ])?;
    Ok(())
}

/// Once all prompts of a list are rendered, equal ones are told apart by their order in it.
pub(crate) fn count_occurrences(conn: &Connection, unit: &UnitRow) -> Result<()> {
    let iteration = found(unit.iteration, "iteration of unit", unit.id)?;
    let more: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM units WHERE run_id = ?1 AND iteration = ?2 AND lane = ''
                 AND work = 'render' AND stage = ?3 AND state IN ('open', 'running'))",
        )?
        .query_row(params![unit.run.get(), iteration, unit.stage.label()], |row| row.get(0))?;
    if more {
        return Ok(());
    }
    let number = if unit.stage == Stage::Evaluate { NUMBER_EVALUATION } else { NUMBER_DRAW };
    conn.execute(number, params![unit.run.get(), iteration])?;
    Ok(())
}

const NUMBER_DRAW: &str = "
WITH numbered AS (
    SELECT d.ordinal AS ordinal,
           row_number() OVER (PARTITION BY i.ids_key ORDER BY d.ordinal) - 1 AS n
    FROM draws d JOIN prompt_ids i ON i.prompt_id = d.prompt_id AND i.run_id = ?1
    WHERE d.run_id = ?1 AND d.iteration = ?2)
UPDATE draws SET occurrence = numbered.n FROM numbered
WHERE draws.run_id = ?1 AND draws.iteration = ?2 AND draws.ordinal = numbered.ordinal
  AND numbered.n > 0";

const NUMBER_EVALUATION: &str = "
WITH numbered AS (
    SELECT e.ordinal AS ordinal,
           row_number() OVER (PARTITION BY i.ids_key ORDER BY e.ordinal) - 1 AS n
    FROM evaluation_prompts e JOIN prompt_ids i ON i.prompt_id = e.prompt_id AND i.run_id = ?1
    WHERE e.run_id = ?1 AND ?2 = ?2)
UPDATE evaluation_prompts SET occurrence = numbered.n FROM numbered
WHERE evaluation_prompts.run_id = ?1 AND evaluation_prompts.ordinal = numbered.ordinal
  AND numbered.n > 0";

/// Every prompt of a generate unit is answered or refused once, and no sample number comes twice.
fn check_answers(conn: &Connection, unit: &UnitRow, items: &[Generated]) -> Result<()> {
    let misfit = |why: String| StoreError::Misfit { unit: unit.id, why };
    let wanted: BTreeSet<u64> = items::answerable(conn, unit)?.into_iter().collect();
    let told: BTreeSet<u64> = items.iter().map(|item| item.ordinal).collect();
    if told.len() != items.len() || told != wanted {
        let (has, told) = (wanted.len(), items.len());
        return Err(misfit(format!("it has {has} prompts, and {told} others were answered")));
    }
    for item in items {
        let Outcome::Done(responses) = &item.outcome else { continue };
        let samples: BTreeSet<u32> = responses.iter().map(|response| response.sample).collect();
        if samples.len() != responses.len() || samples.is_empty() {
            return Err(misfit(format!("item {} has equal or no samples", item.ordinal)));
        }
    }
    Ok(())
}

pub(crate) fn check_all(unit: &UnitRow, left: usize) -> Result<()> {
    if left == 0 {
        return Ok(());
    }
    Err(StoreError::Misfit { unit: unit.id, why: format!("{left} of its items have no answer") })
}

pub(crate) fn check_ordinal(unit: &UnitRow, ordinal: u64) -> Result<()> {
    if unit.plan.is_some_and(|plan| (plan.from..plan.to).contains(&ordinal)) {
        return Ok(());
    }
    Err(StoreError::Misfit { unit: unit.id, why: format!("item {ordinal} is none of its items") })
}

/// One event for all items that a unit's worker refused, by reason; the first message stands for all.
pub(crate) fn tell_refused<'a, T: 'a>(
    conn: &Connection,
    unit: &UnitRow,
    outcomes: impl Iterator<Item = &'a Outcome<T>>,
    now_ms: i64,
) -> Result<()> {
    let refused: Vec<(&str, &str)> = outcomes
        .filter_map(|outcome| match outcome {
            Outcome::Done(_) => None,
            Outcome::SetAside(reason, message) => Some((reason.as_str(), message.as_str())),
        })
        .collect();
    let Some((_, first)) = refused.first() else { return Ok(()) };
    let reasons = tally(refused.iter().map(|(reason, _)| *reason));
    let text = format!("unit {}: set aside: {reasons}; the first: {first}", unit.key);
    tell(conn, unit, Level::Warn, "items_set_aside", text, now_ms)
}
