//! What prefer units give: comparisons of two responses to a prompt, and the scores that come of them.
//!
//! In: results of a finished attempt. Out: rows of `labels`, of pairs (`versus_id`) and of responses,
//! written with the unit's being done; and the pairs of answers that evaluation compares. May not
//! enter: which pairs are asked, what makes a score of them (`domain::label::compare`).

use std::collections::BTreeSet;

use rlhfd_domain::{ResponseId, ScorerId, Stage, UnitId};
use rusqlite::{Connection, params};

use crate::error::{Result, StoreError};
use crate::generate::tell_refused;
use crate::items::{range_of, responses_of, unlabelled_ids};
use crate::journal::finish;
use crate::labels::{Scored, write_scores};
use crate::open::{Reader, Store};
use crate::rows::{count, found};
use crate::set_aside;
use crate::units::{Finish, Outcome, UnitRow, get};

/// What comparing two responses to a prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The one.
    pub response: ResponseId,
    /// The other.
    pub versus: ResponseId,
    /// P(response beats versus), in [0, 1].
    pub outcome: Outcome<f64>,
}

/// Two policies' answers to one prompt, to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersusItem {
    /// The policy's.
    pub response: ResponseId,
    /// The baseline's.
    pub versus: ResponseId,
    /// Their prompt's place in the list.
    pub ordinal: u64,
    /// The prompt: JSON `[{"role", "content"}, …]`.
    pub messages: String,
    /// What the policy wrote.
    pub text: String,
    /// What the baseline wrote.
    pub versus_text: String,
}

impl Store {
    /// A finished prefer unit: its comparisons and, in the main flow, a score a response.
    pub fn finish_prefer(
        &mut self,
        end: &Finish,
        compared: &[Compared],
        scores: &[Scored],
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
            check_pairs(conn, &unit, compared)?;
            for pair in compared {
                match &pair.outcome {
                    Outcome::Done(preference) => insert(conn, &unit, scorer, pair, *preference)?,
                    Outcome::SetAside(reason, _) => {
                        let (response, versus) = (pair.response, pair.versus);
                        not_compared(conn, (response, versus), scorer, unit.id, reason)?;
                    }
                }
            }
            write_scores(conn, &unit, scores)?;
            let pairs = compared.iter().map(|pair| &pair.outcome);
            let told = pairs.chain(scores.iter().map(|score| &score.outcome));
            tell_refused(conn, &unit, told, now_ms)
        })
    }
}

/// Two different responses of the unit to one prompt; in evaluation, all pairs that are wanted.
fn check_pairs(conn: &Connection, unit: &UnitRow, compared: &[Compared]) -> Result<()> {
    let misfit = |why: String| Err(StoreError::Misfit { unit: unit.id, why });
    let told: BTreeSet<_> = compared.iter().map(|pair| (pair.response, pair.versus)).collect();
    if told.len() != compared.len() {
        return misfit("a pair was compared twice".to_owned());
    }
    if let Some(strange) = compared.iter().find(|pair| match pair.outcome {
        Outcome::Done(preference) => !(0.0..=1.0).contains(&preference),
        Outcome::SetAside(..) => false,
    }) {
        return misfit(format!("{strange:?} has a preference that is no share"));
    }
    if unit.stage == Stage::Evaluate {
        let items = versus(conn, unit)?;
        let wanted: BTreeSet<_> = items.iter().map(|item| (item.response, item.versus)).collect();
        if told != wanted {
            let (has, told) = (wanted.len(), told.len());
            return misfit(format!("it has {has} pairs, and {told} others were compared"));
        }
        return Ok(());
    }
    let own: BTreeSet<i64> = unlabelled_ids(conn, unit)?.into_iter().collect();
    let mut same = conn.prepare_cached(
        "SELECT count(*) FROM responses a JOIN responses b
           ON b.ordinal = a.ordinal AND b.id <> a.id WHERE a.id = ?1 AND b.id = ?2",
    )?;
    for pair in compared {
        let (a, b) = (pair.response.get(), pair.versus.get());
        let same: i64 = same.query_row(params![a, b], |row| row.get(0))?;
        if same != 1 || !own.contains(&a) || !own.contains(&b) {
            return misfit(format!("{a} and {b} are not two of its responses to one prompt"));
        }
    }
    Ok(())
}

fn insert(
    conn: &Connection,
    unit: &UnitRow,
    scorer: ScorerId,
    pair: &Compared,
    preference: f64,
) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO labels (response_id, versus_id, scorer_id, preference, unit_id)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        pair.response.get(),
        pair.versus.get(),
        scorer.get(),
        preference,
        unit.id.get()
    ])?;
    Ok(())
}

fn not_compared(
    conn: &Connection,
    (response, versus): (ResponseId, ResponseId),
    scorer: ScorerId,
    unit: UnitId,
    reason: &str,
) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO labels (response_id, versus_id, scorer_id, set_aside, unit_id)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![response.get(), versus.get(), scorer.get(), reason, unit.get()])?;
    Ok(())
}

/// What a unit that is set aside leaves: in evaluation of its pairs, else of its responses.
pub(crate) fn items_set_aside(conn: &Connection, unit: &UnitRow, reason: &str) -> Result<()> {
    let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
    if unit.stage == Stage::Evaluate {
        for item in versus(conn, unit)? {
            not_compared(conn, (item.response, item.versus), scorer, unit.id, reason)?;
        }
        return Ok(());
    }
    for response in unlabelled_ids(conn, unit)? {
        set_aside::label(conn, response, scorer, unit.id, reason)?;
    }
    Ok(())
}

/// Pairs of answers of a prefer unit of evaluation that are not compared yet. The unit's detail names
/// the baseline's lane.
fn versus(conn: &Connection, unit: &UnitRow) -> Result<Vec<VersusItem>> {
    let range = range_of(unit)?;
    let scorer = found(unit.scorer, "scorer of unit", unit.id)?;
    let baseline = found(unit.detail.as_deref(), "baseline of unit", unit.id)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT x.id, y.id, x.ordinal, p.messages, t.text, v.text
         FROM responses x
         JOIN responses y ON y.purpose = 'evaluate' AND y.run_id = x.run_id AND y.lane = ?7
          AND y.ordinal = x.ordinal AND y.sample = x.sample AND y.temperature = x.temperature
         JOIN prompts p ON p.id = x.prompt_id
         JOIN response_texts t ON t.response_id = x.id
         JOIN response_texts v ON v.response_id = y.id
         WHERE {} AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.response_id = x.id
               AND l.versus_id = y.id AND l.scorer_id = ?6)
         ORDER BY x.ordinal, x.sample",
        responses_of(unit)
    ))?;
    let key = params![
        unit.run.get(),
        range.iteration,
        range.from,
        range.to,
        unit.lane,
        scorer.get(),
        baseline
    ];
    let rows = statement
        .query_map(key, |row| {
            Ok(VersusItem {
                response: ResponseId(row.get(0)?),
                versus: ResponseId(row.get(1)?),
                ordinal: count(row.get(2)?),
                messages: row.get(3)?,
                text: row.get(4)?,
                versus_text: row.get(5)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

impl Reader {
    /// Pairs of answers of a prefer unit of evaluation that are not compared yet.
    pub fn versus_items(&self, unit: UnitId) -> Result<Vec<VersusItem>> {
        versus(&self.conn, &get(&self.conn, unit)?)
    }
}
