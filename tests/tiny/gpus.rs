//! The real worker on fake GPUs, where it computes on the CPU: a training that must leave its device goes
//! on elsewhere, to the same bits.

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::gpus::FakeGpus;
use rlhfd_tests::scene::{Scene, Settings, signal};
use rustix::process::Signal;

use crate::{TRAIN, frozen, queue};

fn settings() -> Settings {
    crate::settings()
        .with("devices", "look_ms = 400\nreserve_mib = 0\nyield_above_mib = 1000\nyield_for_s = 1")
        .set("scheduler", "unit_tokens_gpu", "600")
}

/// Tells the story on so many GPUs; `meanwhile` happens to the one whose worker is frozen in a training,
/// and goes on once an event of `kind` is told.
fn told(
    count: usize,
    kind: &str,
    meanwhile: impl FnOnce(&mut FakeGpus, usize),
) -> Option<(Scene, Dump)> {
    let mut scene = Scene::real(&settings())?;
    let mut gpus = FakeGpus::of(&mut scene, count)?;
    let daemon = scene.start();
    queue(&scene);
    let worker = frozen(&scene, TRAIN);
    let sql = format!("SELECT devices FROM leases WHERE pid = {worker} ORDER BY id LIMIT 1");
    let devices = dump::text(&scene.database(), &sql).expect("its lease");
    meanwhile(&mut gpus, usize::from(!devices.contains("GPU-fake-0")));
    let decided = format!("SELECT count(*) FROM device_events WHERE kind = '{kind}'");
    scene.wait_number(kind, &decided, 1);
    // One whose GPU is lost is killed as it stands.
    if kind != "lost" {
        signal(worker, Signal::CONT);
    }
    scene.wait_iterations(2);
    let dump = dump::dump(&scene.database());
    assert!(daemon.terminate().success());
    Some((scene, dump))
}

const TRAININGS: &str =
    "FROM attempts a JOIN units u ON u.id = a.unit_id WHERE u.work = 'train_dpo'";

#[test]
fn a_training_that_leaves_its_gpu_or_loses_it_goes_on_elsewhere_to_the_same_bits() {
    let Some((_, undisturbed)) = told(1, "found", |_, _| {}) else { return };
    let yields = |gpus: &mut FakeGpus, gpu| gpus.set(&format!("gpu.{gpu}.mem_used_mib"), "5000");
    let Some((scene, left)) = told(2, "yielded", yields) else { return };
    dump::assert_same(&undisturbed, &left, "a training that was to leave its GPU");
    let given_back = format!("SELECT count(*) {TRAININGS} AND a.outcome = 'cancelled'");
    assert_eq!(scene.number(&given_back), 1);
    let loses = |gpus: &mut FakeGpus, gpu| gpus.set(&format!("gpu.{gpu}.err"), "15");
    let Some((scene, lost)) = told(2, "lost", loses) else { return };
    dump::assert_same(&undisturbed, &lost, "a training whose GPU was lost");
    let died = format!("SELECT count(*) {TRAININGS} AND a.cause = 'device_lost' AND a.counted = 0");
    assert_eq!(scene.number(&died), 1);
    let resumed = format!("SELECT count(*) {TRAININGS} AND a.first_step > 1");
    assert_eq!(scene.number(&resumed), 1);
}
