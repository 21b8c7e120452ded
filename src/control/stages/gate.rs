//! The gate of an iteration: its figures are found in what was evaluated and trained, and held
//! against the limits of `[gate]`.
//!
//! In: evaluation rows, training steps. Out: a verdict. May not enter: the rule itself
//! (`rlhfd_domain::gate`), rows of the store.

use rlhfd_config::{GateAgainst, GateConfig};
use rlhfd_domain::gate::{
    Against, Check, Figure, Limit, Verdict, chosen_logprob_fall, length_growth,
};
use rlhfd_domain::train::TrainStep;
use rlhfd_domain::{CheckpointId, ScorerId};
use rlhfd_store::{Iteration, NewEvaluation};

/// What a gate looks at.
pub struct Evidence<'a> {
    /// The limits.
    pub gate: &'a GateConfig,
    /// The iteration.
    pub iteration: &'a Iteration,
    /// The run's initial policy.
    pub initial: CheckpointId,
    /// All evaluation rows of the iteration.
    pub rows: &'a [NewEvaluation],
    /// The scorer that stands for the iteration, and the first temperature.
    pub first: Option<(ScorerId, f64)>,
    /// Scorers that training never uses.
    pub canaries: &'a [ScorerId],
    /// The steps of the iteration's training.
    pub steps: &'a [TrainStep],
    /// The β of their implicit rewards.
    pub beta: f64,
}

impl Evidence<'_> {
    /// The verdict; none where no limit is set.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        let gate = self.gate;
        let (win_rate_against, win_rate) = self.win_rate();
        let fall = chosen_logprob_fall(self.steps, self.beta);
        let (initial, reference) = (Against::Initial, Against::Reference);
        let checks = [
            (Figure::WinRate, win_rate_against, gate.win_rate_min.map(Limit::Min), win_rate),
            (Figure::KlK3, reference, gate.kl_max.map(Limit::Max), self.kl_k3()),
            (
                Figure::LengthGrowth,
                initial,
                gate.length_growth_max.map(Limit::Max),
                self.length_growth(),
            ),
            (
                Figure::ChosenLogprobFall,
                reference,
                gate.chosen_logprob_fall_max.map(Limit::Max),
                fall,
            ),
            (Figure::CanaryGain, initial, gate.canary_gain_min.map(Limit::Min), self.canary_gain()),
        ];
        let set = checks.into_iter().filter_map(|(figure, against, limit, value)| {
            Some(Check { figure, against, limit: limit?, value })
        });
        Verdict::of(set.collect())
    }

    /// The row of a policy beside a baseline, by one scorer at the first temperature.
    fn row(
        &self,
        policy: CheckpointId,
        baseline: CheckpointId,
        scorer: ScorerId,
    ) -> Option<&NewEvaluation> {
        let (_, temperature) = self.first?;
        self.rows.iter().find(|row| {
            row.policy == policy
                && row.baseline == baseline
                && row.scorer == scorer
                && row.temperature.to_bits() == temperature.to_bits()
        })
    }

    /// The trained policy's row beside a baseline, by the scorer that stands for the iteration.
    fn own(&self, baseline: CheckpointId) -> Option<&NewEvaluation> {
        self.row(self.iteration.policy_out?, baseline, self.first?.0)
    }

    /// Where the previous policy's answers cannot be compared (other settings, another scorer), the
    /// initial policy's can.
    fn win_rate(&self) -> (Against, Option<f64>) {
        let rate = |row: &NewEvaluation| row.comparison.win_rate.value;
        let previous = match self.gate.against {
            GateAgainst::Previous => self.own(self.iteration.policy_in).map(rate),
            GateAgainst::Initial => None,
        };
        match previous {
            Some(rate) => (Against::Previous, Some(rate)),
            None => (Against::Initial, self.own(self.initial).map(rate)),
        }
    }

    fn kl_k3(&self) -> Option<f64> {
        let trained = self.iteration.policy_out?;
        self.rows.iter().filter(|row| row.policy == trained).find_map(|row| row.kl_k3)
    }

    fn length_growth(&self) -> Option<f64> {
        let initial = self.row(self.initial, self.initial, self.first?.0)?;
        let own = self.own(self.initial)?;
        length_growth(own.shape.response_tokens_mean, initial.shape.response_tokens_mean)
    }

    /// The least gain of any canary: one that falls is enough. None where one of them said nothing.
    fn canary_gain(&self) -> Option<f64> {
        let trained = self.iteration.policy_out?;
        let gain = |scorer: &ScorerId| {
            self.row(trained, self.initial, *scorer).map(|row| row.comparison.gain.value)
        };
        let gains: Option<Vec<f64>> = self.canaries.iter().map(gain).collect();
        gains?.into_iter().reduce(f64::min)
    }
}
