//! Pair: an iteration's scores become one a response, and its responses preferences, done by control
//! in one transaction that asserts the conservation laws.
//!
//! In: an iteration whose responses are labelled. Out: preferences, ties, prompts without a pair, and
//! what shaped the scores. May not enter: the rules themselves (`rlhfd_domain::label`,
//! `rlhfd_domain::preference`).

use std::collections::BTreeMap;

use rlhfd_config::{CheckedConfig, LabelConfig, PairArms, PairConfig, PairRule, ScorerRole};
use rlhfd_domain::RunId;
use rlhfd_domain::label::combine::Normalise;
use rlhfd_domain::label::penalty::{self, Fit, LengthUnit};
use rlhfd_domain::preference::{self as rule, Choice};
use rlhfd_protocol::worker::Summary;
use rlhfd_store::{Penalty, Reader, Scorer, ScorerUse, Scoring, StoreError};

use crate::actors::stage::{Perform, StageContext, StageError, finish};
use crate::handles::now_ms;

/// Pairs an iteration.
pub async fn perform(ctx: &StageContext, work: &Perform) -> Result<(), StageError> {
    let unit = &work.unit;
    let config = ctx.config_of(unit).await?;
    let Some(iteration) = unit.iteration else {
        return Err(StageError::Input(format!("the unit {} names no iteration", unit.key)));
    };
    let (run, label) = (unit.run, config.label.clone());
    let scoring = ctx.store.read(move |r| scoring(r, run, iteration, &label)).await?;
    let rule = pair_rule(&config.pair);
    let finish = finish(unit, work.attempt, &Summary::default());
    ctx.write_patiently(move |s| s.finish_pair(&finish, &scoring, &rule, now_ms())).await?;
    Ok(())
}

/// The iteration's scorers that its configuration names, those with a weight first: the first one's
/// figures stand for the iteration.
#[must_use]
pub fn in_order(config: &CheckedConfig, known: &[Scorer]) -> Vec<Scorer> {
    let by_name = |name: &str| known.iter().find(|scorer| scorer.name == name).cloned();
    config.label.scorers_first_weighted().filter_map(|used| by_name(&used.name)).collect()
}

/// What makes the combined scores. Labels are final here, so that doing it again gives the same.
fn scoring(
    reader: &Reader,
    run: RunId,
    iteration: u32,
    label: &LabelConfig,
) -> Result<Scoring, StoreError> {
    let rows = reader.iteration_scorers(run, iteration)?;
    let ids: BTreeMap<&str, _> = rows.iter().map(|row| (row.name.as_str(), row.id)).collect();
    let spreads = reader.spreads(run, iteration)?;
    let scorers = label.scorers_first_weighted().filter_map(|used| {
        let scorer = *ids.get(used.name.as_str())?;
        Some(ScorerUse {
            scorer,
            weight: match used.role {
                ScorerRole::Weighted(weight) => Some(weight),
                ScorerRole::Canary => None,
            },
            normalise: match used.normalise {
                rlhfd_config::Normalise::None => Normalise::None,
                rlhfd_config::Normalise::Standard => Normalise::Standard,
                rlhfd_config::Normalise::Rank => Normalise::Rank,
            },
            spread: spreads.get(&scorer).copied(),
        })
    });
    let nothing = Fit { lambda: 0.0, before: None, after: None };
    let mut scoring = Scoring {
        scorers: scorers.collect(),
        penalty: Penalty {
            // Without a penalty the correlation is told all the same, in the paper's unit.
            unit: match label.length_unit {
                Some(rlhfd_config::LengthUnit::Tokens) => LengthUnit::Tokens,
                Some(rlhfd_config::LengthUnit::Characters) | None => LengthUnit::Characters,
            },
            fitted: label.length_penalty_fit,
            fit: nothing,
        },
    };
    let measured = reader.measured(run, iteration, &scoring)?;
    scoring.penalty.fit = if label.length_penalty_fit {
        penalty::fit(&measured)
    } else {
        penalty::given(&measured, label.length_penalty)
    };
    Ok(scoring)
}

fn pair_rule(config: &PairConfig) -> rule::PairRule {
    rule::PairRule {
        choice: match config.rule {
            PairRule::BestWorst => Choice::BestWorst,
            PairRule::BestSecond => Choice::BestSecond,
            PairRule::BestRandom => Choice::BestRandom,
            PairRule::Random => Choice::Random,
            PairRule::All => Choice::All,
            PairRule::Threshold => Choice::Threshold(config.threshold),
        },
        arms: match config.arms {
            PairArms::Any => rule::Arms::Any,
            PairArms::Within => rule::Arms::Within,
            PairArms::Across => rule::Arms::Across,
        },
        unfinished: match config.unfinished {
            rlhfd_config::Unfinished::Keep => rule::Unfinished::Keep,
            rlhfd_config::Unfinished::Exclude => rule::Unfinished::Exclude,
            rlhfd_config::Unfinished::OnlyRejected => rule::Unfinished::OnlyRejected,
        },
        score_gap_min: config.score_gap_min,
        pairs_max: config.pairs_max() as usize,
    }
}
