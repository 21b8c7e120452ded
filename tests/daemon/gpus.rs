//! GPUs, by a fake NVML: what is met, what is decided, and what the timeline says of it.
//!
//! Workers of leases on fake GPUs compute on the CPU. Where a test waits for a unit to run on a device,
//! the worker holds it there.

use rlhfd_tests::dump;
use rlhfd_tests::gpus::FakeGpus;
use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::wait;

use crate::story;

/// The story's settings on GPUs, looked at often.
fn settings() -> Settings {
    Settings::default().with("devices", "look_ms = 50\nreserve_mib = 0").set(
        "scheduler",
        "unit_tokens_gpu",
        "100",
    )
}

/// A scene with so many GPUs; `None` without a C compiler.
fn scene(count: usize, settings: &Settings) -> Option<(Scene, FakeGpus)> {
    let mut scene = Scene::fake(settings);
    let gpus = FakeGpus::of(&mut scene, count)?;
    Some((scene, gpus))
}

/// The worker holds its first unit of `work`.
fn hold(scene: &Scene, work: &str) {
    scene.plan(&format!(
        r#"{{"faults": [{{"name": "here", "work": "{work}", "after": 1, "act": {{"kind": "hold"}}}}]}}"#
    ));
}

/// Waits for a row of the timeline.
fn told(scene: &Scene, device: &str, kind: &str, decision: &str) {
    let sql = format!(
        "SELECT count(*) FROM device_events
         WHERE device = '{device}' AND kind = '{kind}' AND decision = '{decision}'"
    );
    scene.wait_number(&format!("{device}: {kind}, {decision}"), &sql, 1);
}

/// The GPU, of two, whose worker holds.
fn held_on(scene: &Scene) -> usize {
    let pid = scene.held("here");
    let sql = format!("SELECT devices FROM leases WHERE pid = {pid} ORDER BY id LIMIT 1");
    let devices = dump::text(&scene.database(), &sql).expect("the lease of a worker that holds");
    usize::from(!devices.contains("GPU-fake-0"))
}

fn uuid(gpu: usize) -> String {
    format!("GPU-fake-{gpu}")
}

const END: &str = "end the lease at once";
const LEAVE: &str = "finish the unit, then leave";
const REST: &str = "no new unit";
const WORK: &str = "takes units";

#[test]
fn the_inventory_is_what_the_driver_says_slices_in_their_gpus_place() {
    let Some((scene, mut gpus)) = scene(2, &settings()) else { return };
    gpus.set("gpu.0.name", "NVIDIA H200");
    gpus.set("gpu.0.mem_total_mib", "143771");
    gpus.set("gpu.0.mem_used_mib", "1000");
    gpus.set("gpu.0.temp", "61");
    gpus.set("gpu.0.util", "40");
    gpus.set("gpu.0.power_mw", "512000");
    gpus.set("gpu.0.ecc", "0");
    gpus.set("gpu.1.mig", "2");
    gpus.set("gpu.1.temp", "44");
    gpus.set("gpu.1.slice.1.mem_total_mib", "10240");
    let _daemon = scene.start();
    told(&scene, "MIG-fake-1-1", "found", WORK);
    let shown = rlhfd_tests::http::get(&scene.socket(), "/v1/devices?history=10");
    let devices = shown["devices"].as_array().unwrap();
    let uuids: Vec<&str> = devices.iter().filter_map(|device| device["uuid"].as_str()).collect();
    assert_eq!(uuids, ["GPU-fake-0", "MIG-fake-1-0", "MIG-fake-1-1"]);
    let h200 = &devices[0];
    assert_eq!(h200["name"], "NVIDIA H200");
    assert_eq!(
        (h200["memory_mib"].as_u64(), h200["foreign_mib"].as_u64()),
        (Some(143_771), Some(1000))
    );
    assert_eq!((h200["temperature_c"].as_u64(), h200["power_w"].as_u64()), (Some(61), Some(512)));
    assert_eq!(
        (h200["utilisation_percent"].as_u64(), h200["ecc_uncorrected"].as_u64()),
        (Some(40), Some(0))
    );
    assert_eq!(h200["driver"], "580.65.06");
    let slice = &devices[2];
    assert_eq!(
        (slice["slice_of"].as_str(), slice["memory_mib"].as_u64()),
        (Some("GPU-fake-1"), Some(10_240))
    );
    assert_eq!(slice["temperature_c"], 44);
    assert_eq!(shown["history"][0]["kind"], "driver");
    let page = scene.ctl_ok(&["gpus"]);
    assert!(page.contains("MIG-fake-1-0") && page.contains("61 °C"), "{page}");
    let history = scene.ctl_ok(&["gpus", "--history"]);
    assert!(history.contains("NVIDIA H200, 143771 MiB"), "{history}");
}

