//! `[sft]`, `[reward]` and `[preference]`: the trainings that are jobs of their own.
//!
//! In: entries whose every value lies in its range. Out: structs. Rules between keys stand in
//! `train`.

use std::path::Path;

use super::{DataFile, Place, Rows, SavePolicy, get};
use crate::setting::Setting;
use crate::train::{TrainSettings, Training};
use crate::values::Entry;

/// `[sft]`, `[reward]` or `[preference]`.
#[derive(Debug, Clone, PartialEq)]
pub struct JobConfig {
    /// Which of them.
    pub training: Training,
    /// What it starts from; `None`: the run's own policy for `[sft]`, else its initial policy.
    pub base: Option<Place>,
    /// What it is trained on.
    pub data: JobData,
    /// What the worker gets.
    pub settings: TrainSettings,
    /// When it saves.
    pub save: SavePolicy,
}

/// Data that a section names, and the training job that the daemon makes from it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobData {
    /// The files, in training order; none: the job is asked for by a client.
    pub files: Vec<DataFile>,
    /// The job's name.
    pub job: String,
}

impl JobConfig {
    pub(crate) fn of(
        training: Training,
        entry: &Entry,
        settings: TrainSettings,
        base_dir: &Path,
    ) -> Option<Self> {
        let base = get(entry, "base", base_dir)?;
        let data = JobData::of(entry, base_dir)?;
        Some(Self { training, base, data, settings, save: SavePolicy::of(entry, base_dir)? })
    }

    /// Its settings as the file that a worker reads.
    #[must_use]
    pub fn settings_toml(&self) -> String {
        self.settings.to_toml(self.training)
    }

    pub(crate) fn values(&self) -> Rows {
        let mut rows = vec![("base", self.base.value())];
        rows.extend(self.data.values());
        rows.extend(self.settings.rows(self.training));
        rows.extend(self.save.values());
        rows
    }
}

impl JobData {
    fn of(entry: &Entry, base_dir: &Path) -> Option<Self> {
        Some(Self { files: get(entry, "data", base_dir)?, job: get(entry, "job", base_dir)? })
    }

    fn values(&self) -> Rows {
        vec![("data", self.files.value()), ("job", self.job.value())]
    }
}
