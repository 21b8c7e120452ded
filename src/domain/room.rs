//! What a stage is going to write, in bytes: by it a disk is found too small before it is full.
//!
//! In: sizes of a model, numbers of responses. Out: estimates, rather too large than too small. May not
//! enter: disks, folders.

/// Copies of a training's own state that lie on the disk at once: two are kept while a third is written.
const STATES: u64 = 3;
/// Of each parameter that learns: an f32 master and two f32 moments.
const STATE_BYTES: u64 = 12;
/// Of each token of a response: its id, its log-prob, and about as much text.
const TOKEN_BYTES: u64 = 12;
/// Of each response: its rows and their indices.
const RESPONSE_BYTES: u64 = 512;

/// The model that an update writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// Bytes of its weights' files.
    pub bytes: u64,
    /// Elements of all its tensors.
    pub parameters: u64,
    /// Those of them that learn; none where adapters do, which are small beside the model.
    pub learning: u64,
}

impl Model {
    /// The checkpoint to come: weights of the same size, and f32 masters beside them of what learnt, where
    /// they are narrower.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        let narrow = self.bytes < self.parameters.saturating_mul(4);
        let masters = if narrow { self.learning.saturating_mul(4) } else { 0 };
        self.bytes.saturating_add(masters)
    }

    /// The training's own state while it runs.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.learning.saturating_mul(STATES * STATE_BYTES)
    }

    /// What a training writes in all.
    #[must_use]
    pub fn update_bytes(&self) -> u64 {
        self.checkpoint_bytes().saturating_add(self.state_bytes())
    }
}

/// What so many responses of at most so many tokens take in the database.
#[must_use]
pub fn rollout_bytes(responses: u64, tokens_max: u64) -> u64 {
    let each = tokens_max.saturating_mul(TOKEN_BYTES).saturating_add(RESPONSE_BYTES);
    responses.saturating_mul(each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_has_masters_where_its_weights_are_narrow() {
        // A million parameters in bf16: 2 MB of weights, 4 MB of masters, 3 states of 12 MB.
        let narrow = Model { bytes: 2_000_000, parameters: 1_000_000, learning: 1_000_000 };
        assert_eq!(narrow.checkpoint_bytes(), 6_000_000);
        assert_eq!(narrow.update_bytes(), 6_000_000 + 36_000_000);
        let wide = Model { bytes: 4_000_000, ..narrow };
        assert_eq!(wide.checkpoint_bytes(), 4_000_000);
        // A tenth of it learns: masters and states are a tenth, the weights are all.
        let top = Model { learning: 100_000, ..narrow };
        assert_eq!(top.update_bytes(), 2_000_000 + 400_000 + 3_600_000);
        let adapters = Model { learning: 0, ..narrow };
        assert_eq!((adapters.checkpoint_bytes(), adapters.state_bytes()), (2_000_000, 0));
        // 100 responses of 1,000 tokens: 100 · (12,000 + 512).
        assert_eq!(rollout_bytes(100, 1_000), 1_251_200);
        assert_eq!(rollout_bytes(u64::MAX, 2), u64::MAX);
    }
}
