//! The GPU check, tried on the CPU. In a process of its own, because it sets the number of threads.

#![expect(clippy::expect_used, reason = "a test's failure is its answer")]

use rlhfd_worker::gpu_check::{GpuCheckArgs, Verdict, device_node, run};

fn check(device: &str) -> (Verdict, Vec<String>) {
    let args = GpuCheckArgs { device: device.to_owned(), tiny: true, threads: Some(1) };
    let mut lines = Vec::new();
    let verdict = run(&args, &mut |line| lines.push(line.to_owned())).expect("the check runs");
    (verdict, lines)
}

/// The CPU against itself: f32 agrees, and bf16 stays within the bounds that a GPU has.
#[test]
fn the_check_passes_where_nothing_is_wrong() {
    let (verdict, lines) = check("cpu");
    println!("{}", lines.join("\n"));
    assert_eq!(verdict, Verdict::Good, "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("cosine")), "{lines:#?}");
}

#[test]
fn without_a_gpu_it_says_so() {
    if device_node() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let (verdict, lines) = check("auto");
    assert_eq!(verdict, Verdict::NoGpu, "{lines:#?}");
}
