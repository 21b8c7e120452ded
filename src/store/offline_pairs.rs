//! Offline pairs: what a run makes of offline preferences, each once: token ids, and log-probs under
//! a reference; and which of them an iteration trains on.
//!
//! In: an iteration's sets, results of finished attempts. Out: rows of `offline_pairs`, `offline_ids`,
//! `offline_logprobs`, `iteration_sets` and `training_set_members`. A run's list only grows; an
//! iteration uses its sets' rows below `pairs_to`, frozen at its start. May not enter: templates.

use rlhfd_domain::conservation::{self, OfflineCounts};
use rlhfd_domain::{CheckpointId, RunId, limits};
use rusqlite::{Connection, params};

use crate::bytes::{from_floats, from_ids, to_ids};
use crate::error::{Result, StoreError};
use crate::events::Level;
use crate::generate::{check_all, check_ordinal, tell_refused};
use crate::items::{Range, range_of, reference_of};
use crate::journal::finish;
use crate::offline;
use crate::open::{Reader, Store};
use crate::rows::{count, int};
use crate::units::{Finish, Outcome, UnitRow, tell};

/// Which offline preferences an iteration trains on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OfflineUse {
    /// Names of preference sets, in training order.
    pub sets: Vec<String>,
    /// The weight of each of their preferences in the loss; above 0.
    pub weight: f64,
    /// Tokens of a side with its prompt; longer pairs are set aside as over-long.
    pub tokens_max: u32,
    /// Tokens of a prompt.
    pub prompt_tokens_max: Option<u32>,
}

/// What a new iteration has of offline pairs, for the plan of its units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfflineDrawn {
    /// Ordinals 0..pairs of the run's list are used, as far as they are of the iteration's sets.
    pub pairs: u64,
    /// Those in 0..rendered are rendered or set aside.
    pub rendered: u64,
    /// Those in 0..known have log-probs of the reference or are set aside.
    pub known: u64,
}

/// An offline preference to render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineRenderItem {
    /// Its place in the run's list.
    pub ordinal: u64,
    /// The prompt, JSON: `[{"role", "content"}, …]`.
    pub messages: String,
    /// The better answer.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
}

/// The token ids of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairIds {
    /// The prompt's, with its generation prompt.
    pub prompt: Vec<u32>,
    /// The chosen response's.
    pub chosen: Vec<u32>,
    /// The rejected response's.
    pub rejected: Vec<u32>,
}

/// What rendering one offline preference gave.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderedPair {
    /// Its place in the run's list.
    pub ordinal: u64,
    /// Its ids.
    pub outcome: Outcome<PairIds>,
}

/// A pair whose log-probs under the reference are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineLogprobItem {
    /// Its place in the run's list.
    pub ordinal: u64,
    /// Its ids.
    pub ids: PairIds,
}

/// Log-probs of a pair's sides under the reference: one a token, in nats, and their sum.
#[derive(Debug, Clone, PartialEq)]
pub struct PairLogprobs {
    /// Its place in the run's list.
    pub ordinal: u64,
    /// Chosen, then rejected.
    pub outcome: Outcome<[(Vec<f32>, f64); 2]>,
}

/// The pairs that iteration ?2 of run ?1 uses.
const USED: &str = "offline_pairs o JOIN iteration_sets s ON s.run_id = o.run_id
    AND s.set_id = o.set_id AND o.ordinal < s.pairs_to AND o.run_id = ?1 AND s.iteration = ?2";

/// Of these, a rendered one whose lengths are within the iteration's limits; null where not rendered.
const FITS: &str = "(o.pair_tokens <= s.tokens_max
    AND o.prompt_tokens <= coalesce(s.prompt_tokens_max, o.prompt_tokens))";

