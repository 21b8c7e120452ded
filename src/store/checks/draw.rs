//! Draws: none twice, returned first, at a flat cost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rlhfd_domain::train::{History, ReferenceRule};

use super::*;
use crate::{Iteration, NewIteration, StoreError};

fn start(bench: &mut Bench, run: RunId, prompts: u64, evaluate: u64) -> crate::Result<Iteration> {
    start_with(bench, run, (prompts, evaluate), false)
}

fn start_with(
    bench: &mut Bench,
    run: RunId,
    (prompts, evaluate): (u64, u64),
    reuse_prompts: bool,
) -> crate::Result<Iteration> {
    let new = NewIteration {
        run,
        config: "[run]".into(),
        config_sha256: "c".repeat(64),
        prompts_max: prompts,
        reuse_prompts,
        arms: Vec::new(),
        evaluate_prompts_max: evaluate,
        offline: crate::OfflineUse::default(),
        reference: ReferenceRule::Fixed,
        history: History::All,
    };
    bench.store.start_iteration(&new, NOW, |drawn| {
        assert!(drawn.prompts <= prompts);
        Vec::new()
    })
}

fn drawn(bench: &Bench, iteration: u32) -> Vec<i64> {
    bench
        .store
        .conn
        .prepare("SELECT prompt_id FROM draws WHERE iteration = ?1 ORDER BY ordinal")
        .unwrap()
        .query_map([iteration], |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap()
}

fn end(bench: &mut Bench, run: RunId, iteration: u32) {
    bench.store.end_without_update(run, iteration, "a check", NOW).unwrap();
}

#[test]
fn no_prompt_is_drawn_twice_and_none_is_forgotten() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("one", 0.2, &texts(0, 30));
    bench.add("two", 0.0, &texts(30, 50));
    let fresh = bench.store.fresh_prompts(run).unwrap();
    let mut seen = BTreeSet::new();
    for t in 1.. {
        match start(&mut bench, run, 7, 0) {
            Ok(_) => {}
            Err(error) => {
                assert!(error.to_string().contains("no fresh prompt"), "{error}");
                break;
            }
        }
        let prompts = drawn(&bench, t);
        assert!(prompts.iter().all(|p| seen.insert(*p)), "one was drawn twice");
        end(&mut bench, run, t);
    }
    assert_eq!(seen.len() as u64, fresh);
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 0);
    assert_eq!(
        bench.number(
            "SELECT count(*) FROM draws d JOIN prompts p ON p.id = d.prompt_id WHERE p.reserved = 1"
        ),
        0
    );
    assert_eq!(
        bench.number("SELECT count(*) FROM iterations"),
        i64::try_from(fresh.div_ceil(7)).unwrap(),
        "the refused start left no row"
    );
    bench.add("three", 0.0, &texts(50, 52));
    start(&mut bench, run, 7, 0).unwrap();
    assert_eq!(bench.store.current_iteration(run).unwrap().unwrap().prompts, 2);
}

#[test]
fn a_cancelled_iterations_prompts_come_first_again() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("s", 0.0, &texts(0, 20));
    start(&mut bench, run, 5, 0).unwrap();
    let first = drawn(&bench, 1);
    assert!(matches!(start(&mut bench, run, 5, 0), Err(StoreError::Conflict { .. })));
    bench.store.cancel_iteration(run, 1, NOW).unwrap();
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 20);
    assert!(bench.store.cancel_iteration(run, 1, NOW).is_err());
    start(&mut bench, run, 8, 0).unwrap();
    let second = drawn(&bench, 2);
    assert_eq!(&second[..5], &first[..]);
    assert_eq!(second.iter().collect::<BTreeSet<_>>().len(), 8);
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 12);
    let history = bench.store.history("main", 10).unwrap();
    assert_eq!(
        history.iter().map(|row| row.status.as_str()).collect::<Vec<_>>(),
        ["cancelled", "running"]
    );
}

#[test]
fn another_run_draws_for_itself() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("s", 0.0, &texts(0, 6));
    start(&mut bench, run, 6, 0).unwrap();
    let other = bench.store.open_run(&identity("other", 7, "a"), NOW).unwrap().id;
    assert_eq!(bench.store.fresh_prompts(other).unwrap(), 6);
    start(&mut bench, other, 6, 0).unwrap();
    assert_eq!(bench.store.prompt_sets(Some(other)).unwrap()[0].drawn, 6);
}

