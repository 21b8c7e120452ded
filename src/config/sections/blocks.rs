//! `[sft]` and `[preference]`: the trainings over blocks.
//!
//! In: entries whose every value lies in its range. Out: structs. Rules between keys stand in
//! `train`.

use std::path::Path;

use super::{JobData, Place, Rows, SavePolicy, get};
use crate::setting::Setting;
use crate::train::{TrainSettings, Training};
use crate::values::Entry;

/// `[sft]`.
#[derive(Debug, Clone, PartialEq)]
pub struct SftConfig {
    /// What it starts from; `None`: the run's own policy.
    pub base: Option<Place>,
    /// What it is trained on.
    pub data: JobData,
    /// What the worker gets.
    pub settings: TrainSettings,
    /// When it saves.
    pub save: SavePolicy,
}

impl SftConfig {
    pub(crate) fn of(entry: &Entry, settings: TrainSettings, base_dir: &Path) -> Option<Self> {
        let base = get(entry, "base", base_dir)?;
        let data = JobData::of(entry, base_dir)?;
        Some(Self { base, data, settings, save: SavePolicy::of(entry, base_dir)? })
    }

    pub(crate) fn values(&self) -> Rows {
        let mut rows = vec![("base", self.base.value())];
        rows.extend(self.data.values());
        rows.extend(self.settings.rows(Training::Sft));
        rows.extend(self.save.values());
        rows
    }
}

/// `[preference]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceConfig {
    /// What it starts from; `None`: the run's initial policy.
    pub base: Option<Place>,
    /// What the worker gets.
    pub settings: TrainSettings,
    /// When it saves.
    pub save: SavePolicy,
}

impl PreferenceConfig {
    pub(crate) fn of(entry: &Entry, settings: TrainSettings, base_dir: &Path) -> Option<Self> {
        let base = get(entry, "base", base_dir)?;
        Some(Self { base, settings, save: SavePolicy::of(entry, base_dir)? })
    }

    pub(crate) fn values(&self) -> Rows {
        let mut rows = vec![("base", self.base.value())];
        rows.extend(self.settings.rows(Training::Preference));
        rows.extend(self.save.values());
        rows
    }
}
