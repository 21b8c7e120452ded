//! The daemon's own memory does not grow with the units that it has seen.
//!
//! `SOAK_UNITS` (`make soak UNITS=…`) makes it see more of them than a usual run of the tests has time for.

use rlhfd_tests::measure::{HeapWatch, slope, usage};
use rlhfd_tests::scene::{Daemon, Scene, Settings};
use rlhfd_tests::wait;

/// Until here caches fill: statements, mailboxes, readers, pages of the database.
const WARM_UNITS: u64 = 2_000;
/// And over so many more nothing may grow.
const UNITS: u64 = 1_500;
/// Bytes that a unit may leave in use, and add to what is resident. As measured the caches' last pages are
/// 60 to 350 and 250 of them at this point (a reader that opens late brings half a mebibyte); before readers,
/// threads and heaps had a ceiling it was 1,500.
const IN_USE_MAX: f64 = 768.0;
const RESIDENT_MAX: f64 = 1024.0;

/// After so many units: bytes of the heap in use, and bytes resident.
struct Sample {
    units: f64,
    in_use: Option<f64>,
    resident: f64,
}

fn sample(scene: &Scene, daemon: &Daemon, heap: Option<&HeapWatch>) -> Option<Sample> {
    let done = scene.number("SELECT count(*) FROM units WHERE state = 'done'");
    Some(Sample {
        units: done as f64,
        in_use: heap.and_then(HeapWatch::bytes).map(|(in_use, _)| in_use),
        resident: usage(daemon.pid())?.own_kib as f64 * 1024.0,
    })
}

/// Samples until `wanted` units are done; prints some of them.
fn watched(scene: &Scene, daemon: &Daemon, heap: Option<&HeapWatch>, wanted: u64) -> Vec<Sample> {
    let (mut samples, mut told) = (Vec::new(), 0.0);
    let look = &mut || {
        let now = sample(scene, daemon, heap)?;
        if now.units >= told + 500.0 {
            told = now.units;
            let in_use = now.in_use.unwrap_or_default() / 1024.0;
            println!("{told} units: {in_use:.0} KiB in use, {:.0} resident", now.resident / 1024.0);
        }
        let enough = now.units >= wanted as f64;
        samples.push(now);
        enough.then_some(())
    };
    let deadline = wait::DEADLINE * (4 + u32::try_from(wanted / 500).expect("a usual number"));
    wait::until_within(deadline, &format!("{wanted} units to be done"), look, || scene.told());
    samples
}

#[test]
fn thousands_of_units_leave_the_daemons_memory_as_it_was() {
    let more = std::env::var("SOAK_UNITS").ok().map(|text| text.parse().expect("a number"));
    // Iterations of a hundred prompts, each unit as small as can be.
    let settings = Settings::default()
        .set("run", "iterations_max", "100000")
        .set("run", "prompts_per_iteration", "100")
        .set("run", "reuse_prompts", "true")
        .set("train", "history", "\"newest\"")
        .set("scheduler", "unit_tokens_cpu", "1");
    let mut scene = Scene::fake(&settings);
    let heap = HeapWatch::of(&mut scene);
    let daemon = scene.start();
    scene.add_prompts("many", 0, 1_000, "0");
    let mut samples = watched(&scene, &daemon, heap.as_ref(), WARM_UNITS + more.unwrap_or(UNITS));
    samples.retain(|sample| sample.units >= WARM_UNITS as f64);
    let of = |value: &dyn Fn(&Sample) -> Option<f64>| -> f64 {
        let points = samples.iter().filter_map(|sample| Some((sample.units, value(sample)?)));
        slope(&points.collect::<Vec<_>>())
    };
    let (in_use, resident) = (of(&|sample| sample.in_use), of(&|sample| Some(sample.resident)));
    println!(
        "a unit adds {in_use:.0} bytes in use, {resident:.0} resident ({} looks)",
        samples.len()
    );
    assert!(in_use < IN_USE_MAX, "each unit leaves {in_use:.0} bytes in use");
    assert!(resident < RESIDENT_MAX, "each unit adds {resident:.0} bytes to what is resident");
}
