//! `[gate]`: what makes a trained checkpoint the head.
//!
//! In: entries whose every value lies in its range. Out: structs. Rules between keys stand in
//! `checked`.

use crate::setting::{section, words};

words! {
    /// Which policy a win rate is measured against.
    GateAgainst {
        /// The run's initial policy.
        Initial = "initial",
        /// The policy that the iteration began with.
        Previous = "previous",
    }
}

words! {
    /// What a failed gate does.
    GateFailure {
        /// The loop goes on from the old head.
        KeepHead = "keep_head",
        /// And the run pauses.
        Pause = "pause",
    }
}

impl GateConfig {
    /// Whether a limit is set whose figure comes from answers to the prompts kept for evaluation.
    #[must_use]
    pub fn asks_evaluation(&self) -> bool {
        let limits = [self.win_rate_min, self.kl_max, self.length_growth_max, self.canary_gain_min];
        limits.iter().any(Option::is_some)
    }
}

section! {
    /// `[gate]`; without any limit there is none.
    GateConfig {
        /// Share of paired answers won at least.
        win_rate_min: Option<f64>,
        /// Of `win_rate_min`.
        against: GateAgainst,
        /// Nats a response at most.
        kl_max: Option<f64>,
        /// Mean response tokens at most, as a factor of the initial policy's.
        length_growth_max: Option<f64>,
        /// Nats that the chosen responses' log-prob may lose.
        chosen_logprob_fall_max: Option<f64>,
        /// Gain of the canaries at least.
        canary_gain_min: Option<f64>,
        /// What a failed gate does.
        on_fail: GateFailure,
    }
}
