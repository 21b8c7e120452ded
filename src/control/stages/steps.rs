//! The steps that a checkpoint folder tells of.
//!
//! In: a published folder. Out: its rows, counted and finite. May not enter: what is made of them.

use std::fs;
use std::path::Path;

use rlhfd_domain::train::{TrainStep, check_steps};
use serde::Deserialize;

use crate::actors::stage::StageError;

/// Written by the worker into each checkpoint folder, under its manifest.
pub const STEPS: &str = "steps.jsonl";

/// A line of steps.jsonl; keys that only a person reads are passed over.
#[derive(Debug, Deserialize)]
struct StepLine {
    step: u64,
    loss: f64,
    lr: f64,
    grad_norm: f64,
    accuracy: Option<f64>,
    margin: Option<f64>,
    implicit_reward_chosen: Option<f64>,
    implicit_reward_rejected: Option<f64>,
    token_accuracy: Option<f64>,
}

/// The steps that a checkpoint folder tells of. It blocks.
pub fn read_steps(folder: &Path) -> Result<Vec<TrainStep>, StageError> {
    let path = folder.join(STEPS);
    let text = fs::read_to_string(&path)
        .map_err(|source| StageError::Place { path: path.clone(), source })?;
    let bad = |why: String| StageError::Answers(format!("{}: {why}", path.display()));
    let steps: Vec<TrainStep> = text
        .lines()
        .map(|line| serde_json::from_str::<StepLine>(line).map(TrainStep::from))
        .collect::<Result<_, _>>()
        .map_err(|error| bad(error.to_string()))?;
    check_steps(&steps).map_err(|error| bad(error.to_string()))?;
    Ok(steps)
}

impl From<StepLine> for TrainStep {
    fn from(line: StepLine) -> Self {
        Self {
            step: line.step,
            loss: line.loss,
            lr: line.lr,
            grad_norm: line.grad_norm,
            accuracy: line.accuracy,
            margin: line.margin,
            implicit_reward_chosen: line.implicit_reward_chosen,
            implicit_reward_rejected: line.implicit_reward_rejected,
            token_accuracy: line.token_accuracy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_a_gap_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64| {
            format!(
                "{{\"step\":{step},\"loss\":0.5,\"lr\":0.1,\"grad_norm\":1.0,\"accuracy\":1.0,\"margin\":0.1,\"implicit_reward_chosen\":null,\"implicit_reward_rejected\":null}}\n"
            )
        };
        fs::write(folder.path().join(STEPS), line(1) + &line(2)).unwrap();
        let steps = read_steps(folder.path()).unwrap();
        assert_eq!((steps.len(), steps[1].step, steps[0].implicit_reward_chosen), (2, 2, None));
        fs::write(folder.path().join(STEPS), line(1) + &line(3)).unwrap();
        assert!(matches!(read_steps(folder.path()), Err(StageError::Answers(_))));
    }
}
