//! One round: a run of three iterations with its faults, and what must hold at its end.
//!
//! Comes in: faults in the order of their moments, the facts of an undisturbed round. Goes out: counts and
//! failures.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rlhfd_tests::disk_faults::DiskFaults;
use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::gpus::FakeGpus;
use rlhfd_tests::scene::{Scene, Settings};

use crate::faults::{CHECKPOINT, Fault, ITERATIONS, Moment, STAGES};
use crate::laws;
use crate::life::Life;
use crate::room::Room;
use crate::tally::Tally;
use crate::work::Work;

/// How long a round may take, however much is broken in it, and however busy the machine is beside it.
const ROUND_MAX: Duration = Duration::from_secs(600);
/// Between two looks at the work.
const LOOK: Duration = Duration::from_millis(3);
/// What opening a file of a new checkpoint takes, and giving it its name, so that admitting it is work too.
const SLOW: [(&str, u64); 2] = [("open", 40), ("rename", 250)];

/// A scene with two fake GPUs that compute on the CPU, a disk that fails on order and can be filled.
pub struct Place {
    pub scene: Scene,
    pub tools: Tools,
}

/// What faults are made with.
pub struct Tools {
    pub gpus: FakeGpus,
    pub disk: DiskFaults,
    pub room: Room,
}

fn settings() -> Settings {
    Settings::default()
        .with(
            "run",
            "policy = \"models/policy\"\nseed = 7\niterations_max = 3\nprompts_per_iteration = 12",
        )
        .with("devices", "use = \"auto\"\nlook_ms = 100")
        .with("store", "disk_free_min_mib = 0\ndisk_probe_ms = 100")
        .with(
            "scheduler",
            "unit_tokens_cpu = 600\nunit_tokens_gpu = 600\nheartbeat_ms = 200\n\
             silence_timeout_s = 60\nprogress_timeout_s = 60\nstop_timeout_s = 10",
        )
        .with("generate", "max_new_tokens = 32\nbatch_prompts = 2")
        .with(
            "train",
            "batch_pairs = 1\nmicro_batch_pairs = 1\nepochs = 1\nlearning_rate = 1e-3\n\
             save_every_steps = 2",
        )
        .with(
            "evaluate",
            "temperatures = [1.0]\nn = 2\nmax_new_tokens = 32\nbootstrap_samples = 100",
        )
}

/// A new place; `None`, said aloud, where the engine or a C compiler is missing.
pub fn place() -> Option<Place> {
    let mut scene = Scene::real(&settings())?;
    let gpus = FakeGpus::of(&mut scene, 2)?;
    let disk = DiskFaults::of(&mut scene)?;
    let room = Room::over(&scene.state());
    Some(Place { scene, tools: Tools { gpus, disk, room } })
}

/// The undisturbed round: its facts, and how long its work takes.
pub fn undisturbed() -> Option<(Dump, Work)> {
    let Place { scene, mut tools } = place()?;
    let began = Instant::now();
    drop(scene.start());
    let start = began.elapsed();
    lived(&scene, &mut tools, Vec::new(), &Work::default(), &mut Tally::default())
        .unwrap_or_else(|why| panic!("an undisturbed round: {why}\n{}", scene.told()));
    let start_ms = u64::try_from(start.as_millis()).unwrap_or(u64::MAX);
    let work = Work::measured(&scene.database(), start_ms);
    Some((dump::dump(&scene.database()), work))
}

/// A round in a place of its own; what does not hold is a failure of the tally.
pub fn run(name: &str, faults: Vec<Fault>, (undisturbed, work): &(Dump, Work), tally: &mut Tally) {
    let Some(Place { scene, mut tools }) = place() else { return };
    for fault in &faults {
        println!("{name}: {fault:?}");
    }
    // A round that hangs, or a daemon that does not come up, fails this round only.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        lived(&scene, &mut tools, faults, work, tally)?;
        dump::assert_same(undisturbed, &dump::dump(&scene.database()), "the faults");
        Ok(())
    }));
    let why = match ended {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(payload) => Some(said(&payload)),
    };
    if let Some(why) = why {
        tally.failed(format!("{name}: {why}"));
        println!("{}", scene.told());
    }
    for broken in laws::broken(&scene) {
        tally.failed(format!("{name}: {broken}"));
    }
}

