//! Power cuts: of everything that was not synced, a random part is lost, at random instants of a run.
//!
//! Comes in: `CRASH_STATES` and `CRASH_SEED` (`make crash N=… SEED=…`), or few states without them. Goes
//! out: how many states were built and opened, and of each that does not hold its seed and instant. A run
//! is written down once (`story.rs`); states are built from that log (`disk.rs`) and held to what was
//! acknowledged (`promises.rs`); a daemon opens some, and goes on from some. May not enter: a real disk's
//! faults.

mod chance;
mod disk;
mod file;
mod log;
mod promises;
mod sites;
mod story;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::chance::Chance;
use crate::disk::Disk;
use crate::log::Record;
use crate::story::{Cast, Recording, Step, mark_of};

/// Without an order from outside.
const STATES: usize = 60;
const SEED: u64 = 1;
/// States that a mutant must survive to count as one.
const MUTANT_STATES: usize = 200;

fn ordered<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")),
        Err(_) => otherwise,
    }
}

/// A log, read.
struct Told<'a> {
    records: Vec<Record<'a>>,
    above: u64,
    /// What was asked for, with the places of its marks: acknowledged, and undone at the earliest.
    acknowledged: Vec<(&'a Step, usize, usize)>,
}

impl<'a> Told<'a> {
    fn of(recording: &'a Recording, steps: &'a [Vec<Step>]) -> Self {
        let records = log::records(&recording.log);
        let mark = |step: &str, done| {
            let wanted = mark_of(step, done);
            let place = records.iter().position(|record| *record == Record::Mark(&wanted));
            place.unwrap_or_else(|| panic!("no mark of {step}"))
        };
        let asked = steps.iter().flatten().filter(|step| matches!(step.act, story::Act::Ask(_)));
        let acknowledged = asked
            .map(|step| {
                let until = step.until.map_or(usize::MAX, |until| mark(until, false));
                (step, mark(step.name, true), until)
            })
            .collect();
        Self { above: recording.above, acknowledged, records }
    }

    /// What must hold after so many records.
    fn acknowledged(&self, records: usize) -> Vec<&'a Step> {
        let holds =
            self.acknowledged.iter().filter(|(_, from, to)| (*from..*to).contains(&records));
        holds.map(|(step, _, _)| *step).collect()
    }

    /// Instants, in order: half of them anywhere, half where it matters: about a sync or a rename, and
    /// right after something was acknowledged.
    fn instants(&self, count: usize, seed: u64) -> Vec<usize> {
        let mut chance = Chance::new(seed);
        let matters = |record: &Record<'_>| {
            matches!(record, Record::Synced { .. } | Record::Renamed { .. } | Record::Mark(_))
        };
        let places: Vec<usize> =
            (0..self.records.len()).filter(|at| matters(&self.records[*at])).collect();
        let mut instants: Vec<usize> = (0..count)
            .map(|n| match n % 2 {
                0 => chance.below(self.records.len() + 1),
                _ => places[chance.below(places.len())] + chance.below(2),
            })
            .collect();
        instants.sort_unstable();
        instants
    }

    /// Instants soon after one of these records: where a sync that was not made is missed.
    fn soon_after(&self, places: &[usize], count: usize, seed: u64) -> Vec<usize> {
        let mut chance = Chance::new(seed);
        let mut instants: Vec<usize> = (0..count)
            .map(|_| {
                let within = [10, 100, 1000][chance.below(3)];
                let instant = places[chance.below(places.len())] + 1 + chance.below(within);
                instant.min(self.records.len())
            })
            .collect();
        instants.sort_unstable();
        instants
    }

    /// Calls `look` at each instant with the disk as it is then. Syncs for which `spared` holds are not
    /// made. It ends early where `look` says so.
    fn replay(
        &self,
        instants: &[usize],
        spared: impl Fn(usize) -> bool,
        mut look: impl FnMut(usize, &Disk<'a>) -> bool,
    ) {
        let mut disk = Disk::new(self.above);
        let mut taken = 0;
        for instant in instants {
            for (at, record) in self.records[taken..*instant].iter().enumerate() {
                if !spared(taken + at) {
                    disk.take(record);
                }
            }
            taken = *instant;
            if !look(*instant, &disk) {
                return;
            }
        }
    }
}

/// What each file and link of a tree holds; shared memory is no part of it.
fn tree(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_symlink() {
            let to = fs::read_link(&path).expect("a link");
            found.insert(name, to.into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            found.insert(format!("{name}/"), Vec::new());
            tree(&path, &name, found);
        } else if !name.ends_with("-shm") {
            found.insert(name, fs::read(&path).expect("a file"));
        }
    }
}

/// The whole log gives the very tree that the run left: nothing was done unseen.
fn the_log_is_whole(told: &Told<'_>, recording: &Recording) {
    let replayed = tempfile::tempdir().expect("a folder");
    told.replay(
        &[told.records.len()],
        |_| false,
        |_, disk| {
            disk.as_it_is(replayed.path());
            true
        },
    );
    let (mut wanted, mut found) = (BTreeMap::new(), BTreeMap::new());
    tree(&recording.kept, "", &mut wanted);
    tree(&replayed.path().join("state"), "", &mut found);
    let differ: Vec<&String> = wanted
        .keys()
        .chain(found.keys())
        .filter(|name| wanted.get(*name) != found.get(*name))
        .collect();
    assert!(differ.is_empty(), "disk_log.c did not see all that was done: {differ:?}");
}