/// Takes up what was published of the iteration's sets, and freezes what it uses of them.
pub(crate) fn take_up(
    conn: &Connection,
    (run, iteration, reference): (RunId, u32, CheckpointId),
    used: &OfflineUse,
) -> Result<OfflineDrawn> {
    let mut sets = Vec::with_capacity(used.sets.len());
    for name in &used.sets {
        let refused =
            |why: String| StoreError::Conflict { what: "preference set", name: name.clone(), why };
        let set = offline::published(conn, name)?.ok_or_else(|| {
            refused(format!("is not there yet: `rlhfctl preferences add FILE --set {name}`"))
        })?;
        if length(conn, run)? + set.preferences > limits::OFFLINE_PAIRS_MAX {
            let max = limits::OFFLINE_PAIRS_MAX;
            return Err(refused(format!("is too large: a run takes {max} pairs, use fewer")));
        }
        append(conn, run, set.id.get())?;
        sets.push(set.id);
    }
    let pairs = length(conn, run)?;
    for (place, set) in sets.iter().enumerate() {
        conn.execute(
            "INSERT INTO iteration_sets (run_id, iteration, place, set_id, pairs_to, weight,
                                         tokens_max, prompt_tokens_max)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                run.get(),
                iteration,
                int(place as u64),
                set.get(),
                int(pairs),
                used.weight,
                used.tokens_max,
                used.prompt_tokens_max
            ],
        )?;
    }
    let first = |condition: &str| -> Result<u64> {
        let text = format!(
            "SELECT coalesce(min(o.ordinal), ?3) FROM {USED} WHERE ?4 = ?4 AND {condition}"
        );
        let key = params![run.get(), iteration, int(pairs), reference.get()];
        Ok(count(conn.query_row(&text, key, |row| row.get(0))?))
    };
    let rendered = first("o.prompt_tokens IS NULL AND o.set_aside IS NULL")?;
    let known = first(&format!("o.set_aside IS NULL AND coalesce({FITS}, 1) AND {UNKNOWN}"))?;
    Ok(OfflineDrawn { pairs, rendered, known })
}

/// A pair without log-probs under reference ?4.
const UNKNOWN: &str = "NOT EXISTS (SELECT 1 FROM offline_logprobs k WHERE k.run_id = o.run_id
    AND k.ordinal = o.ordinal AND k.reference_id = ?4)";

fn length(conn: &Connection, run: RunId) -> Result<u64> {
    let length: i64 = conn.query_row(
        "SELECT coalesce(max(ordinal), -1) + 1 FROM offline_pairs WHERE run_id = ?1",
        [run.get()],
        |row| row.get(0),
    )?;
    Ok(count(length))
}

/// What a set has and the run's list has not, behind its end, in order of publishing.
fn append(conn: &Connection, run: RunId, set: i64) -> Result<()> {
    conn.execute(
        "INSERT INTO offline_pairs (run_id, ordinal, offline_id, set_id)
         SELECT ?1, ?3 + row_number() OVER (ORDER BY u.published_seq, p.id) - 1, p.id, ?2
         FROM uploads u JOIN offline_preferences p ON p.upload_id = u.id
         WHERE u.preference_set_id = ?2 AND u.state = 'published' AND NOT EXISTS
               (SELECT 1 FROM offline_pairs o WHERE o.offline_id = p.id AND o.run_id = ?1)",
        params![run.get(), set, int(length(conn, run)?)],
    )?;
    Ok(())
}

