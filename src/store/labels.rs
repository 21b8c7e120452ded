//! What score and logprobs units give: labels, and log-probs under the reference.
//!
//! In: results of a finished attempt. Out: rows of `labels` and `reference_logprobs`, written with the
//! unit's being done. May not enter: which model gave them.

use std::collections::BTreeSet;

use rlhfd_domain::ResponseId;
use rlhfd_domain::label::Score;
use rusqlite::params;

use crate::bytes::from_floats;
use crate::error::{Result, StoreError};
use crate::generate::tell_refused;
use crate::items::{reference_of, unlabelled_ids};
use crate::journal::finish;
use crate::open::Store;
use crate::rows::{found, int};
use crate::set_aside;
use crate::units::{Finish, Outcome};

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
            let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
            let wanted: BTreeSet<i64> = unlabelled_ids(conn, &unit)?.into_iter().collect();
            let told: BTreeSet<i64> = items.iter().map(|item| item.response.get()).collect();
            if told.len() != items.len() || told != wanted {
                let (has, told) = (wanted.len(), items.len());
                let why = format!("it has {has} responses, and {told} others were labelled");
                return Err(StoreError::Misfit { unit: unit.id, why });
            }
            for item in items {
                let response = item.response.get();
                match &item.outcome {
                    Outcome::Done(score) => match Score::new(*score) {
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
                        Err(_) => set_aside::label(conn, response, scorer, unit.id, "non_finite")?,
                    },
                    Outcome::SetAside(reason, _) => {
                        set_aside::label(conn, response, scorer, unit.id, reason)?;
                    }
                }
            }
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
