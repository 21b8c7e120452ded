//! Interrupted = undisturbed, to the byte; what stands is taken as it stands; the daemon's contract.

use std::cell::Cell;

use rlhfd_config::Training;
use rlhfd_worker::checkpoint;
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::job::{TrainJob, run};
use rlhfd_worker::train::state::Resume;
use rlhfd_worker::train::steps::StepRow;
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::watch::Watch;

use crate::support::{CPU, files, interrupted, model, run_quietly, small, with_state};

#[test]
fn a_resumed_training_gives_the_same_bytes_as_an_undisturbed_one() {
    for training in [Training::Dpo, Training::Sft, Training::Reward] {
        let base = "tiny-tied";
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let undisturbed = with_state(&small(one.path(), training, base, &[]), one.path(), 2);
        let whole = run_quietly(&undisturbed).unwrap();
        assert_eq!((whole.rows.len(), whole.first_step), (6, 1));

        let job = with_state(&small(two.path(), training, base, &[]), two.path(), 2);
        interrupted(&job, 3);
        let saved: Vec<_> = std::fs::read_dir(two.path().join("state")).unwrap().collect();
        assert!(!saved.is_empty());
        let resumed = run_quietly(&job).unwrap();
        assert_eq!(resumed.first_step, 4, "a cancel saves the step that was made");
        assert_eq!(resumed.rows, whole.rows);
        assert_eq!(files(&job.out), files(&undisturbed.out));
        assert_eq!(resumed.standing.sha256, whole.standing.sha256);
    }
}

#[test]
fn a_kill_between_two_saves_costs_only_the_steps_since() {
    let dir = tempfile::tempdir().unwrap();
    let job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 2);
    let whole = run_quietly(&job).unwrap();
    // What a kill in step 4 leaves: the saves of steps 2 (and 4, which is taken away here).
    std::fs::remove_dir_all(&job.out).unwrap();
    std::fs::remove_dir_all(dir.path().join("state/step-00000004")).unwrap();
    let again = run_quietly(&job).unwrap();
    assert_eq!((again.first_step, again.standing), (3, whole.standing));
}

#[test]
fn without_resume_a_training_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 2);
    interrupted(&job, 3);
    if let Some(state) = &mut job.state {
        state.resume = Resume::Never;
    }
    assert_eq!(run_quietly(&job).unwrap().first_step, 1);
}

#[test]
fn a_damaged_state_is_passed_over_and_another_trainings_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 1);
    interrupted(&job, 4);
    let newest = dir.path().join("state/step-00000004/state.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let mut other = job.clone();
    other.settings.beta = 0.3;
    assert!(matches!(run_quietly(&other), Err(TrainError::ForeignState { .. })));
    assert_eq!(run_quietly(&job).unwrap().first_step, 4);
}

#[test]
fn what_a_unit_has_published_is_taken_as_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let job = with_state(&small(dir.path(), Training::Dpo, "tiny-tied", &[]), dir.path(), 2);
    let first = run_quietly(&job).unwrap();
    let stepped = Cell::new(0);
    let count = |_: &StepRow, _: u64| stepped.set(stepped.get() + 1);
    let observer = Observer { watch: &Watch::default(), filled: &|_, _| {}, stepped: &count };
    let again = run(&job, CPU, &observer).unwrap();
    assert_eq!((stepped.get(), again.first_step), (0, 7));
    assert_eq!((again.standing, again.rows), (first.standing, first.rows));
    let other = TrainJob { unit: "2/train".into(), ..job };
    assert!(matches!(run_quietly(&other), Err(TrainError::Checkpoint(_))));
}

/// The daemon's contract: a folder of token ids and settings in, a checkpoint folder out.
#[test]
fn an_iteration_folder_becomes_a_checkpoint() {
    use rlhfd_protocol::manifest::FolderKind;
    use rlhfd_protocol::worker::{ModelRef, TrainTarget};
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("iteration");
    std::fs::create_dir(&folder).unwrap();
    let line = |chosen: &str, rejected: &str, reference: f64| {
        format!(
            r#"{{"prompt_ids": [5, 6, 7], "chosen_ids": {chosen}, "rejected_ids": {rejected}, "reference_logprob_chosen": {reference}, "reference_logprob_rejected": {reference}, "prompt": 3}}"#
        )
    };
    let lines = [
        line("[8, 9, 2]", "[10, 2]", -20.0),
        line("[11, 2]", "[12, 13, 14, 2]", -15.0),
        line("[8, 2]", "[9, 2]", -12.0),
    ];
    std::fs::write(folder.join("pairs.jsonl"), lines.join("\n")).unwrap();
    let settings = "learning_rate = 1e-3\nbatch_pairs = 2\nepochs = 2\nmax_length = 6\n";
    std::fs::write(folder.join("settings.toml"), settings).unwrap();
    let target = TrainTarget {
        micro_batch: None,
        out: dir.path().join("checkpoints/one"),
        unit: "1/train".into(),
        state: dir.path().join("state"),
        resume: true,
        seed: 3,
        save_every_steps: 1,
        save_every_s: 0,
        parent_sha256: "ab".into(),
    };
    let policy = ModelRef { path: model("tiny-tied"), sha256: String::new() };
    let observer = Observer { watch: &Watch::default(), filled: &|_, _| {}, stepped: &|_, _| {} };
    let train = |target: &TrainTarget| {
        rlhfd_worker::train::unit::train_dpo(
            (&policy, &policy, &policy),
            (&folder, target),
            CPU,
            &observer,
        )
    };
    let published = train(&target).unwrap();
    // The second pair is over-long: two are left, in one step an epoch.
    assert_eq!((published.steps, published.first_step), (2, 1));
    assert_eq!(published.dropped, [("too_long".to_owned(), 1)]);
    let standing = checkpoint::verify(&target.out).unwrap();
    assert_eq!((&standing.sha256, standing.bytes), (&published.sha256, published.bytes));
    let manifest = &standing.manifest;
    assert_eq!((manifest.kind, manifest.steps), (FolderKind::Policy, 2));
    assert_eq!((manifest.unit.as_str(), manifest.parent_sha256.as_str()), ("1/train", "ab"));
    assert_eq!(train(&target).unwrap().first_step, 3, "done already");
    std::fs::write(folder.join("settings.toml"), "learning_rat = 1").unwrap();
    let error = train(&TrainTarget { out: dir.path().join("two"), ..target }).unwrap_err();
    assert!(error.to_string().contains("learning_rate"), "{error}");
}
