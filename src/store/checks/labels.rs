//! Several scorers, a canary, a length penalty and rules with several pairs: what is kept of them.

use rlhfd_domain::label::combine::Normalise;
use rlhfd_domain::label::penalty::{Fit, LengthUnit, fit};
use rlhfd_domain::preference::{Choice, PairRule};
use rlhfd_domain::train::{History, Replay};

use super::flow::{Flow, PAPER, other_score, paper_scoring};
use super::*;
use crate::{Compared, Logprobs, PairTotals, Scored, ScorerUse, Scoring, StoreError};

/// A flow with a second scorer and a canary whose scores would turn every pair over.
fn three_scorers(prompts: u32) -> Flow {
    let mut flow = Flow::new(prompts);
    for (name, digit) in [("brief", "6"), ("watch", "7")] {
        let scorer = flow.bench.store.scorer(name, "reward", name, &digit.repeat(64)).unwrap();
        flow.others.push(scorer);
    }
    flow.start(u64::from(prompts), 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    flow
}

/// `help` as it is, `brief` twice, `watch` not at all.
fn scoring(flow: &Flow) -> Scoring {
    let unit = flow.bench.unit(flow.run, "0001/pair");
    let mut scoring = paper_scoring(&flow.bench.store, &unit, flow.scorer).unwrap();
    let spreads = flow.bench.store.spreads(flow.run, 1).unwrap();
    for (scorer, weight) in flow.others.iter().zip([Some(2.0), None]) {
        let spread = spreads.get(scorer).copied();
        let used = ScorerUse { scorer: *scorer, weight, normalise: Normalise::None, spread };
        scoring.scorers.push(used);
    }
    scoring
}

fn pair(flow: &mut Flow, scoring: &Scoring, rule: &PairRule) -> crate::Result<PairTotals> {
    let unit = flow.bench.unit(flow.run, "0001/pair");
    let end = flow.bench.begin(&unit);
    flow.bench.store.finish_pair(&end, scoring, rule, NOW)
}

#[test]
fn scores_are_weighed_and_the_canary_is_kept_and_never_used() {
    let mut flow = three_scorers(5);
    flow.work(WorkKind::Score);
    let scoring = scoring(&flow);
    pair(&mut flow, &scoring, &PAPER).unwrap();
    // 1 − 0.25 · 2 = 0.5 for the second sample, 0 for the first. The fifth prompt's tie is broken by
    // the second scorer: 2 against 2 − 0.5. With the canary the first sample would win everywhere.
    let told = "SELECT group_concat(ordinal || ':' || chosen_score || '>' || rejected_score, ' ')
                FROM (SELECT * FROM preferences ORDER BY ordinal)";
    let told: String = flow.bench.store.conn.query_row(told, [], |row| row.get(0)).unwrap();
    assert_eq!(told, "0:0.5>0.0 1:0.5>0.0 2:0.5>0.0 3:0.5>0.0 4:2.0>1.5");
    let canary = "SELECT count(*) FROM scorer_totals WHERE weight IS NULL AND labelled = 10
                  AND set_aside = 0 AND score_mean = -500.0";
    assert_eq!(flow.bench.number(canary), 1);
    let weighted = "SELECT count(*) FROM scorer_totals WHERE weight > 0 AND normalise = 'none'";
    assert_eq!(flow.bench.number(weighted), 2);
    let row = &flow.bench.store.history("main", 1).unwrap()[0];
    assert_eq!(row.canary_score_mean, Some(-500.0));
    // The first scorer's own: four prompts of 0 and 1, one of 2 and 2.
    assert!((row.score_mean.unwrap() - 0.8).abs() < 1e-12);
    // The combined one: (4 · 0.5 + 2 + 1.5) / 10.
    let combined = "SELECT count(*) FROM label_fits WHERE abs(score_mean - 0.55) < 1e-12
                    AND responses = 10 AND unscored = 0 AND length_penalty = 0";
    assert_eq!(flow.bench.number(combined), 1);
}

#[test]
fn what_one_scorer_set_aside_is_no_candidate_and_is_counted() {
    let mut flow = three_scorers(4);
    for unit in flow.bench.store.ready_units(flow.run, 1_000).unwrap() {
        let end = flow.bench.begin(&unit);
        let of = flow.others.iter().position(|other| Some(*other) == unit.scorer);
        let items: Vec<Scored> = flow
            .bench
            .store
            .score_items(unit.id)
            .unwrap()
            .iter()
            .map(|item| Scored {
                response: item.response,
                outcome: match (of, item.ordinal) {
                    // `brief` cannot judge prompt 1, and the canary cannot judge prompt 2.
                    (Some(0), 1) | (Some(1), 2) => {
                        Outcome::SetAside("over_long".into(), "x".into())
                    }
                    (Some(other), _) => Outcome::Done(other_score(other, item.sample)),
                    (None, _) => Outcome::Done(f64::from(item.sample)),
                },
            })
            .collect();
        flow.bench.store.finish_score(&end, &items, NOW).unwrap();
    }
    let scoring = scoring(&flow);
    let totals = pair(&mut flow, &scoring, &PAPER).unwrap();
    assert_eq!((totals.preferences, totals.prompts.without_pair), (3, 1));
    let lonely = "SELECT count(*) FROM unpaired WHERE ordinal = 1 AND reason = 'unlabelled'";
    assert_eq!(flow.bench.number(lonely), 1);
    let counted = "SELECT count(*) FROM label_fits WHERE responses = 6 AND unscored = 2";
    assert_eq!(flow.bench.number(counted), 1);
    let each = "SELECT count(*) FROM scorer_totals WHERE labelled + set_aside = 8";
    assert_eq!(flow.bench.number(each), 3);
}

#[test]
fn labels_go_by_their_responses_and_not_by_the_order_of_arrival() {
    let mut flow = three_scorers(4);
    for unit in flow.bench.store.ready_units(flow.run, 1_000).unwrap() {
        let end = flow.bench.begin(&unit);
        let items = flow.bench.store.score_items(unit.id).unwrap();
        let scored = |item: &crate::ScoreItem| Scored {
            response: item.response,
            outcome: Outcome::Done(f64::from(item.sample) - 10.0 * item.ordinal as f64),
        };
        let backwards: Vec<Scored> = items.iter().rev().map(scored).collect();
        flow.bench.store.finish_score(&end, &backwards, NOW).unwrap();
    }
    let swapped = "SELECT count(*) FROM labels l JOIN responses x ON x.id = l.response_id
                   WHERE l.score <> x.sample - 10.0 * x.ordinal";
    assert_eq!(flow.bench.number(swapped), 0);
    let scoring = scoring(&flow);
    pair(&mut flow, &scoring, &PAPER).unwrap();
    let worse = "SELECT count(*) FROM preferences p JOIN responses c ON c.id = p.chosen_id
                 WHERE c.sample <> 1";
    assert_eq!(flow.bench.number(worse), 0);
}

#[test]
fn a_label_that_one_scorer_lost_stops_the_iteration() {
    let mut flow = three_scorers(4);
    flow.work(WorkKind::Score);
    let scoring = scoring(&flow);
    // A defect is planted: the canary told of seven responses where eight were written.
    let lost = "DELETE FROM labels WHERE id = (SELECT max(l.id) FROM labels l
                JOIN scorers s ON s.id = l.scorer_id WHERE s.name = 'watch')";
    flow.bench.store.conn.execute(lost, []).unwrap();
    let error = pair(&mut flow, &scoring, &PAPER).unwrap_err().to_string();
    assert!(error.contains("8 responses were kept, but scorer watch labelled 7"), "{error}");
    let tables = "SELECT (SELECT count(*) FROM preferences) + (SELECT count(*) FROM label_fits)
                  + (SELECT count(*) FROM scorer_totals)";
    assert_eq!(flow.bench.number(tables), 0);
}

