//! The model that is measured: from a folder, or of random weights of a given shape.
//!
//! In: a folder or a config.json, a device. Out: models loaded for inference, for scoring or for
//! training. May not enter: what is measured.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use crate::device::Compute;
use crate::errors::WorkerError;
use crate::model::folder::read_text;
use crate::model::{LoadOptions, ModelConfig, ModelFolder, Trainable, Transformer};
use crate::synthetic;

const SEED: i64 = 7;

/// A model to measure.
pub struct Subject {
    /// What it is called in the report.
    pub name: String,
    pub config: ModelConfig,
    pub compute: Compute,
    /// None: random weights.
    pub folder: Option<ModelFolder>,
}

impl Subject {
    /// Opens the folder, or reads the shape where one is given.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn open(dir: &Path, shape: Option<&Path>, compute: Compute) -> Result<Self, WorkerError> {
        let name = |path: &Path| {
            let own = path.file_name().map(PathBuf::from).unwrap_or_default();
            own.display().to_string()
        };
        if let Some(path) = shape {
            let config = ModelConfig::parse(&read_text(path)?, path)?;
            return Ok(Self { name: name(path), config, compute, folder: None });
        }
        let folder = ModelFolder::open(dir)?.require_policy()?;
        let config = folder.config.clone();
        Ok(Self { name: name(dir), config, compute, folder: Some(folder) })
    }

    /// The policy, with what learns.
    ///
    /// # Errors
    /// The folder's.
    pub fn policy(&self, trainable: Trainable) -> Result<Transformer, WorkerError> {
        let Compute { devices, precision } = self.compute;
        let options = LoadOptions { devices, precision, trainable };
        match &self.folder {
            Some(folder) => Ok(Transformer::load(folder, &options)?),
            None => {
                let weights =
                    synthetic::weights(&self.config, SEED, (precision.kind(), devices.first()));
                Transformer::assemble(self.config.clone(), options, weights)
                    .map_err(|name| WorkerError::Torch(format!("the shape has no {name}")))
            }
        }
    }

    /// The policy's trunk under a score head of the work's own weights.
    ///
    /// # Errors
    /// The folder's.
    pub fn scorer(&self, head: &[f32]) -> Result<Transformer, WorkerError> {
        let head = Tensor::from_slice(head).unsqueeze(0).to_kind(Kind::Float);
        self.policy(Trainable::Nothing)?
            .with_score_head(&head)
            .map_err(|name| WorkerError::Torch(format!("the model has no {name}")))
    }
}
