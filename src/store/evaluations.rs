//! Evaluations: a policy's answers beside those of its baseline, and the rows that say how they
//! compare.
//!
//! In: lanes, scorers, temperatures. Out: paired scores for `domain::evaluation`, rows of
//! `evaluations`. May not enter: statistics.

use rlhfd_domain::evaluation::{Comparison, Estimate, PairedScore, k3_response};
use rlhfd_domain::{CheckpointId, RunId, ScorerId, WorkKind, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::bytes::to_floats;
use crate::error::Result;
use crate::open::Reader;
use crate::rows::{count, int};
use crate::units::UnitRow;

/// Which answers are set side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct PairedAnswers<'a> {
    /// The run.
    pub run: RunId,
    /// The policy's lane.
    pub lane: &'a str,
    /// The baseline's lane.
    pub baseline_lane: &'a str,
    /// Whose scores.
    pub scorer: ScorerId,
    /// At which temperature.
    pub temperature: f64,
    /// Ordinals 0..prompts of the evaluation list.
    pub prompts: u64,
}

/// An evaluation to write.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvaluation {
    /// The iteration whose policy it is; 0 for the initial policy itself.
    pub iteration: u32,
    /// The policy.
    pub policy: CheckpointId,
    /// What it is compared with.
    pub baseline: CheckpointId,
    /// Whose scores.
    pub scorer: ScorerId,
    /// At which temperature.
    pub temperature: f64,
    /// The comparison.
    pub comparison: Comparison,
    /// What the policy's responses look like.
    pub shape: LaneShape,
    /// Divergence from the reference in nats a response; at temperature 1 only.
    pub kl_k3: Option<f64>,
}

/// What a policy's responses at one temperature look like, by whomever they are scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LaneShape {
    /// Mean length, in tokens.
    pub response_tokens_mean: f64,
    /// Share that reached the limit of new tokens.
    pub truncated_share: f64,
    /// 1 − different texts / responses: to one prompt or to several.
    pub repeated_share: f64,
    /// −Σ log-prob / Σ tokens, in nats a token: an estimate of the entropy of the next token, which
    /// only responses at temperature 1 give.
    pub entropy: Option<f64>,
}

/// A row of `evaluations`.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The iteration whose policy it is; 0 for the initial policy itself.
    pub iteration: u32,
    /// The policy's name.
    pub policy: String,
    /// The baseline's name.
    pub baseline: String,
    /// The scorer's name.
    pub scorer: String,
    /// At which temperature.
    pub temperature: f64,
    /// Prompts that both answered.
    pub prompts: u64,
    /// Paired answers.
    pub responses: u64,
    /// The policy's mean score.
    pub score_mean: f64,
    /// Mean of policy − baseline score.
    pub gain: Estimate,
    /// Share of paired answers that the policy wins.
    pub win_rate: Estimate,
    /// Mean length of the policy's responses, in tokens.
    pub response_tokens_mean: f64,
    /// Share of them that reached the limit.
    pub truncated_share: f64,
    /// Divergence from the reference in nats a response.
    pub kl_k3: Option<f64>,
    /// 1 − different texts / responses.
    pub repeated_share: f64,
    /// In nats a token.
    pub entropy: Option<f64>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Evaluation> {
    Ok(Evaluation {
        iteration: row.get(0)?,
        policy: row.get(1)?,
        baseline: row.get(2)?,
        scorer: row.get(3)?,
        temperature: row.get(4)?,
        prompts: count(row.get(5)?),
        responses: count(row.get(6)?),
        score_mean: row.get(7)?,
        gain: Estimate { value: row.get(8)?, low: row.get(9)?, high: row.get(10)? },
        win_rate: Estimate { value: row.get(11)?, low: row.get(12)?, high: row.get(13)? },
        response_tokens_mean: row.get(14)?,
        truncated_share: row.get(15)?,
        kl_k3: row.get(16)?,
        repeated_share: row.get(17)?,
        entropy: row.get(18)?,
    })
}

