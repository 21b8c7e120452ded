//! What score and logprobs units give: labels, and log-probs under the reference.
//!
//! In: results of a finished attempt. Out: rows of `labels` and `reference_logprobs`, written with the
//! unit's being done. May not enter: which model gave them.

use std::collections::BTreeSet;

use rlhfd_domain::label::Score;
use rlhfd_domain::{ResponseId, Stage, WorkKind};
use rusqlite::{Connection, params};

use crate::bytes::from_floats;
use crate::error::{Result, StoreError};
use crate::generate::tell_refused;
use crate::items::{reference_of, unlabelled_ids};
use crate::journal::finish;
use crate::open::Store;
use crate::rows::{found, int};
use crate::set_aside;
use crate::units::{Finish, Outcome, UnitRow};

/// What scoring one response gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The response.
    pub response: ResponseId,
    /// Its score.
    pub outcome: Outcome<f64>,
}

/// What one response's log-probs under the reference are.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The response.
    pub response: ResponseId,
    /// One a token, in nats, and their sum.
    pub outcome: Outcome<(Vec<f32>, f64)>,
}

impl Store {
    /// A finished score unit. A score that is not finite sets its response aside.
    pub fn finish_score(&mut self, end: &Finish, items: &[Scored], now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            write_scores(conn, &unit, items)?;
            tell_refused(conn, &unit, items.iter().map(|item| &item.outcome), now_ms)
        })
    }

    /// A finished logprobs unit. A response that was refused has no row: its pairs are left out of
    /// the training set, and counted there.
    pub fn finish_logprobs(&mut self, end: &Finish, items: &[Logprobs], now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let reference = reference_of(conn, &unit)?;
            for item in items {
                let Outcome::Done((each, sum)) = &item.outcome else { continue };
                let tokens: i64 = conn
                    .prepare_cached("SELECT tokens FROM responses WHERE id = ?1")?
                    .query_row([item.response.get()], |row| row.get(0))?;
                if int(each.len() as u64) != tokens || !sum.is_finite() {
                    let why = format!(
                        "response {} has {tokens} tokens and {} log-probs, in sum {sum}",
                        item.response,
                        each.len()
                    );
                    return Err(StoreError::Misfit { unit: unit.id, why });
                }
                conn.prepare_cached(
                    "INSERT OR IGNORE INTO reference_logprobs
                         (response_id, reference_id, logprob, tokens, logprobs, unit_id)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    item.response.get(),
                    reference.get(),
                    sum,
                    tokens,
                    from_floats(each),
                    unit.id.get()
                ])?;
            }
            tell_refused(conn, &unit, items.iter().map(|item| &item.outcome), now_ms)
        })
    }
}

/// A row a response, of all responses of the unit that its scorer has not labelled yet; none in
/// evaluation's comparisons, where pairs alone are labelled.
pub(crate) fn write_scores(conn: &Connection, unit: &UnitRow, items: &[Scored]) -> Result<()> {
    let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
    let of_pairs = unit.work == WorkKind::Prefer && unit.stage == Stage::Evaluate;
    let unlabelled = if of_pairs { Vec::new() } else { unlabelled_ids(conn, unit)? };
    let wanted: BTreeSet<i64> = unlabelled.into_iter().collect();
    let told: BTreeSet<i64> = items.iter().map(|item| item.response.get()).collect();
    if told.len() != items.len() || told != wanted {
        let (has, told) = (wanted.len(), items.len());
        let why = format!("it has {has} responses, and {told} others were labelled");
        return Err(StoreError::Misfit { unit: unit.id, why });
    }
    for item in items {
        let response = item.response.get();
        let score = match &item.outcome {
            Outcome::Done(score) => Score::new(*score).map_err(|_| "non_finite"),
            Outcome::SetAside(reason, _) => Err(reason.as_str()),
        };
        match score {
            Ok(score) => {
                conn.prepare_cached(
                    "INSERT INTO labels (response_id, scorer_id, score, unit_id)
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    response,
                    scorer.get(),
                    score.get(),
                    unit.id.get()
                ])?;
            }
            Err(reason) => set_aside::label(conn, response, scorer, unit.id, reason)?,
        }
    }
    Ok(())
}