fn unrendered(conn: &Connection, unit: &UnitRow) -> Result<Vec<OfflineRenderItem>> {
    let Range { iteration, from, to } = range_of(unit)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT o.ordinal, p.messages, p.chosen, p.rejected FROM {USED}
         JOIN offline_preferences p ON p.id = o.offline_id
         WHERE o.ordinal >= ?3 AND o.ordinal < ?4 AND o.prompt_tokens IS NULL
           AND o.set_aside IS NULL ORDER BY o.ordinal"
    ))?;
    let rows = statement.query_map(params![unit.run.get(), iteration, from, to], |row| {
        Ok(OfflineRenderItem {
            ordinal: count(row.get(0)?),
            messages: row.get(1)?,
            chosen: row.get(2)?,
            rejected: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn unknown(conn: &Connection, unit: &UnitRow) -> Result<Vec<OfflineLogprobItem>> {
    let Range { iteration, from, to } = range_of(unit)?;
    let reference = reference_of(conn, unit)?;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT o.ordinal, d.prompt_ids, d.chosen_ids, d.rejected_ids FROM {USED}
         JOIN offline_ids d ON d.run_id = o.run_id AND d.ordinal = o.ordinal
         WHERE o.ordinal >= ?3 AND o.ordinal < ?5 AND {FITS} AND {UNKNOWN} ORDER BY o.ordinal"
    ))?;
    let key = params![unit.run.get(), iteration, from, reference.get(), to];
    let rows = statement.query_map(key, |row| {
        let ids = PairIds {
            prompt: to_ids(row.get_ref(1)?.as_blob()?),
            chosen: to_ids(row.get_ref(2)?.as_blob()?),
            rejected: to_ids(row.get_ref(3)?.as_blob()?),
        };
        Ok(OfflineLogprobItem { ordinal: count(row.get(0)?), ids })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

impl Reader {
    /// Offline preferences of a render unit that have no ids yet and were not refused.
    pub fn offline_render_items(&self, unit: &UnitRow) -> Result<Vec<OfflineRenderItem>> {
        unrendered(&self.conn, unit)
    }

    /// Pairs of a logprobs unit whose log-probs under the iteration's reference are not known; those
    /// that are over-long for the iteration are left out.
    pub fn offline_logprob_items(&self, unit: &UnitRow) -> Result<Vec<OfflineLogprobItem>> {
        unknown(&self.conn, unit)
    }
}

impl Store {
    /// A finished unit that renders offline preferences.
    pub fn finish_render_pairs(
        &mut self,
        end: &Finish,
        items: &[RenderedPair],
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            for item in items {
                check_ordinal(&unit, item.ordinal)?;
                match &item.outcome {
                    Outcome::Done(ids) => keep_ids(conn, &unit, item.ordinal, ids)?,
                    Outcome::SetAside(reason, _) => {
                        set_pair_aside(conn, unit.run, item.ordinal, reason)?;
                    }
                }
            }
            check_all(&unit, unrendered(conn, &unit)?.len())?;
            tell_refused(conn, &unit, items.iter().map(|item| &item.outcome), now_ms)
        })
    }

    /// A finished unit of log-probs of offline pairs.
    pub fn finish_logprobs_pairs(
        &mut self,
        end: &Finish,
        items: &[PairLogprobs],
        now_ms: i64,
    ) -> Result<()> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let reference = reference_of(conn, &unit)?;
            for item in items {
                check_ordinal(&unit, item.ordinal)?;
                keep_logprobs(conn, &unit, reference, item)?;
            }
            check_all(&unit, unknown(conn, &unit)?.len())?;
            tell_refused(conn, &unit, items.iter().map(|item| &item.outcome), now_ms)
        })
    }
}

fn keep_ids(conn: &Connection, unit: &UnitRow, ordinal: u64, ids: &PairIds) -> Result<()> {
    let sides = [&ids.prompt, &ids.chosen, &ids.rejected];
    if sides.iter().any(|side| side.is_empty()) || ids.chosen == ids.rejected {
        let why = format!("pair {ordinal} has an empty side, or two that are the same");
        return Err(StoreError::Misfit { unit: unit.id, why });
    }
    let key = (unit.run.get(), int(ordinal));
    conn.prepare_cached(
        "INSERT INTO offline_ids (run_id, ordinal, prompt_ids, chosen_ids, rejected_ids)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        key.0,
        key.1,
        from_ids(&ids.prompt),
        from_ids(&ids.chosen),
        from_ids(&ids.rejected)
    ])?;
    let longest = ids.prompt.len() + ids.chosen.len().max(ids.rejected.len());
    conn.prepare_cached(
        "UPDATE offline_pairs SET prompt_tokens = ?3, pair_tokens = ?4
         WHERE run_id = ?1 AND ordinal = ?2",
    )?
    .execute(params![key.0, key.1, int(ids.prompt.len() as u64), int(longest as u64)])?;
    Ok(())
}

fn set_pair_aside(conn: &Connection, run: RunId, ordinal: u64, reason: &str) -> Result<()> {
    conn.prepare_cached(
        "UPDATE offline_pairs SET set_aside = ?3 WHERE run_id = ?1 AND ordinal = ?2",
    )?
    .execute(params![run.get(), int(ordinal), reason])?;
    Ok(())
}