/// The question for what `labels` say of two answers `x` and `y` to one prompt, paired by sample.
fn paired(said: &str, labels: &str, is_said: &str) -> String {
    format!(
        "SELECT x.ordinal, {said}
         FROM responses x
         JOIN responses y ON y.purpose = 'evaluate' AND y.run_id = x.run_id AND y.lane = ?3
          AND y.ordinal = x.ordinal AND y.sample = x.sample AND y.temperature = x.temperature
         {labels}
         WHERE x.purpose = 'evaluate' AND x.run_id = ?1 AND x.lane = ?2 AND x.ordinal < ?6
           AND x.temperature = ?5 AND {is_said}
         ORDER BY x.ordinal, x.sample"
    )
}

impl Reader {
    /// Scores of two policies on the same prompts, paired by prompt and sample.
    pub fn paired_scores(&self, of: &PairedAnswers<'_>) -> Result<Vec<PairedScore>> {
        let question = paired(
            "lx.score, ly.score",
            "JOIN labels lx ON lx.response_id = x.id AND lx.scorer_id = ?4 AND lx.versus_id IS NULL
             JOIN labels ly ON ly.response_id = y.id AND ly.scorer_id = ?4 AND ly.versus_id IS NULL",
            "lx.score IS NOT NULL AND ly.score IS NOT NULL",
        );
        self.ask_paired(&question, of, |row| {
            Ok(PairedScore::by_scores(count(row.get(0)?), row.get(1)?, row.get(2)?))
        })
    }

    /// What a preference model says of two policies' answers, paired as above; a policy beside itself
    /// is even.
    pub fn paired_preferences(&self, of: &PairedAnswers<'_>) -> Result<Vec<PairedScore>> {
        let question = paired(
            "iif(x.id = y.id, 0.5, l.preference)",
            "LEFT JOIN labels l ON l.response_id = x.id AND l.versus_id = y.id AND l.scorer_id = ?4",
            "(x.id = y.id OR l.preference IS NOT NULL)",
        );
        self.ask_paired(&question, of, |row| {
            Ok(PairedScore::by_preference(count(row.get(0)?), row.get(1)?))
        })
    }