#[test]
fn a_lost_gpu_ends_its_lease_the_unit_goes_elsewhere_and_the_gpu_comes_back() {
    let Some((scene, mut gpus)) = scene(2, &settings()) else { return };
    hold(&scene, "generate");
    let _daemon = scene.start();
    story::queue(&scene);
    let busy = held_on(&scene);
    gpus.set(&format!("gpu.{busy}.err"), "15");
    told(&scene, &uuid(busy), "lost", END);
    let cause = "SELECT count(*) FROM attempts WHERE cause = 'device_lost' AND counted = 0";
    scene.wait_number("the attempt on it to end, uncounted", cause, 1);
    scene.wait_iterations(1);
    gpus.unset(&format!("gpu.{busy}.err"));
    told(&scene, &uuid(busy), "free", WORK);
    scene.wait_iterations(2);
    story::check_laws(&scene);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    let open = "SELECT count(*) FROM leases WHERE ended_ms IS NOT NULL AND devices LIKE '%fake%'";
    assert!(scene.number(open) >= 1);
}

#[test]
fn a_gpu_that_is_taken_out_is_lost_even_where_its_name_is_configured() {
    let settings =
        settings().with("devices", "look_ms = 50\nuse = [\"GPU-fake-0\", \"GPU-fake-1\"]");
    let Some((scene, mut gpus)) = scene(2, &settings) else { return };
    let _daemon = scene.start();
    told(&scene, &uuid(1), "found", WORK);
    gpus.set("count", "1");
    told(&scene, &uuid(1), "lost", END);
    // The other one goes on, and status says what is missing.
    let said =
        || scene.status()["waits_for"].to_string().contains("names GPU-fake-1").then_some(());
    wait::until("status to name it", said, || scene.told());
    story::queue(&scene);
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

#[test]
fn a_driver_that_stops_answering_ends_nothing_and_the_cpu_never_takes_over() {
    let Some((scene, mut gpus)) = scene(1, &settings()) else { return };
    hold(&scene, "generate");
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    gpus.set("err.nvmlInit_v2", "18");
    told(&scene, "driver", "driver", REST);
    told(&scene, &uuid(0), "silent", REST);
    let seen =
        "SELECT count(*) FROM device_events WHERE device = 'driver' AND seen LIKE '%mismatch%'";
    assert_eq!(scene.number(seen), 1);
    scene.release("here");
    // What ran is finished, and nothing new begins.
    scene.wait_number(
        "the unit to end",
        "SELECT count(*) FROM units WHERE work = 'generate' AND state = 'done'",
        1,
    );
    gpus.unset("err.nvmlInit_v2");
    told(&scene, &uuid(0), "free", WORK);
    scene.wait_iterations(2);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'"), 0);
    assert_eq!(scene.number("SELECT count(*) FROM leases WHERE devices LIKE '%cpu%'"), 0);
}

#[test]
fn a_driver_that_hangs_holds_nobody_up() {
    let Some((scene, mut gpus)) = scene(1, &settings()) else { return };
    hold(&scene, "generate");
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    // A look makes a dozen calls: it takes seconds now, and is due every 50 ms.
    gpus.set("delay_ms", "300");
    told(&scene, &uuid(0), "silent", REST);
    let hangs = "SELECT count(*) FROM device_events WHERE device = 'driver' AND seen = 'it hangs'";
    assert_eq!(scene.number(hangs), 1);
    scene.release("here");
    let done = "SELECT count(*) FROM units WHERE work = 'generate' AND state = 'done'";
    scene.wait_number("what ran to be finished", done, 1);
    gpus.unset("delay_ms");
    told(&scene, &uuid(0), "free", WORK);
    scene.wait_iterations(2);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'"), 0);
}

#[test]
fn an_xid_of_the_hardware_ends_the_lease_and_one_of_a_program_is_only_told() {
    let Some((scene, mut gpus)) = scene(2, &settings()) else { return };
    hold(&scene, "generate");
    let _daemon = scene.start();
    story::queue(&scene);
    let busy = held_on(&scene);
    gpus.set("event", &format!("1:{busy}:8:31"));
    told(&scene, &uuid(busy), "xid", "none");
    gpus.set("event", &format!("2:{busy}:8:79"));
    told(&scene, &uuid(busy), "xid", END);
    told(&scene, &uuid(busy), "broken", END);
    let cause = "SELECT count(*) FROM attempts WHERE cause = 'device_lost' AND counted = 0";
    scene.wait_number("the attempt on it to end, uncounted", cause, 1);
    scene.wait_iterations(2);
    let first = "SELECT min(id) FROM device_events WHERE kind = 'broken'";
    let later = format!(
        "SELECT count(*) FROM device_events WHERE id > ({first}) AND device = '{}' AND kind = 'lease' AND decision = 'open a lease'",
        uuid(busy)
    );
    assert_eq!(scene.number(&later), 0, "it rests");
}

#[test]
fn an_uncorrected_memory_error_ends_the_lease() {
    let Some((scene, mut gpus)) = scene(2, &settings()) else { return };
    gpus.set("gpu.0.ecc", "7");
    gpus.set("gpu.1.ecc", "7");
    hold(&scene, "generate");
    let _daemon = scene.start();
    story::queue(&scene);
    let busy = held_on(&scene);
    gpus.set(&format!("gpu.{busy}.ecc"), "8");
    told(&scene, &uuid(busy), "broken", END);
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

#[test]
fn a_hot_gpu_gets_no_new_unit_until_it_is_some_degrees_cooler() {
    let Some((scene, mut gpus)) = scene(1, &settings()) else { return };
    hold(&scene, "generate");
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    gpus.set("gpu.0.temp", "86");
    told(&scene, &uuid(0), "hot", REST);
    scene.release("here");
    let running =
        "SELECT count(*) = 0 FROM attempts WHERE ended_ms IS NULL AND lease_id IS NOT NULL";
    scene.wait_number("what was handed out to end", running, 1);
    let tried = "SELECT count(*) FROM attempts WHERE lease_id IS NOT NULL";
    let before = scene.number(tried);
    // Below the limit is not enough: it is looked at twice more, and nothing begins.
    gpus.set("gpu.0.temp", "81");
    let cooler = || {
        let shown = rlhfd_tests::http::get(&scene.socket(), "/v1/devices");
        (shown["devices"][0]["temperature_c"] == 81).then(|| shown["devices"][0]["hold"].clone())
    };
    let held = wait::until("a look at the cooler GPU", cooler, || scene.told());
    assert_eq!(held, "too hot");
    assert_eq!(scene.number(tried), before);
    // Its lease, with what is loaded, stayed.
    assert_eq!(scene.number("SELECT count(*) FROM leases WHERE ended_ms IS NULL"), 1);
    gpus.set("gpu.0.temp", "80");
    told(&scene, &uuid(0), "free", WORK);
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

#[test]
fn a_gpu_is_left_to_others_after_the_unit_that_runs_and_taken_again_once_it_is_free() {
    let settings = settings()
        .with("devices", "look_ms = 100\nyield_above_mib = 2000\nyield_for_s = 1\nreserve_mib = 0");
    let Some((scene, mut gpus)) = scene(1, &settings) else { return };
    scene.plan(
        r#"{"device_mib": 3000, "faults": [
            {"name": "here", "work": "generate", "after": 1, "act": {"kind": "hold"}}]}"#,
    );
    let _daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    // What our own worker holds is nobody else's.
    gpus.set("gpu.0.mem_used_mib", "4900");
    let looked = || {
        let shown = rlhfd_tests::http::get(&scene.socket(), "/v1/devices");
        (shown["devices"][0]["foreign_mib"] == 1900).then_some(())
    };
    wait::until("a look that tells ours from others'", looked, || scene.told());
    assert_eq!(scene.number("SELECT count(*) FROM device_events WHERE kind = 'yielded'"), 0);
    gpus.set("gpu.0.mem_used_mib", "9000");
    told(&scene, &uuid(0), "yielded", LEAVE);
    scene.release("here");
    let left = "SELECT count(*) = 0 FROM leases WHERE ended_ms IS NULL";
    scene.wait_number("the lease to end", left, 1);
    // The unit that ran is done; the one behind it was given back.
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'"), 0);
    let seen = "SELECT seen FROM device_events WHERE kind = 'yielded'";
    assert_eq!(dump::text(&scene.database(), seen).unwrap(), "others use 6000 MiB");
    gpus.set("gpu.0.mem_used_mib", "0");
    told(&scene, &uuid(0), "free", WORK);
    let waited = "SELECT max(at_ms) FILTER (WHERE kind = 'free') - max(at_ms) FILTER (WHERE kind = 'yielded') FROM device_events";
    assert!(scene.number(waited) >= 1000);
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

#[test]
fn in_quiet_hours_nothing_is_computed_and_a_training_goes_on_afterwards() {
    let Some((scene, _gpus)) = scene(1, &settings()) else { return };
    scene.plan(
        r#"{"ms_per_step": 20, "faults": [
            {"name": "here", "work": "train_dpo", "after": 3, "act": {"kind": "hold"}}]}"#,
    );
    let daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    let all_day = "look_ms = 50\nquiet_hours = [\"00:00-12:00\", \"12:00-00:00\"]";
    scene.configure(&settings().with("devices", all_day));
    rlhfd_tests::scene::signal(daemon.pid(), rustix::process::Signal::HUP);
    told(&scene, &uuid(0), "quiet", LEAVE);
    scene.release("here");
    let given_back = "SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id
                      WHERE u.work = 'train_dpo' AND a.outcome = 'cancelled'";
    scene.wait_number("the training to be given back", given_back, 1);
    scene.wait_number(
        "the lease to end",
        "SELECT count(*) = 0 FROM leases WHERE ended_ms IS NULL",
        1,
    );
    let said = || scene.status()["waits_for"].to_string().contains("quiet hours").then_some(());
    wait::until("status to say so", said, || scene.told());
    scene.configure(&settings());
    rlhfd_tests::scene::signal(daemon.pid(), rustix::process::Signal::HUP);
    told(&scene, &uuid(0), "free", WORK);
    scene.wait_iterations(2);
    story::check_laws(&scene);
    let resumed = "SELECT count(*) FROM attempts WHERE first_step > 1";
    assert!(scene.number(resumed) >= 1, "the training began anew");
}

