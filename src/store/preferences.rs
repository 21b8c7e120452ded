//! Pairing an iteration: the rule over combined scores, with the laws of conservation asserted.
//!
//! In: a finished pair unit, what makes its combined scores, and its rule. Out: rows of `preferences`
//! and `unpaired`, what shaped the scores, and the totals of generate, label and pair, in one
//! transaction that is rolled back where a law does not hold.
//! May not enter: the rule itself (`domain::preference`), the sum (`domain::label`).

use std::collections::BTreeMap;

use rlhfd_domain::conservation::{self, LabelCounts, PromptCounts};
use rlhfd_domain::label::Score;
use rlhfd_domain::preference::{Candidate, PairRule, Pairing, PromptKey, pair};
use rlhfd_domain::{RunId, ScorerId, UnitId};
use rusqlite::{Connection, params};

use crate::combined::{Labelled, Parts, ScorerUse, Scoring, Walk, labelled};
use crate::error::{Result, StoreError};
use crate::events::Level;
use crate::journal::finish;
use crate::open::Store;
use crate::rows::{count, found, int};
use crate::runs;
use crate::units::{Finish, tell};

/// What pairing gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairTotals {
    /// Prompts drawn, and what became of them.
    pub prompts: PromptCounts,
    /// Preferences.
    pub preferences: u64,
    /// Responses to the prompts that were not set aside.
    pub responses: u64,
}

impl Store {
    /// A finished pair unit: does the pairing itself.
    pub fn finish_pair(
        &mut self,
        end: &Finish,
        scoring: &Scoring,
        rule: &PairRule,
        now_ms: i64,
    ) -> Result<PairTotals> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let iteration = found(unit.iteration, "iteration of unit", unit.id)?;
            let of = Of { run: unit.run, iteration, unit: unit.id };
            let sums = pair_all(conn, &of, scoring, rule)?;
            let totals = assert_laws(conn, &of, scoring)?;
            write_fit(conn, &of, scoring, &sums)?;
            write_totals(conn, &of, scoring)?;
            let p = totals.prompts;
            let text = format!(
                "iteration {iteration}: {} prompts gave {} preferences; {} tied, {} without a pair, \
                 {} set aside",
                p.drawn, totals.preferences, p.tied, p.without_pair, p.set_aside
            );
            tell(conn, &unit, Level::Info, "paired", text, now_ms)?;
            Ok(totals)
        })
    }
}

struct Of {
    run: RunId,
    iteration: u32,
    unit: UnitId,
}

struct Drawn {
    ordinal: i64,
    prompt: i64,
    set_aside: Option<String>,
}

/// What became of the labelled responses.
#[derive(Default)]
struct Sums {
    scored: u64,
    unscored: u64,
    score: f64,
}

/// Walks the draw and its labelled responses side by side, both by ordinal, so that memory stays that
/// of one prompt.
fn pair_all(conn: &Connection, of: &Of, scoring: &Scoring, rule: &PairRule) -> Result<Sums> {
    let seed = runs::get(conn, of.run)?.seed;
    let mut draw = conn.prepare(
        "SELECT ordinal, prompt_id, set_aside FROM draws
         WHERE run_id = ?1 AND iteration = ?2 ORDER BY ordinal",
    )?;
    let mut statement = labelled(conn)?;
    let mut walk = Walk::new(&mut statement, of.run, of.iteration)?;
    let parts = Parts::of(conn, (of.run, of.iteration), scoring)?;
    let mut prompts = draw.query(params![of.run.get(), of.iteration])?;
    let mut waiting = walk.next()?;
    let mut sums = Sums::default();
    while let Some(row) = prompts.next()? {
        let drawn = Drawn { ordinal: row.get(0)?, prompt: row.get(1)?, set_aside: row.get(2)? };
        let mut candidates = Vec::new();
        let mut arms: BTreeMap<String, u32> = BTreeMap::new();
        while let Some(response) = waiting.take_if(|response| response.ordinal == drawn.ordinal) {
            let next = u32::try_from(arms.len()).unwrap_or(u32::MAX);
            let arm = *arms.entry(response.arm.clone()).or_insert(next);
            match response.measured(&parts) {
                Some(measured) => {
                    let score = measured.penalised(scoring.penalty.fit.lambda);
                    sums.scored += 1;
                    sums.score += score;
                    candidates.push(candidate(of, &response, arm, score)?);
                }
                None => sums.unscored += 1,
            }
            waiting = walk.next()?;
        }
        let key = PromptKey { seed, iteration: of.iteration, ordinal: count(drawn.ordinal) };
        write_pairing(conn, of, &drawn, &pair(&candidates, rule, &key))?;
    }
    Ok(sums)
}

