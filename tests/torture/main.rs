//! Rounds of three iterations with the real worker on a tiny model, broken on purpose again and again:
//! every round ends with the rows and the sums of an undisturbed one.
//!
//! Comes in: `TORTURE_FAULTS` and `TORTURE_SEED` (`make torture N=… SEED=…`), or a short torture without
//! them. Goes out: counts by kind and stage, then `N faults, M failures`. A seed gives the same faults
//! again; into which instruction they fall is the machine's. May not enter: a network, a GPU.

mod faults;
mod round;
mod tally;

use rlhfd_tests::dump;

use crate::faults::{Fault, Random};
use crate::tally::Tally;

/// Without an order from outside.
const FAULTS: u64 = 16;
const SEED: u64 = 1;
/// Faults of a round; a round takes the whole of its work whatever befalls it.
const FAULTS_A_ROUND: u64 = 8;

fn ordered(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")),
        Err(_) => otherwise,
    }
}

#[test]
fn what_is_broken_on_purpose_changes_nothing() {
    let (wanted, seed) = (ordered("TORTURE_FAULTS", FAULTS), ordered("TORTURE_SEED", SEED));
    let Some(scene) = round::scene() else { return };
    println!("torture: seed {seed}");
    let mut tally = Tally::default();
    round::lived(scene.scene(), None, Vec::new(), &mut Tally::default());
    let undisturbed = dump::dump(&scene.scene().database());
    drop(scene);
    let mut random = Random::new(seed);
    let mut rounds = 0_u64;
    while tally.faults() < wanted {
        rounds += 1;
        let faults = FAULTS_A_ROUND.min(wanted - tally.faults());
        let mut faults: Vec<Fault> = (0..faults).map(|_| Fault::drawn(&mut random)).collect();
        faults.sort_by_key(|fault| fault.moment);
        round::run(rounds, faults, &undisturbed, &mut tally);
    }
    tally.tell();
    assert_eq!(tally.failures(), 0, "seed {seed}");
}