fn said(payload: &Box<dyn std::any::Any + Send>) -> String {
    let text = payload.downcast_ref::<String>().map_or("a panic", String::as_str);
    text.chars().take(2000).collect()
}

/// Lives through a run and its faults, until it has ended in order.
///
/// Errors: a sentence where it does not end, or not in order.
fn lived(
    scene: &Scene,
    tools: &mut Tools,
    faults: Vec<Fault>,
    work: &Work,
    tally: &mut Tally,
) -> Result<(), String> {
    let (mut faults, began) = (VecDeque::from(faults), Instant::now());
    let mut life = Life::begun(scene, tools, work.start_ms);
    scene.add_prompts("plain", 0, 56, "0.25");
    let over = format!("SELECT count(*) = {ITERATIONS} FROM iterations WHERE ended_ms IS NOT NULL");
    // What is left when the run has ended finds nothing to break.
    while life.ask(&over) != Some(1) {
        if began.elapsed() > ROUND_MAX {
            return Err(format!("no end after {} s", ROUND_MAX.as_secs()));
        }
        life.look()?;
        let next = faults.front().map(|fault| fault.moment);
        slow_checkpoint(&mut life, |iteration| {
            work.is_unknown()
                || next.is_some_and(|next| next.stage == CHECKPOINT && next.iteration == iteration)
        });
        let Some(fault) = faults.front() else {
            std::thread::sleep(LOOK);
            continue;
        };
        let (units, ms) = work.instant(fault.moment);
        // A daemon that only begins does no work of a stage.
        if !life.serves() || !is_due(&life, fault.moment, units) {
            std::thread::sleep(LOOK);
            continue;
        }
        std::thread::sleep(Duration::from_millis(ms));
        if let Some(fault) = faults.pop_front() {
            life.suffer(fault, tally)?;
        }
    }
    life.ended_in_order()
}

/// Whether so many units of the moment's stage are done and one is at work, or what follows has begun.
fn is_due(life: &Life, Moment { iteration, stage, .. }: Moment, units: u64) -> bool {
    let (own, later) = (STAGES[stage], &STAGES[stage + 1..]);
    let later: Vec<String> = later.iter().map(|stage| format!("'{stage}'")).collect();
    let of = format!("u.iteration = {iteration} AND u.work <> 'probe' AND u.stage");
    let attempts = "EXISTS (SELECT 1 FROM attempts a JOIN units u ON u.id = a.unit_id WHERE";
    let due = format!(
        "SELECT (SELECT count(*) FROM units u WHERE {of} = '{own}' AND u.state = 'done') >= {units}
                AND {attempts} {of} = '{own}' AND a.ended_ms IS NULL)
             OR {attempts} {of} IN ({}))
             OR EXISTS (SELECT 1 FROM iterations WHERE iteration = {iteration} AND ended_ms IS NOT NULL)",
        later.join(", ")
    );
    life.ask(&due) == Some(1)
}

/// Where `wanted` in an iteration, its new checkpoint's files are slow from the beginning of its training
/// until they are admitted: the work of that stage would be a few milliseconds.
fn slow_checkpoint(life: &mut Life, wanted: impl Fn(u64) -> bool) {
    let stage = STAGES[CHECKPOINT];
    let sql = format!(
        "SELECT coalesce(max(u.iteration), 0) FROM units u
         WHERE u.stage = '{stage}' AND u.state IN ('open', 'running')
           AND EXISTS (SELECT 1 FROM units t JOIN attempts a ON a.unit_id = t.id
                       WHERE t.iteration = u.iteration AND t.work = 'train_dpo')"
    );
    match life.ask(&sql).map(i64::unsigned_abs) {
        None => {}
        Some(iteration) if iteration > 0 && wanted(iteration) => {
            let part = format!("checkpoints/iteration-{iteration:04}");
            life.tools.disk.slow(&SLOW, &part);
        }
        Some(_) => life.tools.disk.quick(),
    }
}
