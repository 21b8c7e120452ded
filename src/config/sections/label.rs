//! `[label]`, `[[label.scorers]]` and `[pair]`: what scores, how scores become one, which pairs are
//! kept.
//!
//! In: entries whose every value lies in its range. Out: structs. Rules between keys stand in
//! `checked`.

use std::path::Path;

use super::{Place, Rows, get};
use crate::setting::{Setting, section, words};
use crate::values::{Entry, Value};

words! {
    /// What a scorer does.
    ScorerKind {
        /// A reward model gives each response a score.
        Reward = "reward",
        /// A preference model compares two responses.
        Preference = "preference",
    }
}

words! {
    /// Which pairs of a prompt's responses a preference model compares.
    Compare {
        /// All of them.
        RoundRobin = "round_robin",
        /// As many as tell the best and the worst.
        Linear = "linear",
    }
}

words! {
    /// Where a reward model's score is read.
    ScorePosition {
        /// The last position whose id is not the pad id, as transformers does.
        Transformers = "transformers",
        /// The last position.
        Last = "last",
    }
}

words! {
    /// What a response's length is counted in.
    LengthUnit {
        /// Characters of its text.
        Characters = "characters",
        /// Token ids.
        Tokens = "tokens",
    }
}

words! {
    /// How a scorer's scores are made comparable with others'.
    Normalise {
        /// As they are.
        None = "none",
        /// To mean 0 and variance 1 over the iteration's labelled responses.
        Standard = "standard",
        /// To their place among the iteration's labelled responses, from 0 to 1.
        Rank = "rank",
    }
}

words! {
    /// Which pairs of a prompt become preferences.
    PairRule {
        /// The best against the worst.
        BestWorst = "best_worst",
        /// The best against the next below it.
        BestSecond = "best_second",
        /// The best against any below it.
        BestRandom = "best_random",
        /// Any pair.
        Random = "random",
        /// Every pair.
        All = "all",
        /// Every pair whose scores lie far enough apart.
        Threshold = "threshold",
    }
}

words! {
    /// Which responses of a prompt may meet.
    PairArms {
        /// Any two.
        Any = "any",
        /// Two of the same arm.
        Within = "within",
        /// Two of different arms.
        Across = "across",
    }
}

words! {
    /// What becomes of responses without a stop id.
    Unfinished {
        /// They are like others.
        Keep = "keep",
        /// They are never paired.
        Exclude = "exclude",
        /// They are never chosen.
        OnlyRejected = "only_rejected",
    }
}

/// `[label]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelConfig {
    /// Responses scored together; 0: by the memory plan.
    pub batch_responses: u32,
    /// What length takes off the combined score; at least 0, and 0 with `length_penalty_fit`.
    pub length_penalty: f64,
    /// Each iteration fits the penalty.
    pub length_penalty_fit: bool,
    /// There where a penalty is given or fitted.
    pub length_unit: Option<LengthUnit>,
    /// Names differ; at least one has a weight.
    pub scorers: Vec<ScorerConfig>,
}

impl LabelConfig {
    /// The scorer of this name.
    #[must_use]
    pub fn scorer(&self, name: &str) -> Option<&ScorerConfig> {
        self.scorers.iter().find(|scorer| scorer.name == name)
    }

    /// The scorers that pairing goes by, then the canaries, each in the order of the configuration:
    /// the first one's figures stand for an iteration.
    pub fn scorers_first_weighted(&self) -> impl Iterator<Item = &ScorerConfig> {
        let weighted = |scorer: &&ScorerConfig| scorer.role != ScorerRole::Canary;
        let canaries = self.scorers.iter().filter(|scorer| scorer.role == ScorerRole::Canary);
        self.scorers.iter().filter(weighted).chain(canaries)
    }
}

/// One of `[[label.scorers]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScorerConfig {
    /// Its name in the tables.
    pub name: String,
    /// What it does.
    pub kind: ScorerKind,
    /// What scores.
    pub model: ScorerModel,
    /// Of a preference model.
    pub compare: Compare,
    /// Where the score is read.
    pub score_position: ScorePosition,
    /// Whether training uses it.
    pub role: ScorerRole,
    /// Before its scores are weighed.
    pub normalise: Normalise,
}

/// Whether training uses a scorer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScorerRole {
    /// With this weight, above 0, in the combined score.
    Weighted(f64),
    /// Never: its scores are kept and told.
    Canary,
}