fn candidate(of: &Of, response: &Labelled, arm: u32, score: f64) -> Result<Candidate> {
    let score = Score::new(score)
        .map_err(|error| StoreError::Misfit { unit: of.unit, why: error.to_string() })?;
    Ok(Candidate {
        response: response.response,
        sample: response.sample,
        arm,
        finish: response.finish,
        text_key: response.text_key,
        score,
    })
}

fn write_pairing(conn: &Connection, of: &Of, drawn: &Drawn, pairing: &Pairing) -> Result<()> {
    let (kind, reason) = match (&drawn.set_aside, pairing) {
        (Some(reason), _) => ("set_aside", reason.as_str()),
        (None, Pairing::Tie) => ("tie", "tie"),
        (None, Pairing::Without(reason)) => ("without_pair", reason.label()),
        (None, Pairing::Pairs(preferences)) => {
            let mut add = conn.prepare_cached(
                "INSERT INTO preferences (run_id, iteration, ordinal, rank, prompt_id, chosen_id,
                     rejected_id, chosen_score, rejected_score, unit_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            for (rank, preference) in (0_i64..).zip(preferences) {
                add.execute(params![
                    of.run.get(),
                    of.iteration,
                    drawn.ordinal,
                    rank,
                    drawn.prompt,
                    preference.chosen().response.get(),
                    preference.rejected().response.get(),
                    preference.chosen().score.get(),
                    preference.rejected().score.get(),
                    of.unit.get(),
                ])?;
            }
            return Ok(());
        }
    };
    conn.prepare_cached(
        "INSERT INTO unpaired (run_id, iteration, ordinal, kind, reason)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![of.run.get(), of.iteration, drawn.ordinal, kind, reason])?;
    Ok(())
}

/// Counts every side of the laws from its own table.
fn assert_laws(conn: &Connection, of: &Of, scoring: &Scoring) -> Result<PairTotals> {
    let key = params![of.run.get(), of.iteration];
    let number =
        |sql: &str| -> Result<u64> { Ok(count(conn.query_row(sql, key, |row| row.get(0))?)) };
    let of_kind = |kind: &str| {
        number(&format!(
            "SELECT count(*) FROM unpaired WHERE run_id = ?1 AND iteration = ?2 AND kind = '{kind}'"
        ))
    };
    let prompts = PromptCounts {
        drawn: number("SELECT count(*) FROM draws WHERE run_id = ?1 AND iteration = ?2")?,
        paired: number(
            "SELECT count(DISTINCT ordinal) FROM preferences WHERE run_id = ?1 AND iteration = ?2",
        )?,
        tied: of_kind("tie")?,
        without_pair: of_kind("without_pair")?,
        set_aside: of_kind("set_aside")?,
    };
    let broken = |broken| StoreError::Conservation { iteration: of.iteration, broken };
    conservation::prompts(prompts).map_err(broken)?;
    // What one policy wrote to a prompt that another could not answer stays, and is nothing to pair.
    let kept = number(
        "SELECT count(*) FROM responses x JOIN draws d
           ON d.run_id = x.run_id AND d.iteration = x.iteration AND d.ordinal = x.ordinal
         WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
           AND d.set_aside IS NULL",
    )?;
    assert_labels(conn, of, scoring, kept)?;
    let preferences =
        number("SELECT count(*) FROM preferences WHERE run_id = ?1 AND iteration = ?2")?;
    Ok(PairTotals { prompts, preferences, responses: kept })
}

/// Every scorer that the iteration's units name must have told about every response, and no other may
/// shape its scores. What each of them did is kept.
fn assert_labels(conn: &Connection, of: &Of, scoring: &Scoring, kept: u64) -> Result<()> {
    let mut scorers = conn.prepare(
        "SELECT s.id, s.name,
                (SELECT count(*) FROM responses x JOIN labels l ON l.response_id = x.id
                 WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
                   AND l.scorer_id = s.id AND l.versus_id IS NULL AND l.set_aside IS NULL),
                (SELECT count(*) FROM responses x JOIN labels l ON l.response_id = x.id
                 WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
                   AND l.scorer_id = s.id AND l.versus_id IS NULL
                   AND l.set_aside IS NOT NULL)
         FROM scorers s WHERE s.id IN (SELECT scorer_id FROM units
             WHERE run_id = ?1 AND iteration = ?2 AND stage = 'label')",
    )?;
    let mut rows = scorers.query(params![of.run.get(), of.iteration])?;
    let mut told = 0;
    while let Some(row) = rows.next()? {
        let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let (labelled, set_aside) = (count(row.get(2)?), count(row.get(3)?));
        let counts = LabelCounts { kept, labelled, set_aside };
        conservation::labels(&name, counts)
            .map_err(|broken| StoreError::Conservation { iteration: of.iteration, broken })?;
        if let Some(used) = scoring.scorers.iter().find(|used| used.scorer == ScorerId(id)) {
            write_scorer(conn, of, used, &counts)?;
            told += 1;
        }
    }
    if told != scoring.scorers.len() {
        let (wanted, unit) = (scoring.scorers.len(), of.unit);
        let why = format!("{wanted} scorers make its scores, of which {told} labelled it");
        return Err(StoreError::Misfit { unit, why });
    }
    Ok(())
}

fn write_scorer(conn: &Connection, of: &Of, used: &ScorerUse, counts: &LabelCounts) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO scorer_totals (run_id, iteration, scorer_id, weight, normalise, labelled,
             set_aside, score_mean, score_deviation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        of.run.get(),
        of.iteration,
        used.scorer.get(),
        used.weight,
        used.normalise.label(),
        int(counts.labelled),
        int(counts.set_aside),
        used.spread.map(|spread| spread.mean),
        used.spread.map(|spread| spread.deviation),
    ])?;
    Ok(())
}

