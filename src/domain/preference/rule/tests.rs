//! Tests of the pairing rule: by hand, and what must hold for any responses under any rule.

use proptest::prelude::*;

use super::*;
use crate::ids::ResponseId;
use crate::label::Score;

const KEY: PromptKey = PromptKey { seed: 7, iteration: 1, ordinal: 3 };
const PAPER: PairRule = PairRule {
    choice: Choice::BestWorst,
    arms: Arms::Any,
    unfinished: Unfinished::Keep,
    score_gap_min: 0.0,
    pairs_max: 1_000,
};

fn candidate(sample: u32, text_key: i64, score: f64) -> Candidate {
    let response = ResponseId(i64::from(sample) + 100);
    let score = Score::new(score).unwrap();
    Candidate { response, sample, arm: 0, finish: Finish::Stop, text_key, score }
}

fn unfinished(candidate: Candidate) -> Candidate {
    Candidate { finish: Finish::Length, ..candidate }
}

fn of_arm(arm: u32, candidate: Candidate) -> Candidate {
    Candidate { arm, ..candidate }
}

/// Samples of chosen and rejected, in the order of ranks; else the word of the outcome.
fn told(candidates: &[Candidate], rule: &PairRule) -> Result<Vec<(u32, u32)>, &'static str> {
    match pair(candidates, rule, &KEY) {
        Pairing::Pairs(pairs) => {
            Ok(pairs.iter().map(|p| (p.chosen().sample, p.rejected().sample)).collect())
        }
        Pairing::Tie => Err("tie"),
        Pairing::Without(reason) => Err(reason.label()),
    }
}

fn four() -> [Candidate; 4] {
    [candidate(0, 10, 0.5), candidate(1, 11, 2.0), candidate(2, 12, 2.0), candidate(3, 13, -1.0)]
}

#[test]
fn best_meets_worst_and_the_lowest_sample_breaks_ties() {
    assert_eq!(told(&four(), &PAPER), Ok(vec![(1, 3)]));
    // 2.0 − −1.0 = 3.0: not below.
    assert_eq!(told(&four(), &PairRule { score_gap_min: 3.0, ..PAPER }), Ok(vec![(1, 3)]));
    assert_eq!(told(&four(), &PairRule { score_gap_min: 3.5, ..PAPER }), Err("small_gap"));
}

#[test]
fn each_choice_by_hand() {
    let by = |choice| told(&four(), &PairRule { choice, ..PAPER });
    // The two best tie, and a tie is no preference: the next below is 0.5.
    assert_eq!(by(Choice::BestSecond), Ok(vec![(1, 0)]));
    // Gaps: 1−3 and 2−3 3.0, 1−0, 2−0 and 0−3 1.5.
    assert_eq!(by(Choice::All), Ok(vec![(1, 3), (2, 3), (0, 3), (1, 0), (2, 0)]));
    assert_eq!(by(Choice::Threshold(2.0)), Ok(vec![(1, 3), (2, 3)]));
    assert_eq!(by(Choice::Threshold(4.0)), Err("small_gap"));
    let three = PairRule { choice: Choice::All, pairs_max: 3, ..PAPER };
    assert_eq!(told(&four(), &three), Ok(vec![(1, 3), (2, 3), (0, 3)]));
    // The floor holds for every choice.
    let floor = PairRule { choice: Choice::BestSecond, score_gap_min: 2.0, ..PAPER };
    assert_eq!(told(&four(), &floor), Ok(vec![(1, 3)]));
}

#[test]
fn ties_and_lonely_responses_give_no_pair() {
    let tie = [candidate(0, 1, 1.0), candidate(1, 2, 1.0)];
    // The same text twice is one response, though its scores differ in the last bits.
    let same = [candidate(0, 1, 1.0), candidate(1, 1, 1.000_000_1)];
    // −0 and 0 are equal scores.
    let zeros = [candidate(0, 1, -0.0), candidate(1, 2, 0.0)];
    let choices = [
        Choice::BestWorst,
        Choice::BestSecond,
        Choice::BestRandom,
        Choice::Random,
        Choice::All,
        Choice::Threshold(0.5),
    ];
    for choice in choices {
        let rule = PairRule { choice, ..PAPER };
        assert_eq!(told(&tie, &rule), Err("tie"), "a tie became a pair by {choice:?}");
        assert_eq!(told(&zeros, &rule), Err("tie"), "{choice:?}");
        assert_eq!(told(&same, &rule), Err("one_response"), "{choice:?}");
        assert_eq!(told(&[], &rule), Err("unlabelled"), "{choice:?}");
    }
}

