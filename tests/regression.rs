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

/// The daemon took a model that lies in its state folder, where the system service suggests it, for a
/// checkpoint of its own, missed the manifest, and did not start a second time.
#[test]
fn a_policy_that_lies_in_the_state_folder_is_no_checkpoint_of_the_daemon() {
    let scene = Scene::fake(&Settings::default());
    std::fs::create_dir_all(scene.state()).unwrap();
    std::fs::rename(scene.path("models"), scene.path("state/models")).unwrap();
    scene.configure(&Settings::default().set("run", "policy", "\"state/models/policy\"").set(
        "[label.scorers]",
        "model",
        "\"state/models/reward\"",
    ));
    assert!(scene.start().terminate().success());
    let daemon = scene.start();
    let head = "SELECT count(*) FROM checkpoints WHERE name = 'initial' AND sound = 1";
    assert_eq!(scene.number(head), 1, "{}", scene.log());
    scene.ctl_ok(&["doctor"]);
    assert!(daemon.terminate().success());
}
