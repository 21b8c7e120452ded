//! The part of an iteration's plan that a moving reference asks for: log-probs of the pairs that earlier
//! iterations collected.
//!
//! In: where log-probs under the new reference are missing. Out: new units. Pure.

use rlhfd_domain::plan::PlanError;
use rlhfd_store::Replayed;

use super::{Planner, Ranged};

impl Planner<'_> {
    /// Units over the earlier iterations' own ordinals, in the batches that they had there.
    pub(super) fn replayed(
        &mut self,
        logprobs: &Ranged<'_>,
        replayed: &[Replayed],
    ) -> Result<(), PlanError> {
        for of in replayed {
            let earlier = of.iteration.to_string();
            let ranged = Ranged {
                prefix: format!("{}/of-{earlier}", logprobs.prefix),
                detail: Some(&earlier),
                ..*logprobs
            };
            self.ranged(&ranged, of.from / ranged.batch * ranged.batch, of.to)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rlhfd_domain::{Stage, WorkKind};
    use rlhfd_store::Drawn;

    use super::super::iteration;
    use super::super::tests::{config, drawn, given};
    use super::*;

    #[test]
    fn earlier_pairs_get_units_of_their_own_draws() {
        let replayed = vec![
            Replayed { iteration: 1, from: 3, to: 9 },
            Replayed { iteration: 2, from: 0, to: 1 },
        ];
        let drawn = Drawn { iteration: 3, replayed, ..drawn(4, 0) };
        let units = iteration(&config(), &drawn, &given(0)).unwrap();
        let of = |detail: Option<&str>| -> Vec<(String, u64, u64)> {
            let units = units.iter().filter(|unit| {
                (unit.stage, unit.work) == (Stage::Train, WorkKind::Logprobs)
                    && unit.detail.as_deref() == detail
            });
            let told = units.map(|unit| (unit.key.clone(), unit.plan.unwrap()));
            told.map(|(key, plan)| (key, plan.from, plan.to)).collect()
        };
        // Batches of two prompts: a unit of 4,096 tokens holds many.
        assert_eq!(of(Some("1")), [("3/train/logprobs/of-1/2-9".to_owned(), 2, 9)]);
        assert_eq!(of(Some("2")), [("3/train/logprobs/of-2/0-1".to_owned(), 0, 1)]);
        assert_eq!(of(None), [("3/train/logprobs/0-4".to_owned(), 0, 4)]);
    }
}
