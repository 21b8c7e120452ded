//! One row a training step: what steps.jsonl holds.
//!
//! In: the numbers of a step. Out: a line of JSON, and back. steps.jsonl lies in the checkpoint
//! folder under its manifest, so it may hold neither a time nor a path. May not enter: tensors.

use rlhfd_domain::train::TrainStep;
use serde::{Deserialize, Serialize};

/// One optimiser step. All means are over the step's pairs, or, of supervised fine-tuning, over its
/// learnt tokens, however they were cut into micro-batches; pairs count by their weights, Σ weight·x
/// over Σ weight. What a training does not have is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Counted from 1.
    pub step: u64,
    /// Mean loss, before the step was applied.
    pub loss: f64,
    /// The learning rate that was applied.
    pub lr: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Share of pairs whose margin is above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean margin: implicit rewards for DPO, scores (chosen − rejected) for a reward model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Mean implicit reward β·(policy − reference log-prob), in nats times β. Only for DPO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implicit_reward_chosen: Option<f64>,
    /// As `implicit_reward_chosen`, of the rejected responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implicit_reward_rejected: Option<f64>,
    /// Mean score of the chosen responses. Only when a reward model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_chosen: Option<f64>,
    /// As `score_chosen`, of the rejected responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_rejected: Option<f64>,
    /// Share of learnt tokens that no other id was likelier than. Only for supervised fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_accuracy: Option<f64>,
}

impl From<&StepRow> for TrainStep {
    fn from(row: &StepRow) -> Self {
        Self {
            step: row.step,
            loss: row.loss,
            lr: row.lr,
            grad_norm: row.grad_norm,
            accuracy: row.accuracy,
            margin: row.margin,
            implicit_reward_chosen: row.implicit_reward_chosen,
            implicit_reward_rejected: row.implicit_reward_rejected,
            token_accuracy: row.token_accuracy,
        }
    }
}

/// The rows as JSON lines, each ended by a newline.
///
/// # Errors
/// Only where a number cannot be written, which finite numbers always can.
pub fn to_jsonl(rows: &[StepRow]) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dpo_row_has_the_documented_fields_in_order() {
        let row = StepRow {
            step: 1,
            loss: 0.5,
            lr: 0.0,
            grad_norm: 2.0,
            accuracy: Some(1.0),
            margin: Some(0.25),
            implicit_reward_chosen: Some(0.125),
            implicit_reward_rejected: Some(-0.125),
            score_chosen: None,
            score_rejected: None,
            token_accuracy: None,
        };
        let text = to_jsonl(std::slice::from_ref(&row)).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"loss\":0.5,\"lr\":0.0,\"grad_norm\":2.0,\"accuracy\":1.0,\
             \"margin\":0.25,\"implicit_reward_chosen\":0.125,\
             \"implicit_reward_rejected\":-0.125}\n"
        );
        assert_eq!(serde_json::from_str::<StepRow>(text.trim_end()).unwrap(), row);
    }
}