/// Where a scorer's model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScorerModel {
    /// A model folder.
    Folder(Place),
    /// The training job of the scorer's kind and this name (`job = "reward/NAME"`), in this run.
    Job(String),
}

section! {
    /// `[pair]`.
    PairConfig {
        /// Which pairs are kept.
        rule: PairRule,
        /// Which responses may meet.
        arms: PairArms,
        /// What becomes of those without a stop id.
        unfinished: Unfinished,
        /// Pairs whose scores lie closer give no preference; ties never do.
        score_gap_min: f64,
        /// Of `PairRule::Threshold`, and above 0 there; else 0.
        threshold: f64,
        /// Of the rules that give several; 0: up to `PAIRS_MAX`.
        max_pairs: u32,
    }
}

/// Pairs that one prompt may give.
pub const PAIRS_MAX: u32 = 4096;

impl PairConfig {
    /// Pairs that a prompt gives at most.
    #[must_use]
    pub fn pairs_max(&self) -> u32 {
        match (self.rule, self.max_pairs) {
            (PairRule::All | PairRule::Threshold, 0) => PAIRS_MAX,
            (PairRule::All | PairRule::Threshold, most) => most,
            _ => 1,
        }
    }

    /// Responses of a prompt that its pairs hold at most, of the `n` that it has.
    #[must_use]
    pub fn responses_max(&self, n: u32) -> u32 {
        self.pairs_max().saturating_mul(2).min(n.max(2))
    }
}

impl LabelConfig {
    pub(crate) fn of(entry: &Entry, scorers: Vec<ScorerConfig>, base_dir: &Path) -> Option<Self> {
        Some(Self {
            batch_responses: get(entry, "batch_responses", base_dir)?,
            length_penalty: get(entry, "length_penalty", base_dir)?,
            length_penalty_fit: get(entry, "length_penalty_fit", base_dir)?,
            length_unit: get(entry, "length_unit", base_dir)?,
            scorers,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        vec![
            ("batch_responses", self.batch_responses.value()),
            ("length_penalty", self.length_penalty.value()),
            ("length_penalty_fit", self.length_penalty_fit.value()),
            ("length_unit", self.length_unit.value()),
        ]
    }
}

impl ScorerConfig {
    /// `None` also where not exactly one of `model` and `job` is given, or a job of another kind: the
    /// caller has told so.
    pub(crate) fn of(entry: &Entry, base_dir: &Path) -> Option<Self> {
        let folder: Option<Place> = get(entry, "model", base_dir)?;
        let job: Option<String> = get(entry, "job", base_dir)?;
        let kind: ScorerKind = get(entry, "kind", base_dir)?;
        let name = |job: &str| Some(job.strip_prefix(kind.label())?.strip_prefix('/')?.to_owned());
        let model = match (folder, job.as_deref()) {
            (Some(folder), None) => ScorerModel::Folder(folder),
            (None, Some(job)) => ScorerModel::Job(name(job)?),
            _ => return None,
        };
        let compare: Option<Compare> = get(entry, "compare", base_dir)?;
        let weight: Option<f64> = get(entry, "weight", base_dir)?;
        let canary: bool = get(entry, "canary", base_dir)?;
        Some(Self {
            name: get(entry, "name", base_dir)?,
            kind,
            model,
            compare: compare.unwrap_or(Compare::RoundRobin),
            score_position: get(entry, "score_position", base_dir)?,
            role: match (canary, weight) {
                (true, _) => ScorerRole::Canary,
                (false, weight) => ScorerRole::Weighted(weight.unwrap_or(1.0)),
            },
            normalise: get(entry, "normalise", base_dir)?,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        let (model, job) = match &self.model {
            ScorerModel::Folder(place) => (place.value(), None),
            ScorerModel::Job(name) => {
                (None, Some(Value::Text(format!("{}/{name}", self.kind.label()))))
            }
        };
        let weight = match self.role {
            ScorerRole::Weighted(weight) => weight.value(),
            ScorerRole::Canary => None,
        };
        let reads = self.kind == ScorerKind::Reward;
        vec![
            ("name", self.name.value()),
            ("kind", self.kind.value()),
            ("model", model),
            ("job", job),
            ("compare", self.compare.value().filter(|_| !reads)),
            ("score_position", self.score_position.value().filter(|_| reads)),
            ("weight", weight),
            ("normalise", self.normalise.value()),
            ("canary", (self.role == ScorerRole::Canary).value()),
        ]
    }
}
