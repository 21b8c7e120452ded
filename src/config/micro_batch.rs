//! What a training computes together: pairs or sequences, by its kind.
//!
//! In: settings. Out: a number, or settings with another one.

use crate::train::{TrainSettings, Training};

impl TrainSettings {
    /// The same with micro-batches of so many examples.
    #[must_use]
    pub fn with_micro_batch(mut self, training: Training, examples: u32) -> Self {
        match training {
            Training::Dpo | Training::Reward => self.micro_batch_pairs = examples,
            Training::Sft | Training::Preference => self.micro_batch_sequences = examples,
        }
        self
    }

    /// Examples of a micro-batch: pairs, or sequences.
    #[must_use]
    pub fn micro_batch(&self, training: Training) -> u32 {
        match training {
            Training::Dpo | Training::Reward => self.micro_batch_pairs,
            Training::Sft | Training::Preference => self.micro_batch_sequences,
        }
    }
}
