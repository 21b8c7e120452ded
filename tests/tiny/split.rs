//! One training over two fake GPUs that hold it together and neither alone; the real worker splits the
//! model between two devices, both of them the CPU, so that its bits can be held against one device's.

use rlhfd_tests::binaries::root;
use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::gpus::FakeGpus;
use rlhfd_tests::scene::{Scene, Settings};

use crate::{TRAIN, frozen, queue};

/// Pairs of up to 40,000 tokens are planned with: 200 MiB of activations in two blocks, beside 500 MiB for
/// a process. Whole it needs about 730 MiB, and of two devices 615 each.
fn settings() -> Settings {
    crate::settings()
        .with("devices", "look_ms = 200\nreserve_mib = 0")
        .set("scheduler", "unit_tokens_gpu", "600")
        .set("train", "max_length", "40000")
}

/// Tells the story on so many GPUs of that memory.
fn told(
    (count, memory_mib): (usize, u64),
    meanwhile: impl FnOnce(&Scene, &mut FakeGpus),
) -> Option<(Scene, Dump)> {
    let mut scene = Scene::real(&settings())?;
    untie(&scene);
    let mut gpus = FakeGpus::of(&mut scene, count)?;
    for gpu in 0..count {
        gpus.set(&format!("gpu.{gpu}.mem_total_mib"), &memory_mib.to_string());
    }
    let daemon = scene.start();
    queue(&scene);
    meanwhile(&scene, &mut gpus);
    scene.wait_iterations(2);
    let dump = dump::dump(&scene.database());
    assert!(daemon.terminate().success());
    Some((scene, dump))
}

/// Two alike halves: the shape and weights of the untied model, under the tokenizer of the tied one.
fn untie(scene: &Scene) {
    let from = root().join("tests/golden/models/tiny-untied");
    let to = scene.path("models/policy");
    std::fs::remove_file(to.join("model.safetensors")).unwrap();
    for part in ["00001-of-00002.safetensors", "00002-of-00002.safetensors"] {
        let name = format!("model-{part}");
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    let index = "model.safetensors.index.json";
    std::fs::copy(from.join(index), to.join(index)).unwrap();
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, id) in [("bos_token_id", 1), ("eos_token_id", 2), ("pad_token_id", 2)] {
        config[key] = id.into();
    }
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
}

const ON: &str =
    "FROM attempts a JOIN units u ON u.id = a.unit_id JOIN leases l ON l.id = a.lease_id";

#[test]
fn a_training_that_no_gpu_holds_alone_runs_over_two_to_the_bits_of_one() {
    let Some((_, one)) = told((1, 16_384), |_, _| {}) else { return };
    let Some((scene, two)) = told((2, 680), |_, _| {}) else { return };
    dump::assert_same(&one, &two, "over two GPUs");
    let count = |which: &str, devices: u32| {
        let wide = format!("json_array_length(l.devices) = {devices}");
        scene.number(&format!("SELECT count(*) {ON} WHERE {which} AND {wide}"))
    };
    assert_eq!((count("u.work = 'train_dpo'", 2), count("u.work = 'train_dpo'", 1)), (2, 0));
    let smaller = "u.work IN ('generate', 'score', 'logprobs')";
    assert_eq!(count(smaller, 2), 0, "what fits one device has one");
    // Generation of the second iteration, too, has one device each: the lease over both has ended.
    assert!(count(&format!("{smaller} AND u.iteration = 2"), 1) > 0);
    assert!(scene.log().contains("1 on cpu, 1 on cpu"), "the model was not split");
    let opened = "SELECT count(DISTINCT device) FROM device_events WHERE kind = 'lease'
                  AND decision = 'open a lease' AND reason LIKE 'together with GPU-fake-%'";
    assert_eq!(scene.number(opened), 2);
}

#[test]
fn one_of_two_gpus_is_lost_under_a_training_and_the_bits_are_the_same() {
    let Some((_, one)) = told((1, 16_384), |_, _| {}) else { return };
    let lose = |scene: &Scene, gpus: &mut FakeGpus| {
        frozen(scene, TRAIN);
        gpus.set("gpu.1.err", "15");
        let died = format!("SELECT count(*) {ON} WHERE a.cause = 'device_lost' AND a.counted = 0");
        scene.wait_number("the attempt to end", &died, 1);
        let gone =
            "SELECT count(*) = 0 FROM leases WHERE ended_ms IS NULL AND devices LIKE '%fake-1%'";
        scene.wait_number("its lease to end", gone, 1);
        // With one device left it waits, and is not begun there.
        let begun = format!("SELECT count(*) {ON} WHERE u.work = 'train_dpo' AND u.iteration = 1");
        assert_eq!(scene.number(&begun), 1);
        gpus.unset("gpu.1.err");
    };
    let Some((scene, lost)) = told((2, 680), lose) else { return };
    dump::assert_same(&one, &lost, "one of two GPUs lost");
    let resumed = format!(
        "SELECT count(*) {ON} WHERE a.first_step > 1 AND u.work = 'train_dpo'
         AND json_array_length(l.devices) = 2"
    );
    assert_eq!(scene.number(&resumed), 1);
}
