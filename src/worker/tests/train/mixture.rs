//! Several files with weights: as if each line stood in one file as often as it is taken.

use std::path::{Path, PathBuf};

use rlhfd_config::Training;
use rlhfd_worker::train::job::{PairSource, TrainJob};
use rlhfd_worker::train::mixture::DataFile;

use crate::support::{golden, run_quietly, small};

fn lines_of(training: Training) -> Vec<String> {
    let name = match training {
        Training::Sft => "conversations_sft.jsonl",
        Training::Dpo | Training::Reward | Training::Preference => "pairs.jsonl",
    };
    let text = std::fs::read_to_string(golden(name)).unwrap();
    text.lines().take(7).map(str::to_owned).collect()
}

fn written(dir: &Path, name: &str, lines: &[String]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn with_files(job: &mut TrainJob, files: Vec<DataFile>) {
    match &mut job.pairs {
        PairSource::Conversations { files: own } | PairSource::Text { files: own, .. } => {
            *own = files;
        }
        PairSource::Ids { .. } => unreachable!("ids have no files"),
    }
}

/// The sum of what these files make of a tiny model.
fn sum(training: Training, files: impl Fn(&Path) -> Vec<DataFile>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut job = small(dir.path(), training, "tiny-tied", &[]);
    with_files(&mut job, files(dir.path()));
    run_quietly(&job).unwrap().standing.sha256
}

#[test]
fn a_weight_of_two_is_each_line_twice_and_files_follow_one_another() {
    for training in [Training::Sft, Training::Dpo] {
        let lines = lines_of(training);
        let twice: Vec<String> =
            lines[..4].iter().flat_map(|line| [line.clone(), line.clone()]).collect();
        let whole = [&twice[..], &lines[4..]].concat();
        let one = sum(training, |dir| vec![DataFile::once(written(dir, "whole", &whole))]);
        let two = sum(training, |dir| {
            let first = DataFile { weight: 2.0, path: written(dir, "first", &lines[..4]) };
            vec![first, DataFile::once(written(dir, "second", &lines[4..]))]
        });
        assert_eq!(one, two, "{training:?}");
        // A line's own weight does the same.
        let own = sum(training, |dir| {
            let weighted = |line: &String| line.replacen('{', "{\"weight\": 2, ", 1);
            let weighted: Vec<String> = lines[..4].iter().map(weighted).collect();
            let whole = [&weighted[..], &lines[4..]].concat();
            vec![DataFile::once(written(dir, "own", &whole))]
        });
        assert_eq!(one, own, "{training:?}");
    }
}

#[test]
fn copies_of_a_preference_are_no_duplicates_and_the_report_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let lines = lines_of(Training::Reward);
    let mut job = small(dir.path(), Training::Reward, "tiny-reward", &[]);
    let again = written(dir.path(), "again", &lines[..1]);
    let files = vec![
        DataFile { weight: 3.0, path: written(dir.path(), "lines", &lines[..4]) },
        DataFile { weight: 1e-9, path: written(dir.path(), "rare", &lines[4..]) },
        DataFile::once(again),
    ];
    with_files(&mut job, files);
    let report = run_quietly(&job).unwrap().report.unwrap();
    assert_eq!((report.pairs, report.trained), (16, 12));
    let dropped: Vec<_> = report.dropped.iter().map(|(why, n)| (why.as_str(), *n)).collect();
    assert_eq!(dropped, [("duplicate", 1), ("weight", 3)]);
}