fn write_fit(conn: &Connection, of: &Of, scoring: &Scoring, sums: &Sums) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "counts of rows are far below 2^53")]
    let mean = (sums.scored > 0).then(|| sums.score / sums.scored as f64);
    let penalty = &scoring.penalty;
    conn.execute(
        "INSERT INTO label_fits (run_id, iteration, responses, unscored, score_mean, length_unit,
             length_penalty, fitted, correlation_before, correlation_after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            of.run.get(),
            of.iteration,
            int(sums.scored),
            int(sums.unscored),
            mean,
            penalty.unit.label(),
            penalty.fit.lambda,
            penalty.fitted,
            penalty.fit.before,
            penalty.fit.after,
        ],
    )?;
    Ok(())
}

/// The aggregates of generate, label and pair, once: the views never scan responses.
fn write_totals(conn: &Connection, of: &Of, scoring: &Scoring) -> Result<()> {
    let first = scoring.scorers.iter().find(|used| used.weight.is_some());
    let canary = scoring.scorers.iter().find(|used| used.weight.is_none());
    let mean = |used: Option<&ScorerUse>| used.and_then(|used| used.spread).map(|of| of.mean);
    let fit = &scoring.penalty.fit;
    conn.execute(
        "UPDATE iteration_totals SET
             (responses, response_tokens_mean, truncated_share) =
                 (SELECT count(*), avg(tokens), avg(finish = 'length') FROM responses
                  WHERE purpose = 'generate' AND run_id = ?1 AND iteration = ?2),
             score_mean = ?3, canary_score_mean = ?4, length_penalty = ?5,
             score_length_correlation = ?6,
             (preferences, score_gap_mean) =
                 (SELECT count(*), avg(chosen_score - rejected_score) FROM preferences
                  WHERE run_id = ?1 AND iteration = ?2),
             (ties, without_pair, set_aside) =
                 (SELECT coalesce(sum(kind = 'tie'), 0), coalesce(sum(kind = 'without_pair'), 0),
                         coalesce(sum(kind = 'set_aside'), 0)
                  FROM unpaired WHERE run_id = ?1 AND iteration = ?2),
             generate_s = (SELECT coalesce(sum(seconds), 0) FROM units WHERE run_id = ?1
                 AND iteration = ?2 AND stage IN ('prompts', 'generate')),
             label_s = (SELECT coalesce(sum(seconds), 0) FROM units WHERE run_id = ?1
                 AND iteration = ?2 AND stage IN ('label', 'pair'))
         WHERE run_id = ?1 AND iteration = ?2",
        params![of.run.get(), of.iteration, mean(first), mean(canary), fit.lambda, fit.after],
    )?;
    Ok(())
}