#[test]
fn arms_say_who_may_meet() {
    // Arm 0: 5 and 3; arm 1: 4 and 1.
    let two_arms = [
        candidate(0, 10, 5.0),
        candidate(1, 11, 3.0),
        of_arm(1, candidate(2, 12, 4.0)),
        of_arm(1, candidate(3, 13, 1.0)),
    ];
    let by = |arms, choice| told(&two_arms, &PairRule { arms, choice, ..PAPER });
    assert_eq!(by(Arms::Any, Choice::BestWorst), Ok(vec![(0, 3)]));
    assert_eq!(by(Arms::Within, Choice::BestWorst), Ok(vec![(0, 1)]));
    assert_eq!(by(Arms::Across, Choice::BestSecond), Ok(vec![(0, 2)]));
    assert_eq!(by(Arms::Within, Choice::All), Ok(vec![(2, 3), (0, 1)]));
    assert_eq!(by(Arms::Across, Choice::All), Ok(vec![(0, 3), (1, 3), (0, 2), (2, 1)]));
    let one_each = [candidate(0, 10, 5.0), of_arm(1, candidate(1, 11, 3.0))];
    assert_eq!(told(&one_each, &PairRule { arms: Arms::Within, ..PAPER }), Err("arms"));
    // The same two texts in both arms meet once.
    let twins = [
        candidate(0, 10, 5.0),
        candidate(1, 11, 3.0),
        of_arm(1, candidate(2, 10, 5.0)),
        of_arm(1, candidate(3, 11, 3.0)),
    ];
    for arms in [Arms::Within, Arms::Across] {
        let all = PairRule { arms, choice: Choice::All, ..PAPER };
        assert_eq!(told(&twins, &all).unwrap().len(), 1, "{arms:?}");
    }
}

#[test]
fn responses_without_a_stop_id_are_kept_excluded_or_only_rejected() {
    let three = [unfinished(candidate(0, 10, 9.0)), candidate(1, 11, 5.0), candidate(2, 12, 1.0)];
    let by = |of: &[Candidate], unfinished| told(of, &PairRule { unfinished, ..PAPER });
    assert_eq!(by(&three, Unfinished::Keep), Ok(vec![(0, 2)]));
    assert_eq!(by(&three, Unfinished::Exclude), Ok(vec![(1, 2)]));
    assert_eq!(by(&three, Unfinished::OnlyRejected), Ok(vec![(1, 2)]));
    let worst = [candidate(0, 10, 9.0), unfinished(candidate(1, 11, 5.0))];
    assert_eq!(by(&worst, Unfinished::OnlyRejected), Ok(vec![(0, 1)]));
    assert_eq!(by(&worst, Unfinished::Exclude), Err("unfinished"));
    assert_eq!(by(&three[..2], Unfinished::OnlyRejected), Err("unfinished"));
    // The same text once cut off and once finished: the finished one speaks, whatever its sample.
    let twin = [unfinished(candidate(0, 10, 9.0)), candidate(1, 10, 9.0), candidate(2, 12, 1.0)];
    assert_eq!(by(&twin, Unfinished::Exclude), Ok(vec![(1, 2)]));
    assert_eq!(by(&twin, Unfinished::Keep), Ok(vec![(0, 2)]));
}

#[test]
fn random_choices_follow_their_key_and_reach_every_pair() {
    for (choice, pairs) in [(Choice::Random, 5), (Choice::BestRandom, 2)] {
        let rule = PairRule { choice, ..PAPER };
        let at = |ordinal| {
            let Pairing::Pairs(pairs) = pair(&four(), &rule, &PromptKey { ordinal, ..KEY }) else {
                panic!("there are pairs");
            };
            (pairs.len(), pairs[0].chosen().sample, pairs[0].rejected().sample)
        };
        let seen: BTreeSet<_> = (0..200).map(at).collect();
        assert_eq!(seen.len(), pairs, "{seen:?}");
        assert!(seen.iter().all(|(number, _, _)| *number == 1));
        assert_eq!(at(17), at(17));
    }
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec((0_i64..6, -3_i32..3, 0_u32..3, any::<bool>()), 0..12).prop_map(
        |rows| {
            let one = |(sample, (key, score, arm, stopped)): (u32, (i64, i32, u32, bool))| {
                let one = of_arm(arm, candidate(sample, key, f64::from(score)));
                if stopped { one } else { unfinished(one) }
            };
            (0_u32..).zip(rows).map(one).collect()
        },
    )
}

