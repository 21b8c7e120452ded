//! The study's one configuration file: sizes, seeds, and what the daemons are told.
//!
//! In: TOML. Out: [`Settings`]. The tables `[daemon]`, `[collect]`, `[annotated]` and those of the arms are the daemon's
//! own configuration, laid over each other; what is in them the daemon checks itself. May not enter:
//! paths.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use toml::{Table, Value};

use crate::annotator::Annotator;
use crate::models::ModelSizes;
use crate::prompts::Sizes;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Seeds and sizes.
    pub study: Study,
    /// Who labels for the reward model.
    pub annotator: Annotator,
    /// The reward model that is bad on purpose.
    pub weak: Weak,
    /// Policy and reward model.
    pub model: ModelSizes,
    /// What every daemon is told.
    pub daemon: Table,
    /// Over that: where answers of the first policy are only collected.
    pub collect: Table,
    /// Over that: where they are collected for the annotator.
    pub annotated: Table,
    /// By name.
    pub arms: BTreeMap<String, Arm>,
}

/// Seeds and sizes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// One whole repetition each.
    pub seeds: Vec<u64>,
    /// Daemons at a time.
    pub lanes: usize,
    /// The last of them gives the primary figure.
    pub iterations: u64,
    /// Fresh ones for each iteration.
    pub prompts_per_iteration: usize,
    /// For supervised fine-tuning.
    pub conversations: usize,
    /// Whose answers the annotator sees.
    pub label_prompts: usize,
    /// Held out, for the figures.
    pub evaluation_prompts: usize,
    /// Held out, for choosing an iteration by score.
    pub validation_prompts: usize,
    /// The score that a unit of gold must be worth at least, at equal length: a seed whose reward
    /// model is worth less is told of and goes no further.
    pub score_per_gold_min: f64,
}

/// A reward model of few labels by a biased annotator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weak {
    /// The seeds in which it is tried.
    pub seeds: Vec<u64>,
    /// Whose answers its annotator sees.
    pub label_prompts: usize,
    /// Its annotator.
    pub annotator: Annotator,
}

/// One way to improve the policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// By the weak reward model, with the good one as a canary.
    #[serde(default)]
    pub weak: bool,
    /// What its daemon is told, over `[daemon]`.
    #[serde(default)]
    pub daemon: Table,
}

impl Settings {
    /// Reads the file.
    ///
    /// Errors: it cannot be read, or something in it is not known or not possible.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))?;
        let settings: Self = toml::from_str(&text).with_context(|| format!("{shown} is wrong"))?;
        let study = &settings.study;
        ensure!(!study.seeds.is_empty(), "{shown}: [study] seeds names none");
        ensure!((1..=16).contains(&study.lanes), "{shown}: [study] lanes must be 1 to 16");
        ensure!(study.iterations >= 1, "{shown}: [study] iterations must be at least 1");
        for arm in [OFFLINE, ONLINE] {
            ensure!(settings.arms.contains_key(arm), "{shown}: there is no [arms.{arm}]");
        }
        Ok(settings)
    }

    /// How the prompts are cut.
    pub fn sizes(&self) -> Sizes {
        let Study { iterations, prompts_per_iteration, .. } = self.study;
        let iterations = usize::try_from(iterations).unwrap_or(usize::MAX);
        Sizes {
            sft: self.study.conversations,
            labels: self.study.label_prompts,
            weak_labels: self.weak.label_prompts,
            iterations: iterations.saturating_mul(prompts_per_iteration),
            evaluation: self.study.evaluation_prompts,
            validation: self.study.validation_prompts,
        }
    }

    /// All seeds: the study's, then those that only the weak condition has.
    pub fn seeds(&self) -> Vec<u64> {
        let own = &self.study.seeds;
        own.iter()
            .chain(self.weak.seeds.iter().filter(|seed| !own.contains(seed)))
            .copied()
            .collect()
    }

    /// The arms of one seed.
    pub fn arms_of(&self, seed: u64) -> impl Iterator<Item = (&String, &Arm)> {
        let (own, weak) = (self.study.seeds.contains(&seed), self.weak.seeds.contains(&seed));
        self.arms.iter().filter(move |(_, arm)| if arm.weak { weak } else { own })
    }
}

/// The arm that online is held against, and online itself.
pub const OFFLINE: &str = "offline_dpo";
/// See [`OFFLINE`].
pub const ONLINE: &str = "online_dpo";

/// Lays `over` over `table`: tables are joined, everything else is replaced.
pub fn overlay(table: &mut Table, over: &Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(Value::Table(known)), Value::Table(more)) => overlay(known, more),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_joined_and_the_rest_is_replaced() {
        let mut below: Table = "[a]\nx = 1\ny = [1, 2]\n[b]\nz = 3".parse().unwrap();
        overlay(&mut below, &"[a]\ny = [3]\nw = 4\n[c]\nv = 5".parse().unwrap());
        let wanted: Table = "[a]\nx = 1\ny = [3]\nw = 4\n[b]\nz = 3\n[c]\nv = 5".parse().unwrap();
        assert_eq!(below, wanted);
    }

    #[test]
    fn the_committed_configurations_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../study");
        for name in ["study.toml", "small.toml"] {
            let settings = Settings::read(&folder.join(name)).unwrap();
            let sizes = settings.sizes();
            for seed in settings.seeds() {
                crate::prompts::Slices::cut(seed, &sizes).unwrap();
            }
        }
    }

    #[test]
    fn an_unknown_key_is_told() {
        let folder = std::env::temp_dir().join(format!("rlhfd-study-{}", std::process::id()));
        std::fs::write(&folder, "[study]\nsedes = [1]\n").unwrap();
        let error = format!("{:#}", Settings::read(&folder).unwrap_err());
        std::fs::remove_file(&folder).unwrap();
        assert!(error.contains("sedes"), "{error}");
    }
}
