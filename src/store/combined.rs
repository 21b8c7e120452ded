//! An iteration's responses with all of their scores: what the combined score is made from.
//!
//! In: an iteration and its scorers. Out: responses in the order of the draw, one at a time, so that
//! memory stays that of one; each scorer's spread, and scores beside lengths for the penalty's fit.
//! May not enter: the rule that makes one score of several (`domain::label`).

use std::collections::BTreeMap;

use rlhfd_domain::label::Score;
use rlhfd_domain::label::combine::{Ladder, Moments, Normalise, Part, Scale, Spread, combined};
use rlhfd_domain::label::penalty::{Fit, LengthUnit, Measured, is_fitted_to};
use rlhfd_domain::response::Finish;
use rlhfd_domain::{ResponseId, RunId, ScorerId, limits};
use rusqlite::{Connection, Row, Rows, Statement, params};

use crate::checkpoints::Scorer;
use crate::error::{Result, StoreError};
use crate::open::Reader;
use crate::rows::count;

/// A scorer of an iteration, as pairing takes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScorerUse {
    /// The scorer.
    pub scorer: ScorerId,
    /// Its weight in the combined score; none: a canary.
    pub weight: Option<f64>,
    /// How its scores are made comparable.
    pub normalise: Normalise,
    /// What they are like; none where it labelled nothing.
    pub spread: Option<Spread>,
}

/// The length penalty of an iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalty {
    /// What lengths are counted in.
    pub unit: LengthUnit,
    /// Whether λ was fitted.
    pub fitted: bool,
    /// λ, and what it does.
    pub fit: Fit,
}

/// What makes the combined score of an iteration: its scorers, those with a weight first.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoring {
    /// The scorers, in the order in which their parts are added.
    pub scorers: Vec<ScorerUse>,
    /// What length takes off.
    pub penalty: Penalty,
}

/// A response with its scores.
pub(crate) struct Labelled {
    pub(crate) ordinal: i64,
    pub(crate) response: ResponseId,
    pub(crate) sample: u32,
    pub(crate) arm: String,
    pub(crate) finish: Finish,
    pub(crate) text_key: i64,
    characters: u32,
    tokens: u32,
    scores: Vec<(ScorerId, Option<Score>)>,
}

impl Labelled {
    /// Its combined score without a penalty, beside its length; none where a scorer gave no score.
    pub(crate) fn measured(&self, parts: &Parts) -> Option<Measured> {
        let of = |scorer: ScorerId| {
            self.scores.iter().find(|(by, _)| *by == scorer).and_then(|(_, score)| *score)
        };
        let scores: Vec<Option<Score>> = parts.scorers.iter().map(|scorer| of(*scorer)).collect();
        let length = match parts.unit {
            LengthUnit::Characters => self.characters,
            LengthUnit::Tokens => self.tokens,
        };
        combined(&parts.parts, &scores).map(|score| Measured { score, length })
    }
}

/// The scorers with a weight, and what lengths are counted in.
pub(crate) struct Parts {
    scorers: Vec<ScorerId>,
    parts: Vec<Part>,
    unit: LengthUnit,
}

impl Parts {
    /// Of an iteration; ranks are taken among all of its labels, which are final here.
    pub(crate) fn of(
        conn: &Connection,
        (run, iteration): (RunId, u32),
        scoring: &Scoring,
    ) -> Result<Self> {
        let (mut scorers, mut parts) = (Vec::new(), Vec::new());
        for used in &scoring.scorers {
            let Some(weight) = used.weight else { continue };
            let scale = match used.normalise {
                Normalise::None => Scale::AsIs,
                Normalise::Standard => Scale::Standard(used.spread),
                Normalise::Rank => Scale::Rank(ladder(conn, run, iteration, used.scorer)?),
            };
            scorers.push(used.scorer);
            parts.push(Part { weight, scale });
        }
        Ok(Self { scorers, parts, unit: scoring.penalty.unit })
    }
}

/// All scores that a scorer gave an iteration's responses.
fn ladder(conn: &Connection, run: RunId, iteration: u32, scorer: ScorerId) -> Result<Ladder> {
    let scores = conn
        .prepare_cached(
            "SELECT l.score FROM responses x JOIN labels l ON l.response_id = x.id
             WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
               AND l.scorer_id = ?3 AND l.versus_id IS NULL AND l.score IS NOT NULL",
        )?
        .query_map(params![run.get(), iteration, scorer.get()], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Ladder::of(scores))
}

