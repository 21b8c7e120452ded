//! What was broken, where it fell, and what did not hold.

use std::collections::BTreeMap;

use crate::faults::{Kind, STAGES};

/// Counts over all rounds.
#[derive(Default)]
pub struct Tally {
    faults: BTreeMap<(Kind, String), u64>,
    failures: Vec<String>,
}

impl Tally {
    /// A fault fell while this was being done.
    pub fn fell(&mut self, kind: Kind, at: &str) {
        *self.faults.entry((kind, at.to_owned())).or_default() += 1;
    }

    /// Something does not hold.
    pub fn failed(&mut self, what: String) {
        println!("FAILED {what}");
        self.failures.push(what);
    }

    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    /// How it stands after a round, for whoever watches a long torture or ends it early.
    pub fn tell_so_far(&self) {
        println!("so far {} faults, {} failures", self.faults(), self.failures());
    }

    /// A table of kinds by places, then the counts by kind and by place in a line, then both sums.
    pub fn tell(&self) {
        let mut places: Vec<&str> = STAGES.into_iter().chain(["start"]).collect();
        let other = self.faults.keys().map(|(_, at)| at.as_str());
        for at in other {
            if !places.contains(&at) {
                places.push(at);
            }
        }
        println!("{:14}{}", "", places.iter().map(|at| format!("{at:>12}")).collect::<String>());
        for kind in Kind::ALL {
            let row = places.iter().map(|at| self.count(|k, a| k == kind && a == *at));
            let row: String = row.map(|count| format!("{count:12}")).collect();
            println!("{:14}{row}", kind.label());
        }
        let kinds = Kind::ALL.map(|kind| (kind.label(), self.count(|k, _| k == kind)));
        let places = places.iter().map(|at| (*at, self.count(|_, a| a == *at)));
        println!("{}; {}", list(kinds), list(places));
        println!("{} faults, {} failures", self.faults(), self.failures());
    }

    fn count(&self, wanted: impl Fn(Kind, &str) -> bool) -> u64 {
        let found = self.faults.iter().filter(|((kind, at), _)| wanted(*kind, at));
        found.map(|(_, count)| count).sum()
    }
}

fn list<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let each: Vec<String> = counts.into_iter().map(|(name, n)| format!("{name} {n}")).collect();
    each.join(", ")
}
