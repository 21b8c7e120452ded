//! Draws: none twice, returned first, at a flat cost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{Iteration, NewIteration, StoreError};

fn start(bench: &mut Bench, run: RunId, prompts: u64, evaluate: u64) -> crate::Result<Iteration> {
    let new = NewIteration {
        run,
        config: "[run]".into(),
        config_sha256: "c".repeat(64),
        prompts_max: prompts,
        evaluate_prompts_max: evaluate,
        offline: crate::OfflineUse::default(),
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