/// The statement of a [`Walk`].
pub(crate) fn labelled(conn: &Connection) -> Result<Statement<'_>> {
    Ok(conn.prepare(
        "SELECT x.ordinal, x.id, x.sample, x.arm, x.finish, x.text_key, x.characters, x.tokens,
                l.scorer_id, l.score
         FROM responses x JOIN labels l ON l.response_id = x.id AND l.versus_id IS NULL
         WHERE x.purpose = 'generate' AND x.run_id = ?1 AND x.iteration = ?2
         ORDER BY x.ordinal, x.sample, l.scorer_id",
    )?)
}

/// Goes through an iteration's labelled responses in the order of the draw.
pub(crate) struct Walk<'s> {
    rows: Rows<'s>,
    waiting: Option<Labelled>,
}

impl<'s> Walk<'s> {
    pub(crate) fn new(
        statement: &'s mut Statement<'_>,
        run: RunId,
        iteration: u32,
    ) -> Result<Self> {
        Ok(Self { rows: statement.query(params![run.get(), iteration])?, waiting: None })
    }

    /// The next response with all of its scores.
    pub(crate) fn next(&mut self) -> Result<Option<Labelled>> {
        while let Some(row) = self.rows.next()? {
            let one = read(row)?;
            match &mut self.waiting {
                Some(waiting) if waiting.response == one.response => {
                    waiting.scores.extend(one.scores);
                }
                Some(_) => return Ok(self.waiting.replace(one)),
                None => self.waiting = Some(one),
            }
        }
        Ok(self.waiting.take())
    }
}

fn read(row: &Row<'_>) -> Result<Labelled> {
    let response = ResponseId(row.get(1)?);
    let finish: String = row.get(4)?;
    let score: Option<f64> = row.get(9)?;
    let score = score.map(Score::new).transpose().map_err(|error| StoreError::Conflict {
        what: "response",
        name: response.to_string(),
        why: format!("has a label that no scorer may give: {error}"),
    })?;
    Ok(Labelled {
        ordinal: row.get(0)?,
        response,
        sample: row.get(2)?,
        arm: row.get(3)?,
        finish: Finish::parse(&finish)?,
        text_key: row.get(5)?,
        characters: row.get(6)?,
        tokens: row.get(7)?,
        scores: vec![(ScorerId(row.get(8)?), score)],
    })
}

impl Reader {
    /// The scorers that label an iteration, by its plan of units, in the order of their rows.
    pub fn iteration_scorers(&self, run: RunId, iteration: u32) -> Result<Vec<Scorer>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT DISTINCT scorer_id FROM units
             WHERE run_id = ?1 AND iteration = ?2 AND stage = 'label' AND scorer_id IS NOT NULL
             ORDER BY scorer_id",
        )?;
        let ids: Vec<i64> = statement
            .query_map(params![run.get(), iteration], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        ids.into_iter().map(|id| self.scorer_by_id(ScorerId(id))).collect()
    }

    /// What each scorer's scores of an iteration's responses are like; one that labelled nothing is
    /// not among them.
    pub fn spreads(&self, run: RunId, iteration: u32) -> Result<BTreeMap<ScorerId, Spread>> {
        let mut statement = labelled(&self.conn)?;
        let mut walk = Walk::new(&mut statement, run, iteration)?;
        let mut moments: BTreeMap<ScorerId, Moments> = BTreeMap::new();
        while let Some(response) = walk.next()? {
            for (scorer, score) in response.scores {
                score.iter().for_each(|score| moments.entry(scorer).or_default().push(*score));
            }
        }
        let spread = |(scorer, moments): (_, Moments)| Some((scorer, moments.spread()?));
        Ok(moments.into_iter().filter_map(spread).collect())
    }

    /// Combined scores without a penalty beside lengths, in the order of the draw: of all responses
    /// that have one, or of a counted share of them where they are very many.
    pub fn measured(&self, run: RunId, iteration: u32, scoring: &Scoring) -> Result<Vec<Measured>> {
        let responses: i64 = self.conn.query_row(
            "SELECT count(*) FROM responses
             WHERE purpose = 'generate' AND run_id = ?1 AND iteration = ?2",
            params![run.get(), iteration],
            |row| row.get(0),
        )?;
        let (all, most) = (count(responses), limits::FIT_RESPONSES_MAX);
        let parts = Parts::of(&self.conn, (run, iteration), scoring)?;
        let mut statement = labelled(&self.conn)?;
        let mut walk = Walk::new(&mut statement, run, iteration)?;
        let mut rows = Vec::new();
        while let Some(response) = walk.next()? {
            let key = [u64::from(iteration), count(response.ordinal), u64::from(response.sample)];
            if is_fitted_to(&key, all, most) {
                rows.extend(response.measured(&parts));
            }
        }
        Ok(rows)
    }
}
