//! Pairing an iteration: best against worst, with the laws of conservation asserted.
//!
//! In: a finished pair unit and its rule. Out: rows of `preferences` and `unpaired`, and the totals of
//! generate, label and pair, in one transaction that is rolled back where a law does not hold.
//! May not enter: the rule itself (`domain::preference`).

use rlhfd_domain::conservation::{self, LabelCounts, PromptCounts};
use rlhfd_domain::label::Score;
use rlhfd_domain::preference::{Candidate, Pairing, best_worst};
use rlhfd_domain::{ResponseId, RunId, ScorerId, UnitId};
use rusqlite::{Connection, params};

use crate::error::{Result, StoreError};
use crate::events::Level;
use crate::journal::finish;
use crate::open::Store;
use crate::rows::{count, found};
use crate::units::{Finish, tell};

/// How an iteration is paired.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairRule {
    /// Whose scores count.
    pub scorer: ScorerId,
    /// The floor of chosen − rejected score; 0: any difference counts.
    pub score_gap_min: f64,
}

/// What pairing gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairTotals {
    /// Prompts drawn, and what became of them.
    pub prompts: PromptCounts,
    /// Preferences.
    pub preferences: u64,
    /// Responses.
    pub responses: u64,
}

impl Store {
    /// A finished pair unit: does the pairing itself.
    pub fn finish_pair(
        &mut self,
        end: &Finish,
        rule: &PairRule,
        now_ms: i64,
    ) -> Result<PairTotals> {
        self.transact(|conn| {
            let unit = finish(conn, end, now_ms)?;
            let iteration = found(unit.iteration, "iteration of unit", unit.id)?;
            let of = Of { run: unit.run, iteration, unit: unit.id };
            pair_all(conn, &of, rule)?;
            let totals = assert_laws(conn, &of)?;
            write_totals(conn, &of, rule)?;
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

/// Walks the draw and its labelled responses side by side, both by ordinal, so that memory stays that
/// of one prompt.
fn pair_all(conn: &Connection, of: &Of, rule: &PairRule) -> Result<()> {
    let mut draw = conn.prepare(
        "SELECT ordinal, prompt_id, set_aside FROM draws
         WHERE run_id = ?1 AND iteration = ?2 ORDER BY ordinal",
    )?;
    let mut labelled = conn.prepare(
        "SELECT x.ordinal, x.id, x.sample, x.text_key, l.score
         FROM responses x JOIN labels l ON l.response_id = x.id
         WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
           AND l.scorer_id = ?3 AND l.versus_id IS NULL AND l.score IS NOT NULL
         ORDER BY x.ordinal, x.sample",
    )?;
    let mut prompts = draw.query(params![of.run.get(), of.iteration])?;
    let mut rows = labelled.query(params![of.run.get(), of.iteration, rule.scorer.get()])?;
    let mut waiting: Option<(i64, Candidate)> = next_candidate(&mut rows, of)?;
    while let Some(row) = prompts.next()? {
        let drawn = Drawn { ordinal: row.get(0)?, prompt: row.get(1)?, set_aside: row.get(2)? };
        let mut candidates = Vec::new();
        while let Some((ordinal, candidate)) = waiting
            && ordinal == drawn.ordinal
        {
            candidates.push(candidate);
            waiting = next_candidate(&mut rows, of)?;
        }
        write_pairing(conn, of, &drawn, &best_worst(&candidates, rule.score_gap_min))?;
    }
    Ok(())
}

fn next_candidate(rows: &mut rusqlite::Rows<'_>, of: &Of) -> Result<Option<(i64, Candidate)>> {
    let Some(row) = rows.next()? else { return Ok(None) };
    let score = Score::new(row.get(4)?)
        .map_err(|error| StoreError::Misfit { unit: of.unit, why: error.to_string() })?;
    let candidate = Candidate {
        response: ResponseId(row.get(1)?),
        sample: row.get(2)?,
        text_key: row.get(3)?,
        score,
    };
    Ok(Some((row.get(0)?, candidate)))
}

fn write_pairing(conn: &Connection, of: &Of, drawn: &Drawn, pairing: &Pairing) -> Result<()> {
    let (kind, reason) = match (&drawn.set_aside, pairing) {
        (Some(reason), _) => ("set_aside", reason.as_str()),
        (None, Pairing::Tie) => ("tie", "tie"),
        (None, Pairing::Without(reason)) => ("without_pair", reason.label()),
        (None, Pairing::Pair(preference)) => {
            conn.prepare_cached(
                "INSERT INTO preferences (run_id, iteration, ordinal, prompt_id, chosen_id,
                     rejected_id, chosen_score, rejected_score, unit_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                of.run.get(),
                of.iteration,
                drawn.ordinal,
                drawn.prompt,
                preference.chosen().response.get(),
                preference.rejected().response.get(),
                preference.chosen().score.get(),
                preference.rejected().score.get(),
                of.unit.get(),
            ])?;
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
fn assert_laws(conn: &Connection, of: &Of) -> Result<PairTotals> {
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
    let kept = number(
        "SELECT count(*) FROM responses
         WHERE purpose = 'generate' AND run_id = ?1 AND iteration = ?2",
    )?;
    // Every scorer that the iteration's units name must have told about every response.
    let mut scorers = conn.prepare(
        "SELECT s.name,
                (SELECT count(*) FROM responses x JOIN labels l ON l.response_id = x.id
                 WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
                   AND l.scorer_id = s.id AND l.set_aside IS NULL),
                (SELECT count(*) FROM responses x JOIN labels l ON l.response_id = x.id
                 WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
                   AND l.scorer_id = s.id AND l.set_aside IS NOT NULL)
         FROM scorers s WHERE s.id IN (SELECT scorer_id FROM units
             WHERE run_id = ?1 AND iteration = ?2 AND stage = 'label')",
    )?;
    let mut rows = scorers.query(key)?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let labelled = count(row.get(1)?);
        let set_aside = count(row.get(2)?);
        conservation::labels(&name, LabelCounts { kept, labelled, set_aside }).map_err(broken)?;
    }
    let preferences =
        number("SELECT count(*) FROM preferences WHERE run_id = ?1 AND iteration = ?2")?;
    Ok(PairTotals { prompts, preferences, responses: kept })
}

/// The aggregates of generate, label and pair, once: the views never scan responses.
fn write_totals(conn: &Connection, of: &Of, rule: &PairRule) -> Result<()> {
    conn.execute(
        "UPDATE iteration_totals SET
             (responses, response_tokens_mean, truncated_share) =
                 (SELECT count(*), avg(tokens), avg(finish = 'length') FROM responses
                  WHERE purpose = 'generate' AND run_id = ?1 AND iteration = ?2),
             score_mean = (SELECT avg(l.score) FROM responses x JOIN labels l ON l.response_id = x.id
                 WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
                   AND l.scorer_id = ?3),
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
        params![of.run.get(), of.iteration, rule.scorer.get()],
    )?;
    Ok(())
}