#[test]
fn labelling_overlaps_generation_on_two_gpus() {
    let Some((scene, _gpus)) = scene(2, &settings()) else { return };
    scene.plan(
        r#"{"faults": [
            {"name": "writes", "work": "generate", "containing": "say 9", "act": {"kind": "hold"}},
            {"name": "scores", "work": "score", "after": 1, "act": {"kind": "hold"}}]}"#,
    );
    let _daemon = scene.start();
    story::queue(&scene);
    // Both hold at once, each on a device of its own.
    scene.held("writes");
    scene.held("scores");
    let both = "SELECT count(DISTINCT l.devices) FROM attempts a JOIN leases l ON l.id = a.lease_id
                JOIN units u ON u.id = a.unit_id
                WHERE a.ended_ms IS NULL AND u.work IN ('generate', 'score')";
    assert_eq!(scene.number(both), 2);
    scene.release("writes");
    scene.release("scores");
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

/// Waits until `status` says that a unit finds no room.
fn too_large(scene: &Scene) {
    let said = || scene.status()["waits_for"].to_string().contains("MiB of a GPU").then_some(());
    wait::until("status to say what finds no room", said, || scene.told());
}

#[test]
fn a_unit_is_never_given_to_a_gpu_without_room_for_it() {
    let Some((scene, mut gpus)) = scene(2, &settings()) else { return };
    // A worker alone needs 500 MiB; of the second GPU others have all but 400.
    gpus.set("gpu.0.mem_total_mib", "450");
    gpus.set("gpu.1.mem_total_mib", "16384");
    gpus.set("gpu.1.mem_used_mib", "15984");
    let _daemon = scene.start();
    story::queue(&scene);
    too_large(&scene);
    let written = "SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id WHERE u.work = 'generate'";
    assert_eq!(scene.number(written), 0);
    gpus.set("gpu.1.mem_used_mib", "1000");
    scene.wait_iterations(2);
    story::check_laws(&scene);
    // What needs a model never ran on the small one.
    let small = "SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id
                 JOIN leases l ON l.id = a.lease_id
                 WHERE l.devices LIKE '%GPU-fake-0%' AND u.work NOT IN ('probe', 'render')";
    assert_eq!(scene.number(small), 0);
}