#[test]
fn the_evaluation_list_only_grows_and_takes_from_every_set() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("one", 0.5, &texts(0, 40));
    bench.add("two", 0.5, &texts(40, 80));
    let list = |bench: &Bench| -> Vec<(i64, i64)> {
        bench.store.conn
            .prepare("SELECT e.ordinal, e.prompt_id FROM evaluation_prompts e JOIN prompts p ON p.id = e.prompt_id WHERE p.reserved = 1 ORDER BY e.ordinal")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap()
    };
    assert_eq!(start(&mut bench, run, 3, 10).unwrap().evaluate, 10);
    let short = list(&bench);
    assert_eq!(short.len(), 10);
    let sets = bench.number("SELECT count(DISTINCT p.upload_id) FROM evaluation_prompts e JOIN prompts p ON p.id = e.prompt_id");
    assert_eq!(sets, 2);
    end(&mut bench, run, 1);
    let reserved = bench.number("SELECT sum(reserved) FROM prompt_sets").cast_unsigned();
    assert_eq!(start(&mut bench, run, 3, 1_000).unwrap().evaluate, reserved);
    let long = list(&bench);
    assert_eq!(&long[..10], &short[..], "what was there keeps its place");
    assert_eq!(long.len() as u64, reserved);
    end(&mut bench, run, 2);
    assert_eq!(start(&mut bench, run, 3, 4).unwrap().evaluate, 4);
}

/// How many prompts of an iteration's draw belong to each set, in order of the sets' making.
fn by_set(bench: &Bench, iteration: u32) -> Vec<i64> {
    bench
        .store
        .conn
        .prepare(
            "SELECT (SELECT count(*) FROM draws d JOIN prompts p ON p.id = d.prompt_id
                     JOIN uploads u ON u.id = p.upload_id
                     WHERE d.iteration = ?1 AND u.set_id = s.id)
             FROM prompt_sets s ORDER BY s.id",
        )
        .unwrap()
        .query_map([iteration], |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap()
}

fn order(bench: &mut Bench, set: &str, priority: Option<i64>, weight: Option<f64>) {
    let name = Name::parse(set, "set").unwrap();
    bench.store.order_prompt_set(&name, (priority, weight), None, NOW).unwrap();
}

#[test]
fn a_draw_is_shared_by_weight_and_a_short_set_leaves_its_share() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("one", 0.0, &texts(0, 100));
    bench.add("two", 0.0, &texts(100, 103));
    bench.add("two", 0.0, &texts(103, 110));
    bench.add("three", 0.0, &texts(200, 300));
    bench.add("last", 0.0, &texts(300, 400));
    order(&mut bench, "two", None, Some(3.0));
    order(&mut bench, "three", None, Some(2.0));
    order(&mut bench, "last", Some(-1), None);
    // 12 by 1 : 3 : 2; the second set has uploads of 3 and of 7.
    start(&mut bench, run, 12, 0).unwrap();
    assert_eq!(by_set(&bench, 1), [2, 6, 4, 0]);
    let of_one: Vec<usize> = (0..12).filter(|at| drawn(&bench, 1)[*at] <= 100).collect();
    // At 1/4 and 3/4 of the way, behind the 2 and 7 others that stand before.
    assert_eq!(of_one, [2, 8], "spread over the draw");
    end(&mut bench, run, 1);
    // Of 12 again the second set's share is 6, and it has 4 left: 2 go to the others by 1 : 2.
    start(&mut bench, run, 12, 0).unwrap();
    assert_eq!(by_set(&bench, 2), [3, 4, 5, 0]);
    end(&mut bench, run, 2);
    // The set of a lower priority has its turn when the others have none left.
    start(&mut bench, run, 190, 0).unwrap();
    assert_eq!(by_set(&bench, 3), [95, 0, 91, 4]);
    end(&mut bench, run, 3);
    // A priority changes the next draw, and a set that is queued now is drawn at once.
    bench.add("urgent", 0.0, &texts(500, 505));
    order(&mut bench, "urgent", Some(9), None);
    start(&mut bench, run, 10, 0).unwrap();
    assert_eq!(by_set(&bench, 4), [0, 0, 0, 5, 5]);
    assert!(drawn(&bench, 4)[..5].iter().all(|p| *p > 310), "the urgent ones come first");
    let seen: Vec<i64> = (1..=4).flat_map(|t| drawn(&bench, t)).collect();
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "none twice");
}