    fn ask_paired(
        &self,
        question: &str,
        of: &PairedAnswers<'_>,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<PairedScore>,
    ) -> Result<Vec<PairedScore>> {
        let key = params![
            of.run.get(),
            of.lane,
            of.baseline_lane,
            of.scorer.get(),
            of.temperature,
            int(of.prompts)
        ];
        let mut statement = self.conn.prepare_cached(question)?;
        let rows = statement.query_map(key, read)?.collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// What a lane's responses look like; none where there are none.
    pub fn lane_shape(
        &self,
        run: RunId,
        lane: &str,
        temperature: f64,
        prompts: u64,
    ) -> Result<Option<LaneShape>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT avg(tokens), avg(finish = 'length'),
                    1.0 - 1.0 * count(DISTINCT text_key) / count(*),
                    iif(?3 = 1.0, -sum(logprob) / sum(tokens), NULL)
             FROM responses
             WHERE purpose = 'evaluate' AND run_id = ?1 AND lane = ?2 AND temperature = ?3
               AND ordinal < ?4 HAVING count(*) > 0",
        )?;
        let key = params![run.get(), lane, temperature, int(prompts)];
        let shape = statement.query_row(key, |row| {
            Ok(LaneShape {
                response_tokens_mean: row.get(0)?,
                truncated_share: row.get(1)?,
                repeated_share: row.get(2)?,
                entropy: row.get(3)?,
            })
        });
        Ok(shape.optional()?)
    }

    /// The k3 estimate of the divergence from a reference over a lane's responses at temperature 1, in
    /// nats a response; none where no log-probs are known.
    pub fn kl_k3(
        &self,
        run: RunId,
        lane: &str,
        reference: CheckpointId,
        prompts: u64,
    ) -> Result<Option<f64>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT t.logprobs, k.logprobs FROM responses x
             JOIN response_texts t ON t.response_id = x.id
             JOIN reference_logprobs k ON k.response_id = x.id AND k.reference_id = ?3
             WHERE x.purpose = 'evaluate' AND x.run_id = ?1 AND x.lane = ?2 AND x.ordinal < ?4
               AND x.temperature = 1.0
             ORDER BY x.ordinal, x.sample",
        )?;
        let mut rows = statement.query(params![run.get(), lane, reference.get(), int(prompts)])?;
        let (mut sum, mut responses) = (0.0, 0.0);
        while let Some(row) = rows.next()? {
            let new = to_floats(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?);
            let old = to_floats(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?);
            if let Some(one) = k3_response(&new, &old) {
                sum += one;
                responses += 1.0;
            }
        }
        Ok((responses > 0.0).then(|| sum / responses))
    }

    /// For how many of the first evaluation prompts a lane has done this work already, so that the
    /// initial policy's answers are made once per run, and scored once by each scorer: under an
    /// unchanged name another model may stand.
    pub fn lane_done(
        &self,
        run: RunId,
        lane: &str,
        work: WorkKind,
        scorer: Option<ScorerId>,
    ) -> Result<u64> {
        let mut statement = self.conn.prepare_cached(
            "SELECT from_item, to_item FROM units
             WHERE run_id = ?1 AND lane = ?2 AND lane <> '' AND work = ?3
               AND (?4 IS NULL OR scorer_id = ?4) AND state IN ('done', 'set_aside')
             ORDER BY from_item",
        )?;
        let scorer = scorer.map(ScorerId::get);
        let mut rows = statement.query(params![run.get(), lane, work.label(), scorer])?;
        let mut done = 0;
        while let Some(row) = rows.next()? {
            let (from, to): (i64, i64) = (row.get(0)?, row.get(1)?);
            if count(from) > done {
                break;
            }
            done = done.max(count(to));
        }
        Ok(done)
    }

    /// All evaluations of a run, by iteration, policy, baseline and temperature.
    pub fn evaluations(&self, run: RunId) -> Result<Vec<Evaluation>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT e.iteration, p.name, b.name, s.name, e.temperature, e.prompts, e.responses,
                    e.score_mean, e.gain, e.gain_low, e.gain_high, e.win_rate, e.win_rate_low,
                    e.win_rate_high, e.response_tokens_mean, e.truncated_share, e.kl_k3,
                    e.repeated_share, e.entropy
             FROM evaluations e JOIN checkpoints p ON p.id = e.policy_id
             JOIN checkpoints b ON b.id = e.baseline_id JOIN scorers s ON s.id = e.scorer_id
             WHERE e.run_id = ?1 ORDER BY e.iteration, e.policy_id, e.baseline_id, s.name, e.temperature
             LIMIT ?2",
        )?;
        let rows = statement
            .query_map(params![run.get(), limits::LIST_ROWS_MAX], read)?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }
}

pub(crate) fn insert(conn: &Connection, unit: &UnitRow, rows: &[NewEvaluation]) -> Result<()> {
    let mut add = conn.prepare_cached(
        "INSERT INTO evaluations (run_id, iteration, policy_id, baseline_id, scorer_id,
             temperature, prompts, responses, score_mean, gain, gain_low, gain_high,
             win_rate, win_rate_low, win_rate_high, response_tokens_mean, truncated_share,
             kl_k3, unit_id, repeated_share, entropy)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                 ?18, ?19, ?20, ?21)
         ON CONFLICT DO NOTHING",
    )?;
    for row in rows {
        let c = &row.comparison;
        add.execute(params![
            unit.run.get(),
            row.iteration,
            row.policy.get(),
            row.baseline.get(),
            row.scorer.get(),
            row.temperature,
            int(c.prompts),
            int(c.pairs),
            c.score_mean,
            c.gain.value,
            c.gain.low,
            c.gain.high,
            c.win_rate.value,
            c.win_rate.low,
            c.win_rate.high,
            row.shape.response_tokens_mean,
            row.shape.truncated_share,
            row.kl_k3,
            unit.id.get(),
            row.shape.repeated_share,
            row.shape.entropy
        ])?;
    }
    Ok(())
}