fn any_rule() -> impl Strategy<Value = PairRule> {
    let choices = [
        Choice::BestWorst,
        Choice::BestSecond,
        Choice::BestRandom,
        Choice::Random,
        Choice::All,
        Choice::Threshold(2.0),
    ];
    let arms = [Arms::Any, Arms::Within, Arms::Across];
    let unfinished = [Unfinished::Keep, Unfinished::Exclude, Unfinished::OnlyRejected];
    (0..choices.len(), 0..arms.len(), 0..unfinished.len(), 0_u8..3, 1_usize..9).prop_map(
        move |(choice, arm, late, floor, pairs_max)| PairRule {
            choice: choices[choice],
            arms: arms[arm],
            unfinished: unfinished[late],
            score_gap_min: f64::from(floor),
            pairs_max,
        },
    )
}

proptest! {
    #[test]
    fn whatever_the_rule_chosen_scores_above_rejected_and_order_does_not_matter(
        candidates in any_candidates(), rule in any_rule()
    ) {
        let outcome = pair(&candidates, &rule, &KEY);
        let mut reversed = candidates.clone();
        reversed.reverse();
        prop_assert_eq!(&outcome, &pair(&reversed, &rule, &KEY));
        let Pairing::Pairs(pairs) = outcome else { return Ok(()) };
        let all = matches!(rule.choice, Choice::All | Choice::Threshold(_));
        let most = if all { rule.pairs_max } else { 1 };
        prop_assert!((1..=most).contains(&pairs.len()));
        let mut texts = BTreeSet::new();
        for p in &pairs {
            let (chosen, rejected) = (p.chosen(), p.rejected());
            prop_assert!(chosen.score > rejected.score && p.score_gap() >= rule.score_gap_min);
            prop_assert!(chosen.text_key != rejected.text_key);
            let both = [chosen.text_key, rejected.text_key];
            prop_assert!(texts.insert((both.iter().min().copied(), both.iter().max().copied())));
            prop_assert!(rule.arms != Arms::Within || chosen.arm == rejected.arm);
            prop_assert!(rule.arms != Arms::Across || chosen.arm != rejected.arm);
            let stopped = |c: &Candidate| c.finish == Finish::Stop;
            prop_assert!(rule.unfinished == Unfinished::Keep || stopped(chosen));
            prop_assert!(rule.unfinished != Unfinished::Exclude || stopped(rejected));
        }
        prop_assert!(pairs.is_sorted_by(|a, b| a.score_gap() >= b.score_gap()));
    }

    #[test]
    fn turning_all_scores_over_swaps_chosen_and_rejected(candidates in any_candidates()) {
        let turned: Vec<_> = candidates.iter()
            .map(|c| Candidate { score: Score::new(-c.score.get()).unwrap(), ..*c }).collect();
        match (pair(&candidates, &PAPER, &KEY), pair(&turned, &PAPER, &KEY)) {
            (Pairing::Pairs(a), Pairing::Pairs(b)) => {
                prop_assert_eq!(a[0].chosen().response, b[0].rejected().response);
                prop_assert_eq!(a[0].rejected().response, b[0].chosen().response);
            }
            (a, b) => prop_assert_eq!(a, b),
        }
    }

    #[test]
    fn the_one_pair_of_every_choice_is_among_all_of_them(
        candidates in any_candidates(), rule in any_rule()
    ) {
        let every = PairRule { choice: Choice::All, pairs_max: 1_000, ..rule };
        match (pair(&candidates, &rule, &KEY), pair(&candidates, &every, &KEY)) {
            (Pairing::Pairs(some), Pairing::Pairs(all)) => {
                let known = |p: &Preference| all.iter().any(|q| {
                    (q.chosen().text_key, q.rejected().text_key)
                        == (p.chosen().text_key, p.rejected().text_key)
                });
                prop_assert!(some.iter().all(known));
            }
            (Pairing::Without(WithoutPair::SmallGap), _) => {}
            (a, b) => prop_assert_eq!(a, b),
        }
    }
}
