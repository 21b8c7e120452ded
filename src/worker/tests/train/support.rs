//! What the tests of training share: golden places, jobs on tiny models, tensors of folders.

use std::path::{Path, PathBuf};

use rlhfd_config::{TrainSettings, Training};
use rlhfd_worker::checkpoint;
use rlhfd_worker::device::Compute;
use rlhfd_worker::model::safetensors::WeightFile;
use rlhfd_worker::model::{Devices, Precision};
use rlhfd_worker::render::RenderRule;
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::batches::Order;
use rlhfd_worker::train::job::{Outcome, PairSource, PublishedAs, StateKeeping, TrainJob, run};
use rlhfd_worker::train::mixture::DataFile;
use rlhfd_worker::train::state::Resume;
use rlhfd_worker::train::steps::StepRow;
use rlhfd_worker::train::trainer::Observer;
use rlhfd_worker::watch::Watch;
use tch::{Device, Kind, Tensor};

pub const CPU: Compute =
    Compute { devices: Devices::one(Device::Cpu), precision: Precision::Float32 };

pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

pub fn model(name: &str) -> PathBuf {
    golden("models").join(name)
}

/// The first lines of a file, in a file of their own.
pub fn first_lines(dir: &Path, from: &Path, count: usize) -> PathBuf {
    let text = std::fs::read_to_string(from).unwrap();
    let lines: Vec<&str> = text.lines().take(count).collect();
    let path = dir.join("data.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

pub fn job(training: Training, base: PathBuf, data: PathBuf, out: PathBuf) -> TrainJob {
    let reference = (training == Training::Dpo).then(|| base.clone());
    let pairs = match training {
        Training::Sft => PairSource::Conversations { files: vec![DataFile::once(data)] },
        Training::Dpo | Training::Reward | Training::Preference => PairSource::Text {
            files: vec![DataFile::once(data)],
            rule: RenderRule::Conversation,
            reference,
        },
    };
    TrainJob {
        training,
        base,
        base_sha256: String::new(),
        adapter_base: None,
        published: PublishedAs::Model,
        pairs,
        stored: None,
        micro_batch: None,
        settings: TrainSettings::defaults(training).unwrap(),
        order: Order::AsGiven,
        seed: 0,
        out,
        unit: String::new(),
        parent_sha256: String::new(),
        state: None,
    }
}

pub fn run_quietly(job: &TrainJob) -> Result<Outcome, TrainError> {
    run(job, CPU, &Observer { watch: &Watch::default(), filled: &|_, _| {}, stepped: &|_, _| {} })
}

pub fn tensors(path: &Path) -> Vec<(String, Tensor)> {
    let file = WeightFile::open(path).unwrap();
    file.entries.iter().map(|entry| (entry.name.clone(), file.read(entry).unwrap())).collect()
}

pub fn squared_distance(one: &[(String, Tensor)], two: &[(String, Tensor)]) -> f64 {
    two.iter()
        .map(|(name, theirs)| {
            let (_, ours) = one.iter().find(|(candidate, _)| candidate == name).unwrap();
            let difference = ours.to_kind(Kind::Double) - theirs.to_kind(Kind::Double);
            (&difference * &difference).sum(Kind::Double).double_value(&[])
        })
        .sum()
}

pub fn small(dir: &Path, training: Training, base: &str, words: &[&str]) -> TrainJob {
    let data = match training {
        Training::Sft => "conversations_sft.jsonl",
        Training::Dpo | Training::Reward | Training::Preference => "pairs.jsonl",
    };
    let data = first_lines(dir, &golden(data), 10);
    let mut job = job(training, model(base), data, dir.join("out"));
    let own: &[&str] = match training {
        Training::Sft | Training::Preference => &["batch_sequences=4", "packing=false"],
        Training::Dpo | Training::Reward => &[],
    };
    let words: Vec<String> = [
        "learning_rate=1e-3",
        "batch_pairs=4",
        "epochs=2",
        "warmup_ratio=0",
        "weight_decay=0.1",
        "max_length=512",
    ]
    .iter()
    .chain(own)
    .chain(words)
    .map(|word| (*word).to_owned())
    .collect();
    job.settings = TrainSettings::read(training, "", &words).unwrap();
    job.order = Order::Shuffled { seed: 5 };
    job
}

/// Runs until `stop_after` steps are made, then is cancelled as a drain does it.
pub fn interrupted(job: &TrainJob, stop_after: u64) {
    let watch = Watch::default();
    let stepped = |row: &StepRow, _: u64| {
        if row.step == stop_after {
            watch.cancel();
        }
    };
    let error = run(job, CPU, &Observer { watch: &watch, filled: &|_, _| {}, stepped: &stepped })
        .unwrap_err();
    assert!(matches!(error, TrainError::Cancelled { .. }), "{error}");
    assert!(!job.out.exists());
}

pub fn with_state(job: &TrainJob, dir: &Path, every_steps: u64) -> TrainJob {
    let state =
        StateKeeping { folder: dir.join("state"), resume: Resume::Newest, every_steps, every_s: 0 };
    TrainJob { state: Some(state), unit: "1/train".into(), ..job.clone() }
}

pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let standing = checkpoint::verify(dir).unwrap();
    let paths = standing.manifest.files.iter().map(|file| file.path.clone());
    paths.map(|path| (path.clone(), std::fs::read(dir.join(path)).unwrap())).collect()
}

/// The tiny model with its weights rounded to bf16.
pub fn in_bf16(dir: &Path, base: &str) -> PathBuf {
    let to = dir.join("bf16");
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(model(base)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let tensors: Vec<(String, Tensor)> = tensors(&model(base).join("model.safetensors"))
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_kind(Kind::BFloat16)))
        .collect();
    let path = to.join("model.safetensors");
    std::fs::remove_file(&path).unwrap();
    Tensor::write_safetensors(&tensors, &path).unwrap();
    to
}
