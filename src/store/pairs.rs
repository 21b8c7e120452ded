//! Training pairs, page by page: what control writes into an iteration folder's pairs.jsonl.
//!
//! In: a train unit whose set is fixed. Out: `TrainingPair`s in training order, and a few of them with what
//! policy and reference gave each token, for the check before the first step. May not enter: files.

use rlhfd_domain::{UnitId, limits};
use rusqlite::{Row, params};

use crate::bytes::{to_floats, to_ids};
use crate::error::Result;
use crate::items::reference_of;
use crate::iterations;
use crate::open::Reader;
use crate::rows::{count, found, int};
use crate::units::get;

/// A pair as it is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingPair {
    /// Its place in the training order, from 0.
    pub position: u64,
    /// Its weight in the loss.
    pub weight: f64,
    /// The iteration that it was collected in; 0: it is an offline preference.
    pub iteration: u32,
    /// Its prompt's place in that draw, or its own in the run's list of offline pairs.
    pub ordinal: u64,
    /// Where a prompt gives several.
    pub rank: u32,
    /// The prompt's token ids.
    pub prompt_ids: Vec<u32>,
    /// The chosen response's token ids.
    pub chosen_ids: Vec<u32>,
    /// The rejected response's.
    pub rejected_ids: Vec<u32>,
    /// Log-prob of the chosen response under the reference, in nats, summed.
    pub reference_chosen: f64,
    /// That of the rejected one.
    pub reference_rejected: f64,
    /// What the scorer gave the chosen one; offline preferences have no scores.
    pub chosen_score: Option<f64>,
    /// What it gave the rejected one.
    pub rejected_score: Option<f64>,
}

/// A pair with the stored log-probs of each token, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPair {
    /// The pair.
    pub pair: TrainingPair,
    /// The numbers of the chosen and the rejected sample; an offline pair has none.
    pub samples: Option<[u32; 2]>,
    /// What the policy gave when it wrote them; none where it did not.
    pub policy: [Option<Vec<f32>>; 2],
    /// What the reference gave.
    pub reference: [Vec<f32>; 2],
}

fn read(row: &Row<'_>) -> rusqlite::Result<TrainingPair> {
    Ok(TrainingPair {
        position: count(row.get(0)?),
        weight: row.get(1)?,
        iteration: row.get(2)?,
        ordinal: count(row.get(3)?),
        rank: row.get(4)?,
        prompt_ids: to_ids(row.get_ref(5)?.as_blob()?),
        chosen_ids: to_ids(row.get_ref(6)?.as_blob()?),
        rejected_ids: to_ids(row.get_ref(7)?.as_blob()?),
        reference_chosen: row.get(8)?,
        reference_rejected: row.get(9)?,
        chosen_score: row.get(10)?,
        rejected_score: row.get(11)?,
    })
}

impl Reader {
    /// Pairs of a train unit after a position, in order; at most a page.
    pub fn training_pairs(
        &self,
        unit: UnitId,
        after: Option<u64>,
        rows: u32,
    ) -> Result<Vec<TrainingPair>> {
        let row = get(&self.conn, unit)?;
        let reference = reference_of(&self.conn, &row)?;
        let mut statement = self.conn.prepare_cached(
            "SELECT m.position, m.weight, f.iteration, f.ordinal, f.rank, i.ids, c.ids, r.ids,
                    kc.logprob, kr.logprob, f.chosen_score, f.rejected_score
             FROM training_set_members m
             JOIN preferences f ON f.id = m.preference_id
             JOIN prompt_ids i ON i.prompt_id = f.prompt_id AND i.run_id = f.run_id
             JOIN response_texts c ON c.response_id = f.chosen_id
             JOIN response_texts r ON r.response_id = f.rejected_id
             JOIN reference_logprobs kc
               ON kc.response_id = f.chosen_id AND kc.reference_id = ?2
             JOIN reference_logprobs kr
               ON kr.response_id = f.rejected_id AND kr.reference_id = ?2
             WHERE m.unit_id = ?1 AND m.position > ?3
             UNION ALL
             SELECT m.position, m.weight, 0, o.ordinal, 0, d.prompt_ids, d.chosen_ids, d.rejected_ids,
                    k.chosen, k.rejected, NULL, NULL
             FROM training_set_members m
             JOIN offline_pairs o ON o.offline_id = m.offline_id AND o.run_id = ?5
             JOIN offline_ids d ON d.run_id = o.run_id AND d.ordinal = o.ordinal
             JOIN offline_logprobs k
               ON k.run_id = o.run_id AND k.ordinal = o.ordinal AND k.reference_id = ?2
             WHERE m.unit_id = ?1 AND m.position > ?3
             ORDER BY 1 LIMIT ?4",
        )?;
        let after = after.map_or(-1, int);
        let rows = rows.min(limits::PAIRS_PAGE_ROWS);
        let key = params![unit.get(), reference.get(), after, rows, row.run.get()];
        let pairs = statement.query_map(key, read)?.collect::<rusqlite::Result<_>>()?;
        Ok(pairs)
    }