#[test]
fn a_scorer_that_labelled_nothing_makes_no_score() {
    let mut flow = Flow::new(2);
    flow.start(2, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    flow.work(WorkKind::Score);
    let stranger = flow.bench.store.scorer("new", "reward", "new", &"8".repeat(64)).unwrap();
    flow.others.push(stranger);
    let scoring = scoring(&flow);
    let error = pair(&mut flow, &scoring, &PAPER).unwrap_err();
    assert!(matches!(error, StoreError::Misfit { .. }), "{error:?}");
}

#[test]
fn several_pairs_of_a_prompt_are_ranked_and_need_each_log_prob_once() {
    let mut flow = Flow::new(4);
    flow.arms[0].n = 4;
    flow.start(4, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    flow.work(WorkKind::Score);
    let unit = flow.bench.unit(flow.run, "0001/pair");
    let scoring = paper_scoring(&flow.bench.store, &unit, flow.scorer).unwrap();
    let all = PairRule { choice: Choice::All, pairs_max: 5, ..PAPER };
    let totals = pair(&mut flow, &scoring, &all).unwrap();
    // Four samples of scores 0, 1, 2, 3 make six pairs, of which the widest five are kept.
    assert_eq!((totals.prompts.paired, totals.preferences), (4, 20));
    let gaps = "SELECT count(*) FROM preferences WHERE chosen_score - rejected_score
                = CASE rank WHEN 0 THEN 3 WHEN 1 THEN 2 WHEN 2 THEN 2 ELSE 1 END";
    assert_eq!(flow.bench.number(gaps), 20);
    let logprobs = flow.bench.unit(flow.run, "0001/train/logprobs/0-4");
    let items = flow.bench.store.logprob_items(logprobs.id).unwrap();
    let ids: std::collections::BTreeSet<_> = items.iter().map(|item| item.response).collect();
    assert_eq!((items.len(), ids.len()), (16, 16), "a response is in several pairs");
    let end = flow.bench.begin(&logprobs);
    let own = |response: i64| -f64::from(i32::try_from(response).unwrap());
    let rows: Vec<Logprobs> = items
        .iter()
        .map(|item| Logprobs {
            response: item.response,
            outcome: Outcome::Done((vec![-1.0; item.response_ids.len()], own(item.response.get()))),
        })
        .collect();
    flow.bench.store.finish_logprobs(&end, &rows, NOW).unwrap();
    assert!(flow.bench.store.logprob_items(logprobs.id).unwrap().is_empty(), "each once");
    // Under another reference each has another one, of which no pair may know.
    let another = "INSERT INTO checkpoints (id, run_id, name, kind, path, sha256, created_ms)
                       VALUES (99, 1, 'other', 'reference', 'other', 'other', 0);
                   INSERT INTO reference_logprobs SELECT response_id, 99, logprob - 100.0, tokens,
                       logprobs, unit_id FROM reference_logprobs";
    flow.bench.store.conn.execute_batch(another).unwrap();
    let train = flow.bench.unit(flow.run, "0001/train").id;
    let replay = Replay { history: History::All, history_weight: 1.0 };
    let store = &mut flow.bench.store;
    assert_eq!(store.fix_training_set(train, replay, NOW).unwrap(), (20, 0));
    let pairs = store.training_pairs(train, None, 1_000).unwrap();
    let order: Vec<_> =
        pairs.iter().map(|pair| (pair.iteration, pair.ordinal, pair.rank)).collect();
    assert!(order.is_sorted() && order.len() == 20, "{order:?}");
    let sides = "SELECT chosen_id, rejected_id FROM preferences WHERE ordinal = ?1 AND rank = ?2";
    for pair in pairs {
        let key = [i64::try_from(pair.ordinal).unwrap(), i64::from(pair.rank)];
        let of = |row: &rusqlite::Row<'_>| Ok([row.get::<_, i64>(0)?, row.get::<_, i64>(1)?]);
        let ids = store.conn.query_row(sides, key, of).unwrap();
        assert_eq!([pair.reference_chosen, pair.reference_rejected], ids.map(own));
    }
}

#[test]
fn a_fitted_penalty_shapes_the_pairs_and_is_kept_with_its_correlations() {
    let mut flow = Flow::new(2);
    flow.start(2, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    flow.work(WorkKind::Score);
    // The second sample is better by 1; now it is longer, too.
    let longer = "UPDATE responses SET characters = 10 + 5 * sample, tokens = 3";
    flow.bench.store.conn.execute(longer, []).unwrap();
    let unit = flow.bench.unit(flow.run, "0001/pair");
    let mut scoring = paper_scoring(&flow.bench.store, &unit, flow.scorer).unwrap();
    let measured = flow.bench.store.measured(flow.run, 1, &scoring).unwrap();
    assert_eq!(measured.iter().map(|row| row.length).collect::<Vec<_>>(), [10, 15, 10, 15]);
    scoring.penalty.fitted = true;
    scoring.penalty.fit = fit(&measured);
    // Length explains all of the score: at λ = 1/5 they are equal, and past it they turn over.
    assert!((scoring.penalty.fit.lambda - 0.2).abs() < 1e-9, "{:?}", scoring.penalty.fit);
    assert_eq!(scoring.penalty.fit.before, Some(1.0));
    let given = Fit { lambda: 0.5, ..scoring.penalty.fit };
    scoring.penalty.fit = given;
    pair(&mut flow, &scoring, &PAPER).unwrap();
    // 0 − 0.5 · 10 = −5 against 1 − 0.5 · 15 = −6.5.
    let turned =
        "SELECT count(*) FROM preferences WHERE chosen_score = -5 AND rejected_score = -6.5";
    assert_eq!(flow.bench.number(turned), 2);
    let kept = "SELECT count(*) FROM label_fits WHERE length_penalty = 0.5 AND fitted = 1
                AND length_unit = 'characters' AND correlation_before = 1";
    assert_eq!(flow.bench.number(kept), 1);
    scoring.penalty.unit = LengthUnit::Tokens;
    let measured = flow.bench.store.measured(flow.run, 1, &scoring).unwrap();
    assert!(measured.iter().all(|row| row.length == 3));
}

/// The pairs of two samples a prompt, the second better with 0.75, but for a prompt that has one text.
fn judged(flow: &Flow, unit: &crate::UnitRow) -> (Vec<Compared>, Vec<Scored>) {
    let items = flow.bench.store.score_items(unit.id).unwrap();
    let (mut pairs, mut scores) = (Vec::new(), Vec::new());
    for prompt in items.chunks(2) {
        let (first, second) = (prompt[0].response, prompt[1].response);
        let outcome = Outcome::Done(0.25);
        pairs.push(Compared { response: first, versus: second, outcome });
        for (response, score) in [(first, 0.25), (second, 0.75)] {
            scores.push(Scored { response, outcome: Outcome::Done(score) });
        }
    }
    (pairs, scores)
}

#[test]
fn comparisons_are_kept_beside_the_scores_that_come_of_them() {
    let mut flow = Flow::new(4);
    flow.start(4, 0);
    flow.bench.render(flow.run);
    flow.work(WorkKind::Generate);
    // The same units, as a preference model's.
    let prefer = "UPDATE units SET work = 'prefer' WHERE work = 'score'";
    flow.bench.store.conn.execute(prefer, []).unwrap();
    let unit = flow.bench.store.ready_units(flow.run, 1).unwrap().remove(0);
    assert_eq!(unit.work, WorkKind::Prefer);
    let (pairs, scores) = judged(&flow, &unit);
    let end = flow.bench.begin(&unit);
    let store = &mut flow.bench.store;
    let mut refused = |pairs: &[Compared], scores: &[Scored], part: &str| {
        let error = store.finish_prefer(&end, pairs, scores, NOW).unwrap_err().to_string();
        assert!(error.contains(part), "`{part}` is not in {error}");
    };
    refused(&pairs, &scores[1..], "others were labelled");
    let twice = [&pairs[..], &pairs[..1]].concat();
    refused(&twice, &scores, "compared twice");
    let mut strange = pairs.clone();
    strange[0].versus = strange[1].response;
    refused(&strange, &scores, "to one prompt");
    strange[0] = Compared { outcome: Outcome::Done(1.5), ..pairs[0].clone() };
    refused(&strange, &scores, "no share");
    let mut told = pairs.clone();
    told[0].outcome = Outcome::SetAside("over_long".into(), "x".into());
    store.finish_prefer(&end, &told, &scores, NOW).unwrap();
    while let Some(unit) = flow.bench.store.ready_units(flow.run, 1).unwrap().pop() {
        if unit.work != WorkKind::Prefer {
            break;
        }
        let (pairs, scores) = judged(&flow, &unit);
        let end = flow.bench.begin(&unit);
        flow.bench.store.finish_prefer(&end, &pairs, &scores, NOW).unwrap();
    }
    let kept = "SELECT count(*) FROM labels WHERE versus_id IS NOT NULL AND score IS NULL
                AND (preference IS NULL) = (set_aside IS NOT NULL)";
    assert_eq!(flow.bench.number(kept), 4);
    let unit = flow.bench.unit(flow.run, "0001/pair");
    let scoring = paper_scoring(&flow.bench.store, &unit, flow.scorer).unwrap();
    let totals = pair(&mut flow, &scoring, &PAPER).unwrap();
    assert_eq!((totals.preferences, totals.responses), (4, 8));
    let counted = "SELECT count(*) FROM scorer_totals WHERE labelled = 8 AND set_aside = 0";
    assert_eq!(flow.bench.number(counted), 1, "comparisons are no labels of responses");
}