/// Builds the state folder as a power cut leaves it, in the place of the one that stood.
fn built(recording: &Recording, disk: &Disk<'_>, seed: u64) {
    let state = recording.scene.state();
    let _ = fs::remove_dir_all(&state);
    let place = recording.scene.path("");
    disk.cut_off(&place, &mut Chance::new(seed));
}

/// The seed of one state.
fn seed_of(seed: u64, instant: usize, n: usize) -> u64 {
    rlhfd_tests::random::drawn(seed ^ instant as u64, n as u64, u64::MAX)
}

/// Opens what stands with a daemon, as the next start does, and goes on with it where asked.
fn opened(recording: &Recording, goes_on: bool) -> Result<(), String> {
    let done = catch_unwind(AssertUnwindSafe(|| match goes_on {
        true => recording.goes_on(),
        false => recording.scene.start().kill(),
    }));
    done.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map_or("a panic", String::as_str);
        text.lines().take(3).collect::<Vec<_>>().join(" ")
    })
}

/// Builds, opens and looks at so many states of a run; a daemon starts on one of `opened`, and goes on
/// with one of `gone_on`.
fn suffered(cast: Cast, count: usize, (opens, goes_on): (usize, usize)) {
    let seed = ordered("CRASH_SEED", SEED);
    let Some(recording) = Recording::made(cast) else { return };
    let steps = story::steps(cast);
    let told = Told::of(&recording, &steps);
    println!("crash: seed {seed}, {} records, {} bytes", told.records.len(), recording.log.len());
    the_log_is_whole(&told, &recording);
    let (mut number, mut tally, mut failures) = (0, [0; 2], Vec::new());
    let look = |instant: usize, disk: &Disk<'_>| {
        number += 1;
        built(&recording, disk, seed_of(seed, instant, number));
        let (opens, goes_on) = (number % opens == 0, number % goes_on == 0);
        let mut wrong = Vec::new();
        // The daemon first: it is to meet the state as the power cut left it.
        if opens || goes_on {
            tally[usize::from(goes_on)] += 1;
            wrong.extend(opened(&recording, goes_on).err());
        }
        let mut acknowledged = told.acknowledged(instant);
        // The rest of the story undoes some of it.
        acknowledged.retain(|step| !goes_on || step.until.is_none());
        wrong.extend(promises::broken(&recording.scene.state(), &acknowledged));
        for what in wrong {
            println!("FAILED seed {seed}, state {number}, instant {instant}: {what}");
            failures.push(what);
        }
        true
    };
    told.replay(&told.instants(count, seed), |_| false, look);
    let [opened, gone_on] = tally;
    let failed = failures.len();
    println!(
        "{count} states, {opened} opened by a daemon, {gone_on} gone on with, {failed} failures"
    );
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
}

#[test]
fn whatever_a_power_cut_leaves_opens_loses_nothing_and_goes_on() {
    suffered(Cast::Fake, ordered("CRASH_STATES", STATES), (3, 6));
}

#[test]
fn a_checkpoint_that_the_real_worker_published_outlives_a_power_cut() {
    suffered(Cast::Real, ordered("CRASH_STATES", STATES), (20, 60));
}

/// `make crash-mutants`: each sync is taken out in turn, and something is lost.
#[test]
fn each_sync_that_is_taken_out_is_missed() {
    if std::env::var_os("CRASH_MUTANTS").is_none() {
        eprintln!("skipped: `make crash-mutants` proves that these tests can fail");
        return;
    }
    let (count, seed) = (ordered("CRASH_STATES", MUTANT_STATES), ordered("CRASH_SEED", SEED));
    let Some(recording) = Recording::made(Cast::Real) else { return };
    let steps = story::steps(Cast::Real);
    let told = Told::of(&recording, &steps);
    let sites = sites::sites(&told.records, told.above);
    let mut syncs: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, site) in sites.iter().enumerate() {
        site.iter().for_each(|site| syncs.entry(site).or_default().push(at));
    }
    let mut survivors = Vec::new();
    for (site, places) in syncs {
        let made = places.len();
        let instants = told.soon_after(&places, count, seed);
        let (mut number, mut lost) = (0, None);
        told.replay(
            &instants,
            |at| sites[at] == Some(site),
            |instant, disk| {
                number += 1;
                built(&recording, disk, seed_of(seed, instant, number));
                let broken =
                    promises::broken(&recording.scene.state(), &told.acknowledged(instant));
                lost = broken.into_iter().next();
                lost.is_none()
            },
        );
        let spare = sites::SPARE.iter().find(|(name, _)| *name == site).map(|(_, why)| *why);
        match (&lost, spare) {
            (Some(what), _) => println!("{site} ({made} made): after {number} states {what}"),
            (None, Some(why)) => println!("{site} ({made} made): spare: {why}"),
            (None, None) => {
                println!("{site} ({made} made): SURVIVES {number} states");
                survivors.push(site);
            }
        }
    }
    assert!(survivors.is_empty(), "seed {seed}: nothing is lost without {survivors:?}");
}
