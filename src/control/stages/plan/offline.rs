//! The offline part of an iteration's plan: units for what has no ids or log-probs yet.
//!
//! In: what of the run's list the iteration uses, and how far it is known. Out: new units. Pure.

use rlhfd_domain::plan::{PlanError, cut};
use rlhfd_domain::{Stage, WorkKind};
use rlhfd_store::OfflineDrawn;

use super::{ANSWER_BYTES_MAX, Planner, RENDER_ITEMS_MAX, Ranged};

impl Planner<'_> {
    /// Ids and log-probs of the offline pairs that have none yet.
    pub(super) fn offline(&mut self, offline: &OfflineDrawn) -> Result<(), PlanError> {
        let t = self.t;
        let pair_tokens = 2 * u64::from(self.config.train.settings.max_length);
        let render = Ranged {
            stage: Stage::Train,
            work: WorkKind::RenderPairs,
            lane: "",
            prefix: format!("{t}/train/render_pairs"),
            policy: None,
            scorer: None,
            detail: None,
            batch: 1,
            tokens_per_item: 0,
        };
        let items = (ANSWER_BYTES_MAX / (4 * pair_tokens)).clamp(1, RENDER_ITEMS_MAX);
        self.push_all(&render, cut(offline.rendered.min(offline.pairs), offline.pairs, 1, items)?);
        let batch = self.given.sizes.logprobs_batch;
        let logprobs = Ranged {
            work: WorkKind::LogprobsPairs,
            prefix: format!("{t}/train/logprobs_pairs"),
            batch,
            tokens_per_item: pair_tokens,
            ..render
        };
        // From a batch's beginning: what is known already is left out of it.
        let from = offline.known.min(offline.pairs) / batch * batch;
        let from = if offline.known < offline.pairs { from } else { offline.pairs };
        self.ranged(&logprobs, from, offline.pairs)
    }
}

#[cfg(test)]
mod tests {
    use rlhfd_store::Drawn;

    use super::super::iteration;
    use super::super::tests::{config, drawn, given};
    use super::*;

    #[test]
    fn offline_pairs_are_rendered_and_known_once() {
        let ranges = |offline, work| -> Vec<_> {
            let drawn = Drawn { offline, ..drawn(4, 0) };
            let units = iteration(&config(), &drawn, &given(0)).unwrap();
            let units = units.into_iter().filter(|unit| unit.work == work);
            units.filter_map(|unit| unit.plan.map(|plan| (plan.from, plan.to))).collect()
        };
        let new = OfflineDrawn { pairs: 5, rendered: 0, known: 0 };
        assert_eq!(ranges(new, WorkKind::RenderPairs), [(0, 5)]);
        // A pair is planned with 2 · 2048 tokens: one batch of two pairs makes a unit.
        assert_eq!(ranges(new, WorkKind::LogprobsPairs), [(0, 2), (2, 4), (4, 5)]);
        let grown = OfflineDrawn { pairs: 7, rendered: 5, known: 5 };
        assert_eq!(ranges(grown, WorkKind::RenderPairs), [(5, 7)]);
        assert_eq!(ranges(grown, WorkKind::LogprobsPairs), [(4, 6), (6, 7)]);
        let known = OfflineDrawn { pairs: 7, rendered: 7, known: 7 };
        assert!(ranges(known, WorkKind::RenderPairs).is_empty());
        assert!(ranges(known, WorkKind::LogprobsPairs).is_empty());
    }
}
