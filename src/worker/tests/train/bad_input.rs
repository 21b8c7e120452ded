//! Bad input of a training: each its clear error, and nothing written.

use std::path::{Path, PathBuf};

use rlhfd_config::Training;
use rlhfd_worker::train::job::{PairSource, TrainJob};
use rlhfd_worker::train::mixture::DataFile;

use crate::support::{model, run_quietly, small};

#[test]
fn bad_input_is_told_before_anything_is_written() {
    type Spoil = fn(&mut TrainJob, &Path);
    let cases: &[(&str, Spoil)] = &[
        ("missing", |job, dir| job.base = dir.join("nowhere")),
        ("reward model", |job, _| job.base = model("tiny-reward")),
        ("reward model", |job, _| {
            if let PairSource::Text { reference, .. } = &mut job.pairs {
                *reference = Some(model("tiny-reward"));
            }
        }),
        ("read", |job, dir| {
            if let PairSource::Text { files, .. } = &mut job.pairs {
                files.push(DataFile::once(dir.join("nothing.jsonl")));
            }
        }),
        ("empty", |job, dir| set_pairs(job, dir, "")),
        ("line 1", |job, dir| set_pairs(job, dir, "{\"chosen\": 1}")),
        ("rejected", |job, dir| {
            set_pairs(job, dir, "{\"prompt\": \"q\", \"chosen\": \"a\"}");
        }),
        ("the same", |job, dir| {
            set_pairs(job, dir, r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#);
        }),
        ("different prompts", |job, dir| {
            set_pairs(
                job,
                dir,
                r#"{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}], "rejected": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "y"}]}"#,
            );
        }),
        ("no pair is left", |job, _| job.settings.max_length = 2),
        ("the model has 2 layers", |job, _| job.settings.trainable_layers = Some(3)),
        ("exists already", |job, _| {
            std::fs::create_dir(&job.out).unwrap();
            std::fs::write(job.out.join("mine"), "x").unwrap();
        }),
        ("cannot be created", |job, _| job.out = PathBuf::from("/proc/nowhere/out")),
        ("line 1", |job, dir| {
            let line = r#"{"prompt_ids": [1], "chosen_ids": [9999999], "rejected_ids": [2], "reference_logprob_chosen": -1, "reference_logprob_rejected": -1}"#;
            let path = dir.join("ids.jsonl");
            std::fs::write(&path, line).unwrap();
            job.pairs = PairSource::Ids { path };
        }),
    ];
    for (words, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut job = small(dir.path(), Training::Dpo, "tiny-tied", &[]);
        spoil(&mut job, dir.path());
        let error = run_quietly(&job).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!job.out.join("config.json").exists(), "{words}");
        let left = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
        let partial = left.filter(|entry| entry.file_name().to_string_lossy().contains("partial"));
        assert_eq!(partial.count(), 0, "{words}");
    }
}

fn set_pairs(job: &mut TrainJob, dir: &Path, text: &str) {
    let own = dir.join("own.jsonl");
    std::fs::write(&own, text).unwrap();
    if let PairSource::Text { files, .. } = &mut job.pairs {
        *files = vec![DataFile::once(own)];
    }
}
