//! Which checkpoints' files may go: all that nothing needs any more, but for the newest few.
//!
//! In: a run's checkpoints, what is needed, how many of the newest stay. Out: those that may go, the
//! oldest first. May not enter: folders, rows, whether it is time.

use std::collections::BTreeSet;

use crate::CheckpointId;
use crate::checkpoint::CheckpointKind;

/// A checkpoint as far as keeping it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its row.
    pub id: CheckpointId,
    /// What it is.
    pub kind: CheckpointKind,
    /// Which iteration trained it.
    pub iteration: Option<u32>,
    /// A person wants it kept.
    pub pinned: bool,
    /// It is a moving average up to a policy whose files are there no more.
    pub follows_removed: bool,
    /// Its files are there, and nobody has begun to remove them.
    pub present: bool,
}

/// The checkpoints whose files may go: trained by iterations and not among the newest `keep_last` that are
/// present, or averages of those that are gone; neither pinned nor needed. With 0 all are kept.
#[must_use]
pub fn superfluous(
    checkpoints: &[Standing],
    needed: &BTreeSet<CheckpointId>,
    keep_last: u64,
) -> Vec<CheckpointId> {
    if keep_last == 0 {
        return Vec::new();
    }
    let mut trained: Vec<&Standing> = checkpoints
        .iter()
        .filter(|one| one.present && one.kind == CheckpointKind::Policy && one.iteration.is_some())
        .collect();
    trained.sort_by_key(|one| std::cmp::Reverse(one.iteration));
    let newest = usize::try_from(keep_last).unwrap_or(usize::MAX);
    let older = trained.into_iter().skip(newest).rev();
    let averages = checkpoints
        .iter()
        .filter(|one| one.present && one.kind == CheckpointKind::Reference && one.follows_removed);
    older
        .chain(averages)
        .filter(|one| !one.pinned && !needed.contains(&one.id))
        .map(|one| one.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(iteration: u32) -> Standing {
        Standing {
            id: CheckpointId(i64::from(iteration) + 10),
            kind: CheckpointKind::Policy,
            iteration: Some(iteration),
            pinned: false,
            follows_removed: false,
            present: true,
        }
    }

    fn ids(of: &[i64]) -> Vec<CheckpointId> {
        of.iter().map(|id| CheckpointId(*id)).collect()
    }

    #[test]
    fn the_oldest_go_first_and_what_is_needed_or_pinned_stays() {
        let mut all: Vec<Standing> = (1..=6).map(policy).collect();
        all[1].pinned = true;
        let needed = BTreeSet::from([CheckpointId(13)]);
        // Of 11 … 16 the newest two stay, 12 is pinned, 13 is needed.
        assert_eq!(superfluous(&all, &needed, 2), ids(&[11, 14]));
        assert_eq!(superfluous(&all, &needed, 6), ids(&[]));
        assert_eq!(superfluous(&all, &needed, 0), ids(&[]), "0 keeps all");
        // What is gone already does not count among the newest.
        all[5].present = false;
        assert_eq!(superfluous(&all, &needed, 2), ids(&[11]));
    }

    #[test]
    fn an_average_goes_after_its_policy_and_not_before() {
        let reference = |iteration, follows_removed| Standing {
            kind: CheckpointKind::Reference,
            iteration: None,
            follows_removed,
            ..policy(iteration)
        };
        let all = [reference(1, true), reference(2, false), policy(3)];
        assert_eq!(superfluous(&all, &BTreeSet::new(), 1), ids(&[11]));
        assert_eq!(superfluous(&all, &BTreeSet::from([CheckpointId(11)]), 1), ids(&[]));
    }

    #[test]
    fn only_what_iterations_trained_ever_goes() {
        let others = [
            Standing { kind: CheckpointKind::Initial, ..policy(1) },
            Standing { kind: CheckpointKind::Reward, iteration: None, ..policy(2) },
            // A supervised fine-tuning's policy is what the run began with.
            Standing { iteration: None, ..policy(3) },
            policy(4),
            policy(5),
        ];
        assert_eq!(superfluous(&others, &BTreeSet::new(), 1), ids(&[14]));
    }

    proptest! {
        #[test]
        fn whatever_goes_is_not_needed_and_the_newest_stay(
            states in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..40),
            keep in 1_u64..8,
        ) {
            let all: Vec<Standing> = states.iter().enumerate().map(|(index, (pinned, present, _))| {
                let iteration = u32::try_from(index).unwrap() + 1;
                Standing { pinned: *pinned, present: *present, ..policy(iteration) }
            }).collect();
            let needed: BTreeSet<_> = all.iter().zip(&states)
                .filter(|(_, (_, _, needed))| *needed).map(|(one, _)| one.id).collect();
            let gone = superfluous(&all, &needed, keep);
            for one in all.iter().filter(|one| gone.contains(&one.id)) {
                prop_assert!(one.present && !one.pinned && !needed.contains(&one.id));
            }
            let left = all.iter().filter(|one| one.present && !gone.contains(&one.id)).count();
            let present = all.iter().filter(|one| one.present).count();
            prop_assert!(left as u64 >= keep.min(present as u64));
        }
    }
}
