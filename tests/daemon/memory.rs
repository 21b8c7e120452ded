//! The daemon's own memory does not grow with the units that it has seen.

use rlhfd_tests::scene::{Scene, Settings};

#[test]
fn thousands_of_units_leave_the_daemons_memory_as_it_was() {
    let settings = Settings::default()
        .set("run", "iterations_max", "4")
        .set("run", "prompts_per_iteration", "300")
        .set("scheduler", "unit_tokens_cpu", "1");
    let scene = Scene::fake(&settings);
    let daemon = scene.start();
    scene.add_prompts("many", 0, 1_200, "0");
    // The first iteration fills caches: statements, mailboxes, the allocator's own pools.
    scene.wait_iterations(1);
    let before = daemon.resident_kib();
    let done = "SELECT count(*) FROM units WHERE state = 'done'";
    let units_before = scene.number(done);
    scene.wait_iterations(4);
    let (after, units) = (daemon.resident_kib(), scene.number(done) - units_before);
    println!("{units} units: from {before} to {after} KiB");
    assert!(units > 1_000, "{units}");
    // What a unit holds while it runs (its row, items, answers, frames) is some tens of KiB: kept, it
    // would be several times what is allowed here, which is the allocator's.
    assert!(after < before + 16 * 1024, "from {before} to {after} KiB over {units} units");
}
