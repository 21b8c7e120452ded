//! What the daemon itself costs: a run whose units take no time, so that all the time is its own, the
//! workers' start and their frames.

use rlhfd_tests::scene::{Scene, Settings};

use crate::ask;
use crate::report::{Limit, Report};

/// How long the second iteration of `make demo` computes: what its history in the README adds up to, on
/// two cores.
const DEMO_S: f64 = 54.7;

pub fn run(report: &mut Report) {
    many_units(report);
    demo(report);
}

fn many_units(report: &mut Report) {
    let settings = Settings::default()
        .set("run", "iterations_max", "1")
        .set("run", "prompts_per_iteration", "300")
        .set("scheduler", "unit_tokens_cpu", "1");
    let scene = Scene::fake(&settings);
    let daemon = scene.start();
    let before = ask::cpu(daemon.pid());
    scene.add_prompts("many", 0, 300, "0");
    ask::ended(&scene, 1);
    let units = scene.number("SELECT count(*) FROM attempts") as f64;
    let wall = scene.number("SELECT max(ended_ms) - min(started_ms) FROM iterations") as f64;
    let cpu = (ask::cpu(daemon.pid()) - before).as_secs_f64() * 1e3;
    report.add("units in the iteration without computing", units, "units", Limit::None);
    report.add("time of a unit without computing", wall / units, "ms", Limit::None);
    report.add("CPU of the daemon for a unit", cpu / units, "ms", Limit::None);
}

/// The sizes of configs/demo.toml: the second iteration, whose workers are there already.
fn demo(report: &mut Report) {
    let settings = Settings::default()
        .with(
            "run",
            "policy = \"models/policy\"\nseed = 1\niterations_max = 2\nprompts_per_iteration = 20",
        )
        .with("scheduler", "stop_timeout_s = 5")
        .with("generate", "max_new_tokens = 32")
        .with("[generate.arms]", "name = \"one\"\ntemperature = 1.0\nn = 4")
        .with("label", "batch_responses = 16")
        .with("train", "batch_pairs = 4\nmicro_batch_pairs = 4\nepochs = 2\nlearning_rate = 8e-5")
        .with(
            "evaluate",
            "temperatures = [1.0, 0.0]\nn = 2\nmax_new_tokens = 32\nprompts_max = 28",
        );
    let scene = Scene::fake(&settings);
    let daemon = scene.start();
    scene.add_prompts("demo", 0, 140, "0.4");
    ask::ended(&scene, 2);
    let wall = scene.number("SELECT max(ended_ms - started_ms) FROM iterations WHERE iteration = 2")
        as f64;
    let units = scene.number("SELECT count(*) FROM units WHERE iteration = 2") as f64;
    report.add("units in an iteration of the demo's size", units, "units", Limit::None);
    report.add("that iteration without computing", wall, "ms", Limit::None);
    report.add("of a demo iteration", wall / 1e3 / DEMO_S * 100.0, "%", Limit::AtMost(1.0));
    assert!(daemon.terminate().success());
}
