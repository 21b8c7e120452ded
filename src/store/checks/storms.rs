//! Storms: deaths, kills and hand-backs at random. Those from outside leave the same rows as a calm
//! iteration; those that workers cause set items aside, and the laws hold.

use rlhfd_domain::Cause;

use super::flow::{Flow, to_the_end};
use super::*;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

const OUTSIDE: [Cause; 5] =
    [Cause::Killed, Cause::Silent, Cause::Restart, Cause::DaemonStalled, Cause::DeviceLost];
const OWN: [Cause; 3] = [Cause::Signal, Cause::OutOfMemory, Cause::Stalled];

/// Works an iteration off while attempts at units come to nothing two times in three.
fn through_a_storm(flow: &mut Flow, dice: &mut Dice, own: bool) {
    for _ in 0..10_000 {
        let ready = flow.bench.store.ready_units(flow.run, 1_000).unwrap();
        if ready.is_empty() {
            return;
        }
        let chosen = usize::try_from(dice.below(ready.len() as u64)).unwrap();
        let unit = &ready[chosen];
        if unit.work == WorkKind::Summarise {
            flow.summarise(unit.iteration.unwrap());
            continue;
        }
        let cause = OUTSIDE[usize::try_from(dice.below(5)).unwrap()];
        let end = flow.bench.begin(unit);
        let store = &mut flow.bench.store;
        match dice.below(9) {
            0 | 1 => drop(store.unit_died(unit.id, end.attempt, cause, "storm", NOW).unwrap()),
            2 => drop(store.unit_returned(unit.id, end.attempt, "storm", NOW).unwrap()),
            3 => drop(store.unit_disk_failed(unit.id, end.attempt, "storm", NOW).unwrap()),
            4 => {
                flow.bench = flow.bench.after_a_kill();
                assert_eq!(flow.bench.store.recover(NOW).unwrap().units, 1);
            }
            5..=7 if own && unit.plan.is_some() => {
                let cause = OWN[usize::try_from(dice.below(3)).unwrap()];
                store.unit_died(unit.id, end.attempt, cause, "storm", NOW).unwrap();
            }
            _ if unit.work == WorkKind::Render => {
                store.unit_returned(unit.id, end.attempt, "the bench renders", NOW).unwrap();
                flow.bench.render(flow.run);
            }
            _ => flow.end(unit, &end).unwrap(),
        }
    }
    panic!("the storm does not end");
}

fn begun(evaluate: u64) -> Flow {
    let mut flow = Flow::new(12);
    flow.bench.add("held", 0.9, &texts(100, 112));
    flow.start(12, evaluate);
    flow
}

/// All that an iteration gave, by natural keys.
fn rows(flow: &Flow) -> Vec<String> {
    let questions = [
        "SELECT iteration || ' ' || lane || ' ' || ordinal || ' ' || sample || ' ' || seed || ' '
             || finish || ' ' || tokens || ' ' || logprob || ' ' || hex(ids) || ' ' || text
         FROM responses x JOIN response_texts t ON t.response_id = x.id
         ORDER BY purpose, iteration, lane, ordinal, sample",
        "SELECT x.purpose || x.lane || ' ' || x.ordinal || ' ' || x.sample || ' ' || l.score
         FROM labels l JOIN responses x ON x.id = l.response_id
         ORDER BY x.purpose, x.lane, x.ordinal, x.sample",
        "SELECT f.ordinal || ' ' || c.sample || ' ' || r.sample || ' ' || f.chosen_score
         FROM preferences f JOIN responses c ON c.id = f.chosen_id
         JOIN responses r ON r.id = f.rejected_id ORDER BY f.ordinal",
        "SELECT ordinal || ' ' || kind || ' ' || reason FROM unpaired ORDER BY ordinal",
        "SELECT x.purpose || x.lane || ' ' || x.ordinal || ' ' || x.sample || ' ' || k.logprob
         FROM reference_logprobs k JOIN responses x ON x.id = k.response_id
         ORDER BY x.purpose, x.lane, x.ordinal, x.sample",
        "SELECT u.key || ' ' || s.step || ' ' || s.loss FROM training_steps s
         JOIN units u ON u.id = s.unit_id ORDER BY u.key, s.step",
        "SELECT name || ' ' || sha256 FROM checkpoints ORDER BY name",
        "SELECT key || ' ' || state FROM units ORDER BY key",
        "SELECT gain || ' ' || gain_low || ' ' || win_rate_high FROM evaluations",
    ];
    let mut all = Vec::new();
    for question in questions {
        let mut statement = flow.bench.store.conn.prepare(question).unwrap();
        let found = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        all.extend(found.collect::<rusqlite::Result<Vec<_>>>().unwrap());
        all.push(String::new());
    }
    all
}

#[test]
fn deaths_from_outside_change_no_row() {
    let mut calm = begun(4);
    to_the_end(&mut calm, 1);
    let calm = rows(&calm);
    for seed in 0..8 {
        let mut flow = begun(4);
        through_a_storm(&mut flow, &mut Dice(seed), false);
        assert_eq!(rows(&flow), calm, "storm {seed}");
        assert!(flow.bench.store.integrity().unwrap().is_empty());
        let twice = "SELECT count(*) FROM (SELECT 1 FROM attempts WHERE outcome = 'finished'
                     GROUP BY unit_id HAVING count(*) > 1)";
        assert_eq!(flow.bench.number(twice), 0, "storm {seed}");
        assert_eq!(flow.bench.number("SELECT count(*) FROM attempts WHERE ended_ms IS NULL"), 0);
        assert_eq!(flow.bench.number("SELECT max(deaths) FROM units"), 0);
    }
}

#[test]
fn deaths_of_workers_keep_the_laws() {
    let mut set_aside = 0;
    for seed in 100..112 {
        let mut flow = begun(0);
        // `pair` asserts the laws of conservation: a storm that breaks one fails there.
        through_a_storm(&mut flow, &mut Dice(seed), true);
        let told = flow.bench.number(
            "SELECT (SELECT count(DISTINCT ordinal) FROM preferences) + (SELECT count(*) FROM unpaired)",
        );
        assert_eq!(told, 12, "storm {seed}");
        assert_eq!(flow.bench.unit(flow.run, "0001/pair").state, "done");
        assert!(flow.bench.store.integrity().unwrap().is_empty());
        set_aside += flow.bench.number("SELECT count(*) FROM units WHERE state = 'set_aside'");
    }
    assert!(set_aside > 0, "no storm was strong enough to set anything aside");
}
