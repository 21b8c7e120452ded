//! Bugs that were fixed: each leaves a test named after what the user saw.

use std::os::unix::fs::FileTypeExt;

use rlhfd_tests::binaries::{program, program_if_built, root};
use rlhfd_tests::scene::{Scene, Settings, text};

/// `--out /dev/stdout` and its like were replaced by an ordinary file.
#[test]
fn an_output_that_is_a_device_is_still_a_device_afterwards() {
    if program_if_built("rlhfd-worker-torch").is_none() {
        eprintln!("skipped: rlhfd-worker-torch is not built");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    // A link: should the device ever be replaced again, only the link goes.
    let out = place.path().join("null");
    std::os::unix::fs::symlink("/dev/null", &out).unwrap();
    let prompts = place.path().join("in.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"a b\"}\n").unwrap();
    let mut command = std::process::Command::new(program("rlhfd-worker"));
    command.env("RLHFD_LIBTORCH", root().join("libtorch")).arg("generate");
    command.arg("--model").arg(root().join("tests/golden/models/tiny-tied"));
    command.arg("--prompts").arg(prompts).arg("--out").arg(&out);
    command.args(["--n", "1", "--max-new-tokens", "2", "--temperature", "1.0"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(std::fs::metadata(&out).unwrap().file_type().is_char_device());
}

#[test]
fn a_socket_path_in_a_deep_folder_is_a_clear_error() {
    let scene = Scene::fake(&Settings::default());
    let deep = scene.path(&"deep/".repeat(30)).join("socket");
    let output = scene.rlhfd_at(&["run"], &deep).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("107") && said.contains("--socket"), "{said}");
}