#[test]
fn what_units_measure_corrects_the_plan_for_the_next() {
    let Some((scene, mut gpus)) = scene(1, &settings()) else { return };
    // Others hold 300 MiB of it.
    gpus.set("gpu.0.mem_total_mib", "1000");
    gpus.set("gpu.0.mem_used_mib", "300");
    scene.plan(r#"{"device_mib": 0, "device_peak_mib": 900}"#);
    let daemon = scene.start();
    story::queue(&scene);
    // Planned with some 500 MiB the first unit is taken; the next is known to need 900.
    too_large(&scene);
    let factor = "SELECT count(*) FROM memory_factors WHERE work = 'generate' AND factor > 1.5
                  AND peak_mib = 900";
    assert_eq!(scene.number(factor), 1);
    // The database remembers.
    daemon.kill();
    let _daemon = scene.start();
    too_large(&scene);
    gpus.set("gpu.0.mem_used_mib", "0");
    scene.wait_iterations(2);
    story::check_laws(&scene);
}

#[test]
fn a_reload_that_names_no_gpu_that_is_there_gives_up_the_one_in_use() {
    let Some((scene, _gpus)) = scene(1, &settings()) else { return };
    hold(&scene, "generate");
    let daemon = scene.start();
    story::queue(&scene);
    scene.held("here");
    scene.configure(&settings().with("devices", "look_ms = 50\nuse = [\"GPU-typo\"]"));
    rlhfd_tests::scene::signal(daemon.pid(), rustix::process::Signal::HUP);
    let said = || scene.status()["waits_for"].to_string().contains("names GPU-typo").then_some(());
    wait::until("status to name it", said, || scene.told());
    scene.release("here");
    let left = "SELECT count(*) = 0 FROM leases WHERE ended_ms IS NULL";
    scene.wait_number("the lease to end", left, 1);
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'"), 0);
}

#[test]
fn what_is_too_large_for_a_gpu_is_no_fault_once_the_cpu_computes() {
    let Some((scene, mut gpus)) = scene(1, &settings()) else { return };
    gpus.set("gpu.0.mem_total_mib", "450");
    let daemon = scene.start();
    story::queue(&scene);
    too_large(&scene);
    scene.configure(&settings().with("devices", "look_ms = 50\nuse = [\"cpu\"]"));
    rlhfd_tests::scene::signal(daemon.pid(), rustix::process::Signal::HUP);
    scene.wait_iterations(2);
    let told = scene.status()["waits_for"].to_string();
    assert!(!told.contains("MiB of a GPU"), "{told}");
}