#[test]
fn weight_and_priority_are_held_to_their_ranges() {
    let mut bench = Bench::new();
    bench.add("s", 0.0, &texts(0, 3));
    let name = Name::parse("s", "set").unwrap();
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let changed = bench.store.order_prompt_set(&name, (None, Some(weight)), None, NOW);
        assert!(matches!(changed, Err(StoreError::Conflict { .. })), "{weight}");
    }
    let nobody = Name::parse("nobody", "set").unwrap();
    let changed = bench.store.order_prompt_set(&nobody, (Some(1), None), None, NOW);
    assert!(matches!(changed, Err(StoreError::NotFound { .. })));
    order(&mut bench, "s", Some(-7), None);
    order(&mut bench, "s", None, Some(0.5));
    let set = &bench.store.prompt_sets(None).unwrap()[0];
    assert_eq!((set.priority, set.weight), (-7, 0.5));
}

/// Prompts of a draw with how often they were used before.
fn used(bench: &Bench, iteration: u32) -> Vec<(i64, u32)> {
    bench
        .store
        .conn
        .prepare("SELECT prompt_id, used_before FROM draws WHERE iteration = ?1 ORDER BY ordinal")
        .unwrap()
        .query_map([iteration], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap()
}

#[test]
fn where_it_is_asked_for_the_pool_starts_over_with_the_oldest() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("s", 0.0, &texts(0, 5));
    let again = |bench: &mut Bench, prompts| start_with(bench, run, (prompts, 0), true);
    again(&mut bench, 3).unwrap();
    assert_eq!(used(&bench, 1), [(1, 0), (2, 0), (3, 0)]);
    // What was refused is not drawn again.
    bench.store.conn.execute("UPDATE draws SET set_aside = 'x' WHERE prompt_id = 2", []).unwrap();
    end(&mut bench, run, 1);
    again(&mut bench, 3).unwrap();
    assert_eq!(used(&bench, 2), [(4, 0), (5, 0), (1, 1)]);
    end(&mut bench, run, 2);
    assert_eq!(
        (bench.store.fresh_prompts(run).unwrap(), bench.store.used_prompts(run).unwrap()),
        (0, 5)
    );
    // A cancelled iteration's prompts are in the pool, used ones too, and keep what they were.
    again(&mut bench, 2).unwrap();
    assert_eq!(used(&bench, 3), [(3, 1), (4, 1)]);
    bench.store.cancel_iteration(run, 3, NOW).unwrap();
    assert_eq!(bench.store.fresh_prompts(run).unwrap(), 2);
    again(&mut bench, 3).unwrap();
    assert_eq!(used(&bench, 4), [(3, 1), (4, 1), (5, 1)]);
    end(&mut bench, run, 4);
    // New prompts come before used ones, and no draw holds a prompt twice, however many are asked for.
    bench.add("s", 0.0, &texts(5, 6));
    again(&mut bench, 9).unwrap();
    assert_eq!(used(&bench, 5), [(6, 0), (1, 2), (3, 2), (4, 2), (5, 2)]);
    end(&mut bench, run, 5);
    assert!(start(&mut bench, run, 1, 0).is_err(), "unless it is asked for");
}

/// Instructions of SQLite's machine that `work` takes, in hundreds.
fn cost(bench: &mut Bench, work: impl FnOnce(&mut Bench)) -> u64 {
    let ticks = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&ticks);
    let count = move || {
        counter.fetch_add(1, Ordering::Relaxed);
        false
    };
    bench.store.conn_mut().progress_handler(100, Some(count)).unwrap();
    work(bench);
    bench.store.conn_mut().progress_handler(0, None::<fn() -> bool>).unwrap();
    ticks.load(Ordering::Relaxed)
}

#[test]
fn a_draw_and_the_status_cost_the_same_among_a_hundred_thousand_prompts() {
    let mut bench = Bench::new();
    let run = bench.run().id;
    bench.add("small", 0.0, &texts(0, 1_000));
    let draw = |bench: &mut Bench| drop(start(bench, run, 50, 0).unwrap());
    let look = |bench: &mut Bench| {
        bench.store.status(run).unwrap();
        bench.store.prompt_sets(Some(run)).unwrap();
        bench.store.history("main", 10).unwrap();
        bench.store.waiting_since(run).unwrap();
    };
    let small = cost(&mut bench, draw);
    let small_look = cost(&mut bench, look);
    end(&mut bench, run, 1);
    bench.add("large", 0.1, &texts(1_000, 100_000));
    for t in 2..=19 {
        start(&mut bench, run, 50, 0).unwrap();
        end(&mut bench, run, t);
    }
    // This one crosses from the small set into the large one.
    start(&mut bench, run, 4_900, 0).unwrap();
    end(&mut bench, run, 20);
    let large = cost(&mut bench, draw);
    let large_look = cost(&mut bench, look);
    assert!(large <= small + small / 2, "a draw cost {small}, and {large} among many");
    // The status also counts twenty more iterations.
    assert!(large_look <= small_look + 40, "a look cost {small_look}, and {large_look} among many");
}
