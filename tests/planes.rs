//! The rule of the two planes, held once more where it counts: in the dependency graph that Cargo
//! resolved, and in what the built binaries load.
//!
//! The control plane never touches a tensor; a worker never touches the database.

use std::path::Path;
use std::process::Command;

use rlhfd_tests::binaries::{program, program_if_built, root};

/// The names of all crates below a package.
fn tree(package: &str) -> Vec<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--package", package])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

fn assert_without(package: &str, forbidden: &[&str]) {
    let crates = tree(package);
    assert!(crates.len() > 3, "{package}: cargo tree gave {crates:?}");
    for name in forbidden {
        assert!(!crates.iter().any(|c| c == name), "{name} is below {package}");
    }
}

/// The libraries that a program is linked with, as ldd names them.
fn libraries(binary: &Path) -> String {
    let output = Command::new("ldd").arg(binary).output().expect("ldd runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn no_tensor_below_the_control_plane() {
    let tensors = ["tch", "torch-sys", "tokenizers", "safetensors", "rlhfd-worker-torch"];
    for package in ["rlhfd", "rlhfctl", "rlhfd-worker"] {
        assert_without(package, &tensors);
    }
}

#[test]
fn no_database_below_a_worker_or_the_client() {
    let database = ["rusqlite", "libsqlite3-sys", "rlhfd-store", "rlhfd"];
    for package in ["rlhfd-worker-torch", "rlhfd-worker", "rlhfctl"] {
        assert_without(package, &database);
    }
}

#[test]
fn the_daemon_and_its_client_load_no_libtorch() {
    for name in ["rlhfd", "rlhfctl", "rlhfd-worker"] {
        let libraries = libraries(&program(name));
        assert!(libraries.contains("libc.so"), "{name}: {libraries}");
        for forbidden in ["libtorch", "libc10", "libcuda"] {
            assert!(!libraries.contains(forbidden), "{name}: {libraries}");
        }
    }
}

#[test]
fn the_worker_loads_libtorch_by_a_relative_path_and_no_sqlite() {
    let Some(binary) = program_if_built("rlhfd-worker-torch") else {
        // `make check` builds no libtorch; `make test` does.
        assert!(std::env::var_os("RLHFD_REQUIRE_TORCH").is_none(), "rlhfd-worker-torch is missing");
        eprintln!("skipped: rlhfd-worker-torch is not built");
        return;
    };
    let libraries = libraries(&binary);
    assert!(libraries.contains("libtorch"), "{libraries}");
    assert!(!libraries.contains("sqlite"), "{libraries}");
    let bytes = std::fs::read(&binary).unwrap();
    // SQLite compiled in would carry its own name in its messages.
    assert!(!contains(&bytes, b"SQLite format 3"), "SQLite is in the worker");
    let output = Command::new("readelf").args(["-d"]).arg(&binary).output();
    let Ok(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("(RPATH)"), "{text}");
    let runpath = text.lines().find(|line| line.contains("RUNPATH")).expect("a RUNPATH");
    let places = runpath.split('[').nth(1).unwrap_or_default().trim_end_matches(']');
    for place in places.split(':') {
        assert!(place.starts_with("$ORIGIN/"), "{place} of {runpath}");
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