    /// A few of the pairs of an update: first those whose both sides its policy wrote, then those of its
    /// own iteration, then earlier ones, then offline ones; in training order.
    pub fn stored_pairs(&self, unit: UnitId, pairs_max: u32) -> Result<Vec<StoredPair>> {
        let row = get(&self.conn, unit)?;
        let iteration = found(row.iteration, "iteration of unit", unit)?;
        let reference = reference_of(&self.conn, &row)?;
        let policy = iterations::get(&self.conn, row.run, iteration)?.policy_in;
        let mut statement = self.conn.prepare_cached(FEW)?;
        let key =
            params![unit.get(), reference.get(), iteration, policy.get(), pairs_max, row.run.get()];
        let rows = statement.query_map(key, |row| {
            let floats = |column| -> rusqlite::Result<Option<Vec<f32>>> {
                let value = row.get_ref(column)?;
                Ok(value.as_blob_or_null()?.map(to_floats))
            };
            let samples: [Option<u32>; 2] = [row.get(12)?, row.get(13)?];
            Ok(StoredPair {
                pair: read(row)?,
                samples: samples[0].zip(samples[1]).map(|(chosen, rejected)| [chosen, rejected]),
                policy: [floats(14)?, floats(15)?],
                reference: [floats(16)?.unwrap_or_default(), floats(17)?.unwrap_or_default()],
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// The few are found first, so that nothing large is sorted.
const FEW: &str = "
WITH few AS MATERIALIZED (
    SELECT m.position, m.weight, m.preference_id, m.offline_id,
           row_number() OVER (ORDER BY
               coalesce((c.policy_id = ?4) + (r.policy_id = ?4), 0) DESC,
               coalesce(f.iteration = ?3, 0) DESC, m.offline_id IS NOT NULL, m.position) AS place
    FROM training_set_members m
    LEFT JOIN preferences f ON f.id = m.preference_id
    LEFT JOIN responses c ON c.id = f.chosen_id
    LEFT JOIN responses r ON r.id = f.rejected_id
    WHERE m.unit_id = ?1 ORDER BY place LIMIT ?5)
SELECT m.position, m.weight, f.iteration, f.ordinal, f.rank, i.ids, ct.ids, rt.ids,
       kc.logprob, kr.logprob, f.chosen_score, f.rejected_score, c.sample, r.sample,
       iif(c.policy_id = ?4, ct.logprobs, NULL), iif(r.policy_id = ?4, rt.logprobs, NULL),
       kc.logprobs, kr.logprobs, m.place
FROM few m
JOIN preferences f ON f.id = m.preference_id
JOIN prompt_ids i ON i.prompt_id = f.prompt_id AND i.run_id = f.run_id
JOIN responses c ON c.id = f.chosen_id JOIN responses r ON r.id = f.rejected_id
JOIN response_texts ct ON ct.response_id = c.id
JOIN response_texts rt ON rt.response_id = r.id
JOIN reference_logprobs kc ON kc.response_id = c.id AND kc.reference_id = ?2
JOIN reference_logprobs kr ON kr.response_id = r.id AND kr.reference_id = ?2
UNION ALL
SELECT m.position, m.weight, 0, o.ordinal, 0, d.prompt_ids, d.chosen_ids, d.rejected_ids,
       k.chosen, k.rejected, NULL, NULL, NULL, NULL, NULL, NULL,
       k.chosen_logprobs, k.rejected_logprobs, m.place
FROM few m
JOIN offline_pairs o ON o.offline_id = m.offline_id AND o.run_id = ?6
JOIN offline_ids d ON d.run_id = o.run_id AND d.ordinal = o.ordinal
JOIN offline_logprobs k
  ON k.run_id = o.run_id AND k.ordinal = o.ordinal AND k.reference_id = ?2
ORDER BY 19";
