//! Rounds of three iterations with the real worker on a tiny model, broken on purpose again and again:
//! every round ends with the rows and the sums of an undisturbed one.
//!
//! Comes in: `TORTURE_FAULTS` and `TORTURE_SEED`, or a short torture without them; `TORTURE_ROUND`, where
//! one round only is wanted (`make torture N=… SEED=… ROUND=…`); `TORTURE_STOP` ends it at the first
//! failure, `TORTURE_MINUTES` after so many minutes. Goes out: counts by kind and stage, then `N faults, M
//! failures`. A seed and a round give the same faults again, at the same places of the work; into which
//! instruction they fall is the machine's. May not enter: a network, a GPU.

mod blows;
mod faults;
mod laws;
mod life;
mod room;
mod round;
mod tally;
mod work;

use std::process::Command;
use std::time::{Duration, Instant};

use rlhfd_tests::binaries::root;

use crate::tally::Tally;

/// Without an order from outside.
const FAULTS: u64 = 8;
const SEED: u64 = 1;
/// Faults of a round, in a short torture and in a long one: a round takes the whole of its work whatever
/// befalls it.
const FAULTS_A_ROUND: [u64; 2] = [8, 18];
/// From so many on it is a long one.
const LONG: u64 = 100;

fn ordered(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")))
}

#[test]
fn what_is_broken_on_purpose_changes_nothing() {
    let wanted = ordered("TORTURE_FAULTS").unwrap_or(FAULTS);
    let seed = ordered("TORTURE_SEED").unwrap_or(SEED);
    let Some(undisturbed) = round::undisturbed() else { return };
    println!("torture: seed {seed}; undisturbed: {}", undisturbed.1.told());
    let mut tally = Tally::default();
    let only = ordered("TORTURE_ROUND");
    let stops = ordered("TORTURE_STOP").is_some();
    let until = ordered("TORTURE_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let began = Instant::now();
    for number in only.map_or(1..=u64::MAX, |only| only..=only) {
        let late = until.is_some_and(|until| began.elapsed() > until);
        if tally.faults() >= wanted || late || (stops && tally.failures() > 0) {
            break;
        }
        let name = format!("N={wanted} SEED={seed} ROUND={number}");
        let count = FAULTS_A_ROUND[usize::from(wanted >= LONG)];
        let faults = faults::of_round(seed, number, count);
        round::run(&name, faults, &undisturbed, &mut tally);
        if wanted >= LONG {
            tally.tell_so_far();
        }
    }
    tally.tell();
    assert_eq!(tally.failures(), 0, "seed {seed}");
}

#[test]
fn the_bugs_that_are_planted_fit_the_sources() {
    let plants = root().join("tests/torture/plants");
    let mut found = 0;
    for patch in std::fs::read_dir(plants).expect("the plants").flatten() {
        let mut git = Command::new("git");
        git.arg("apply").arg("--check").arg(patch.path()).current_dir(root());
        let Ok(output) = git.output() else {
            eprintln!("skipped: no `git` to look whether a patch fits");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", patch.path().display());
        found += 1;
    }
    assert_eq!(found, 5);
}
