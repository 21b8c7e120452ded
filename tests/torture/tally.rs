//! What was broken, where it fell, and what did not hold.

use std::collections::BTreeMap;

use crate::faults::Kind;

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

    /// By kind, by where they fell, and both sums.
    pub fn tell(&self) {
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        let mut places: BTreeMap<&str, u64> = BTreeMap::new();
        for ((kind, at), count) in &self.faults {
            *kinds.entry(kind.label()).or_default() += count;
            *places.entry(at).or_default() += count;
        }
        let list = |counts: BTreeMap<&str, u64>| {
            let each: Vec<String> = counts.iter().map(|(k, n)| format!("{k} {n}")).collect();
            each.join(", ")
        };
        println!("{}; {}", list(kinds), list(places));
        println!("{} faults, {} failures", self.faults(), self.failures());
    }
}