fn keep_logprobs(
    conn: &Connection,
    unit: &UnitRow,
    reference: CheckpointId,
    item: &PairLogprobs,
) -> Result<()> {
    let ([chosen, rejected], reason) = match &item.outcome {
        Outcome::Done(sides) => (sides.each_ref().map(Some), None),
        Outcome::SetAside(reason, _) => ([None, None], Some(reason)),
    };
    if [chosen, rejected].iter().flatten().any(|(_, sum)| !sum.is_finite()) {
        let why = format!("pair {} has log-probs that are not finite", item.ordinal);
        return Err(StoreError::Misfit { unit: unit.id, why });
    }
    conn.prepare_cached(
        "INSERT OR IGNORE INTO offline_logprobs (run_id, ordinal, reference_id, chosen, rejected,
             chosen_logprobs, rejected_logprobs, set_aside, unit_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        unit.run.get(),
        int(item.ordinal),
        reference.get(),
        chosen.map(|side| side.1),
        rejected.map(|side| side.1),
        chosen.map(|side| from_floats(&side.0)),
        rejected.map(|side| from_floats(&side.0)),
        reason,
        unit.id.get()
    ])?;
    Ok(())
}

/// What a unit that was set aside leaves behind: the same reason for each of its items.
pub(crate) fn render_set_aside(conn: &Connection, unit: &UnitRow, reason: &str) -> Result<()> {
    for item in unrendered(conn, unit)? {
        set_pair_aside(conn, unit.run, item.ordinal, reason)?;
    }
    Ok(())
}

/// The same for a unit of log-probs.
pub(crate) fn logprobs_set_aside(conn: &Connection, unit: &UnitRow, reason: &str) -> Result<()> {
    let reference = reference_of(conn, unit)?;
    for item in unknown(conn, unit)? {
        let outcome = Outcome::SetAside(reason.to_owned(), String::new());
        keep_logprobs(conn, unit, reference, &PairLogprobs { ordinal: item.ordinal, outcome })?;
    }
    Ok(())
}

/// The offline part of a training set, which comes first: by the set's place, then ordinal. Returns
/// how many pairs it has. The law is asserted: used = trained on + set aside.
pub(crate) fn fix_members(
    conn: &Connection,
    unit: &UnitRow,
    (iteration, reference): (u32, CheckpointId),
    now_ms: i64,
) -> Result<u64> {
    let logprobs = "offline_logprobs k ON k.run_id = o.run_id AND k.ordinal = o.ordinal
                    AND k.reference_id = ?3";
    let key = params![unit.run.get(), iteration, reference.get(), unit.id.get()];
    conn.execute(
        &format!(
            "INSERT INTO training_set_members (unit_id, position, offline_id, weight)
             SELECT ?4, row_number() OVER (ORDER BY s.place, o.ordinal) - 1, o.offline_id, s.weight
             FROM {USED} JOIN {logprobs}
             WHERE o.set_aside IS NULL AND k.set_aside IS NULL AND {FITS}"
        ),
        key,
    )?;
    let mut reasons = conn.prepare(&format!(
        "SELECT reason, count(*) FROM (SELECT coalesce(o.set_aside,
             CASE WHEN NOT {FITS} THEN 'over_long' END, k.set_aside) AS reason
             FROM {USED} LEFT JOIN {logprobs} WHERE ?4 = ?4)
         WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
    ))?;
    let set_aside = reasons
        .query_map(key, |row| Ok((row.get(0)?, count(row.get(1)?))))?
        .collect::<rusqlite::Result<Vec<(String, u64)>>>()?;
    let number =
        |text: &str| -> Result<u64> { Ok(count(conn.query_row(text, key, |row| row.get(0))?)) };
    let counts = OfflineCounts {
        used: number(&format!("SELECT count(*) FROM {USED} WHERE ?3 = ?3 AND ?4 = ?4"))?,
        trained: number(
            "SELECT count(*) FROM training_set_members WHERE unit_id = ?4 AND offline_id IS NOT NULL
             AND ?1 = ?1 AND ?2 = ?2 AND ?3 = ?3",
        )?,
        set_aside,
    };
    let counts = conservation::offline(counts)
        .map_err(|broken| StoreError::Conservation { iteration, broken })?;
    conn.execute(
        "UPDATE iteration_totals SET offline = ?3 WHERE run_id = ?1 AND iteration = ?2",
        params![unit.run.get(), iteration, int(counts.trained)],
    )?;
    if !counts.set_aside.is_empty() {
        let reasons: Vec<String> =
            counts.set_aside.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let text = format!(
            "of {} offline preferences, {} are trained on; set aside: {}",
            counts.used,
            counts.trained,
            reasons.join(", ")
        );
        tell(conn, unit, Level::Warn, "offline_set_aside", text, now_ms)?;
    }
    Ok(counts.trained)
}
