//! The benchmark on a tiny model: every figure that it promises is there and possible.
//!
//! In: a golden model. Out: verdicts on the JSON that it writes. May not enter: how fast anything is.

use std::path::Path;

use clap::Parser;
use rlhfd_worker::bench::{self, BenchArgs};
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: BenchArgs,
}

fn run(arguments: &[&str]) -> Result<Vec<String>, String> {
    let args = Cli::parse_from(["bench", "--device", "cpu"].iter().chain(arguments)).args;
    let mut told = Vec::new();
    let result = bench::run(&args, &mut |line| told.push(line.to_owned()));
    result.map(|()| told).map_err(|error| error.to_string())
}

#[test]
fn every_figure_is_there() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("bench.json");
    let out = out.to_str().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/tiny-tied");
    let told = run(&["--model", model.to_str().unwrap(), "--out", out]).unwrap();
    assert!(told.iter().any(|line| line.starts_with("decode_64")), "{told:?}");
    let figures: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert!(figures["gemm_gflops"].as_f64().unwrap() > 0.0);
    let stages = figures["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    let wanted = [
        "prefill",
        "decode_1",
        "decode_16",
        "decode_64",
        "generate",
        "logprobs",
        "score",
        "train",
        "train_recomputed",
    ];
    assert_eq!(names, wanted);
    for stage in stages {
        for figure in ["seconds", "tok_per_s", "gflops", "gemm_share"] {
            assert!(stage[figure].as_f64().unwrap() > 0.0, "{figure} of {stage}");
        }
        assert!(stage["peak_mib"].as_u64().unwrap() > 10, "{stage}");
    }
    assert_eq!(figures["parts"].as_array().unwrap().len(), 2);
    assert_eq!(figures["peer"], Value::Array(Vec::new()));
}

#[test]
fn a_peer_that_cannot_be_run_is_told() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("bench.json");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/tiny-tied");
    let more = ["--inference-only", "--peer", "/no/such/python", "--out", out.to_str().unwrap()];
    let error = run(&[&["--model", model.to_str().unwrap()], &more[..]].concat()).unwrap_err();
    assert!(error.contains("--peer") && error.contains("cannot be started"), "{error}");
    assert!(!out.exists());
}
