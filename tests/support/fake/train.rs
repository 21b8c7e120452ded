//! Training without tensors: a sum that runs over the pairs, step by step.
//!
//! The weights of the checkpoint are that sum, so two trainings agree in their hashes only if they
//! saw the same pairs in the same order from the same policy, and a resumed one only if it went on
//! from where it stood. Folder, manifest and steps.jsonl have the real worker's format.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rlhfd_protocol::manifest::{FORMAT, FileSum, FolderKind, MANIFEST, Manifest};
use rlhfd_protocol::worker::{FailureKind, FromWorker, Published, Summary, TrainTarget, Work};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::answers::work_name;
use super::compute::Numbers;
use super::serve::{Stop, Worker};
use super::verify;
use crate::models;

/// What is kept between two attempts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    step: u64,
    sum: String,
    rows: Vec<String>,
}

/// What a training is made of.
struct Job<'a> {
    target: &'a TrainTarget,
    base: &'a Path,
    kind: FolderKind,
    pairs: Vec<String>,
    batch_pairs: usize,
    epochs: u64,
    file: String,
}

pub(super) fn run(worker: &mut Worker, attempt: u64, work: &Work) -> Result<Summary, Stop> {
    let name = work_name(work);
    verify::models_of(work)?;
    let job = match work {
        Work::TrainDpo { policy, folder, target, .. } => {
            Job::read(&policy.path, folder, "pairs.jsonl", FolderKind::Policy, target)?
        }
        Work::TrainSft { base, folder, target } => {
            Job::read(&base.path, folder, "conversations.jsonl", FolderKind::Policy, target)?
        }
        Work::TrainReward { base, folder, target } => {
            Job::read(&base.path, folder, "preferences.jsonl", FolderKind::RewardModel, target)?
        }
        Work::TrainPreference { base, folder, target } => {
            Job::read(&base.path, folder, "preferences.jsonl", FolderKind::PreferenceModel, target)?
        }
        _ => return Err(anyhow::anyhow!("{name} is no training").into()),
    };
    if let Some(published) = published(&job)? {
        return Ok(Summary { checkpoint: Some(published), ..Summary::default() });
    }
    let per_epoch = job.pairs.len().div_ceil(job.batch_pairs) as u64;
    let steps = per_epoch * job.epochs;
    let mut state = match job.target.resume {
        true => State::load(&job.target.state)?,
        false => None,
    }
    .unwrap_or_else(|| State { step: 0, sum: job.start(), rows: Vec::new() });
    let first_step = state.step + 1;
    while state.step < steps {
        worker.check_cancel(attempt)?;
        if let Some(within_ms) = worker.draining() {
            if worker.faults.plan().ms_per_save < within_ms {
                state.save(&job.target.state)?;
            }
            let message = "stopped to drain".into();
            return Err(Stop::Failed { kind: FailureKind::Cancelled, message, exit: false });
        }
        let done = u32::try_from(state.step).unwrap_or(u32::MAX);
        if let Some((fault, act)) = worker.due(name, done, "", None) {
            worker.act_out(&fault, act)?;
        }
        worker.pause_for(worker.faults.plan().ms_per_step);
        let loss = job.step(&mut state, per_epoch)?;
        worker.progress();
        worker.send(&FromWorker::Step { attempt, step: state.step, steps, loss }, &[])?;
        if state.step.is_multiple_of(job.target.save_every_steps.max(1)) {
            state.save(&job.target.state)?;
        }
    }
    if let Some((fault, act)) = worker.due("publish", 0, "", None) {
        worker.act_out(&fault, act)?;
    }
    let mut published = job.publish(&state)?;
    published.first_step = first_step;
    if let Some((fault, act)) = worker.due("published", 0, "", None) {
        worker.act_out(&fault, act)?;
    }
    let tokens = steps * 100;
    Ok(Summary { seconds: 0.5, tokens, checkpoint: Some(published), ..Summary::default() })
}

/// An average without weights: a sum of the two that it is made of, and of their shares.
pub(super) fn average(worker: &mut Worker, attempt: u64, work: &Work) -> Result<Summary, Stop> {
    let Work::Average { policy, before, decay, out, unit } = work else {
        return Err(anyhow::anyhow!("{} is no average", work_name(work)).into());
    };
    worker.check_cancel(attempt)?;
    verify::models_of(work)?;
    if let Some((fault, act)) = worker.due("average", 0, "", None) {
        worker.act_out(&fault, act)?;
    }
    let target = TrainTarget {
        micro_batch: None,
        out: out.clone(),
        unit: unit.clone(),
        state: out.clone(),
        resume: false,
        seed: 0,
        save_every_steps: 1,
        save_every_s: 1,
        parent_sha256: policy.sha256.clone(),
    };
    let job = Job {
        target: &target,
        base: &policy.path,
        kind: FolderKind::Policy,
        pairs: Vec::new(),
        batch_pairs: 1,
        epochs: 0,
        file: String::new(),
    };
    let parts = [policy.sha256.as_bytes(), before.sha256.as_bytes(), &decay.to_le_bytes()];
    let state = State { step: 0, sum: sum_of(&parts), rows: Vec::new() };
    let checkpoint = match published(&job)? {
        Some(published) => published,
        None => job.publish(&state)?,
    };
    if let Some((fault, act)) = worker.due("averaged", 0, "", None) {
        worker.act_out(&fault, act)?;
    }
    Ok(Summary { seconds: 0.5, checkpoint: Some(checkpoint), ..Summary::default() })
}

impl<'a> Job<'a> {
    fn read(
        base: &'a Path,
        folder: &Path,
        file: &str,
        kind: FolderKind,
        target: &'a TrainTarget,
    ) -> Result<Self> {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let settings: toml::Table = fs::read_to_string(folder.join("settings.toml"))
            .context("settings.toml")?
            .parse()
            .context("settings.toml")?;
        let settings = match settings.get("train") {
            Some(toml::Value::Table(inner)) => inner.clone(),
            _ => settings,
        };
        let number = |key: &str, default: i64| {
            settings.get(key).and_then(toml::Value::as_integer).unwrap_or(default).max(1)
        };
        Ok(Self {
            target,
            base,
            kind,
            pairs: text.lines().map(str::to_owned).collect(),
            batch_pairs: match kind {
                _ if file == "conversations.jsonl" => {
                    usize::try_from(number("batch_sequences", 32))?
                }
                FolderKind::PreferenceModel => usize::try_from(number("batch_sequences", 32))?,
                _ => usize::try_from(number("batch_pairs", 128))?,
            },
            file: file.to_owned(),
            epochs: u64::try_from(number("epochs", 1))?,
        })
    }

    fn start(&self) -> String {
        sum_of(&[self.target.parent_sha256.as_bytes(), &self.target.seed.to_le_bytes()])
    }

    fn step(&self, state: &mut State, per_epoch: u64) -> Result<f64> {
        let from = usize::try_from(state.step % per_epoch)? * self.batch_pairs;
        let to = (from + self.batch_pairs).min(self.pairs.len());
        for pair in &self.pairs[from..to] {
            state.sum = sum_of(&[state.sum.as_bytes(), pair.as_bytes()]);
        }
        state.step += 1;
        let mut numbers = Numbers::new(&[b"step", state.sum.as_bytes()]);
        let mut fraction = || numbers.below(1000) as f64 / 1000.0;
        let (loss, margin) = (0.2 + fraction() / 2.0, fraction());
        let row = match self.kind {
            _ if self.file == "conversations.jsonl" || self.kind == FolderKind::PreferenceModel => {
                serde_json::json!({
                    "step": state.step, "loss": loss, "lr": 0.001, "grad_norm": 1.0 + fraction(),
                    "token_accuracy": margin,
                })
            }
            FolderKind::RewardModel => serde_json::json!({
                "step": state.step, "loss": loss, "lr": 0.001, "grad_norm": 1.0 + fraction(),
                "accuracy": 0.5, "margin": margin,
            }),
            _ => serde_json::json!({
                "step": state.step, "loss": loss, "lr": 0.001, "grad_norm": 1.0 + fraction(),
                "accuracy": 0.5, "margin": margin,
                "implicit_reward_chosen": margin / 2.0, "implicit_reward_rejected": -margin / 2.0,
            }),
        };
        state.rows.push(row.to_string());
        Ok(loss)
    }

    /// Writes the folder aside, syncs it and renames it.
    fn publish(&self, state: &State) -> Result<Published> {
        let out = &self.target.out;
        let parent = out.parent().context("a checkpoint has a parent folder")?;
        fs::create_dir_all(parent)?;
        let name = out.file_name().context("a checkpoint has a name")?.to_string_lossy();
        let part = parent.join(format!(".{name}.part"));
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        let reward = self.kind == FolderKind::RewardModel;
        models::write_files(&part, reward, &state.sum)?;
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            if self.base.join(file).is_file() {
                fs::copy(self.base.join(file), part.join(file))?;
            }
        }
        if self.kind == FolderKind::PreferenceModel {
            fs::write(part.join("preference.json"), "{}\n")?;
        }
        fs::write(part.join("steps.jsonl"), state.rows.join("\n") + "\n")?;
        let (bytes, sha256) = self.write_manifest(&part, state.step)?;
        fs::File::open(&part)?.sync_all()?;
        fs::rename(&part, out)?;
        fs::File::open(parent)?.sync_all()?;
        Ok(Published { sha256, steps: state.step, first_step: 1, bytes, dropped: Vec::new() })
    }

    fn write_manifest(&self, folder: &Path, steps: u64) -> Result<(u64, String)> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let bytes = fs::read(entry.path())?;
            fs::File::open(entry.path())?.sync_all()?;
            files.push(FileSum {
                path: entry.file_name().to_string_lossy().into_owned(),
                bytes: bytes.len() as u64,
                sha256: sum_of(&[&bytes]),
            });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let bytes = files.iter().map(|file| file.bytes).sum();
        let manifest = Manifest {
            format: FORMAT,
            kind: self.kind,
            unit: self.target.unit.clone(),
            parent_sha256: self.target.parent_sha256.clone(),
            architecture: models::architecture(self.kind == FolderKind::RewardModel).into(),
            steps,
            files,
        };
        let text = manifest.to_bytes()?;
        fs::write(folder.join(MANIFEST), &text)?;
        fs::File::open(folder.join(MANIFEST))?.sync_all()?;
        Ok((bytes, sum_of(&[&text])))
    }
}

/// The folder that this very unit has published already, if it has.
fn published(job: &Job) -> Result<Option<Published>> {
    let Ok(text) = fs::read(job.target.out.join(MANIFEST)) else { return Ok(None) };
    let manifest: Manifest = serde_json::from_slice(&text)?;
    let sum_is = |file: &FileSum, bytes: Vec<u8>| sum_of(&[&bytes]) == file.sha256;
    let whole = |file: &FileSum| {
        fs::read(job.target.out.join(&file.path)).is_ok_and(|bytes| sum_is(file, bytes))
    };
    if !manifest.files.iter().all(whole) {
        fs::remove_dir_all(&job.target.out)?;
        return Ok(None);
    }
    anyhow::ensure!(manifest.unit == job.target.unit, "{} is another's", job.target.out.display());
    let steps = manifest.steps;
    Ok(Some(Published {
        sha256: sum_of(&[&text]),
        steps,
        first_step: steps + 1,
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        dropped: Vec::new(),
    }))
}

impl State {
    fn load(folder: &Path) -> Result<Option<Self>> {
        match fs::read(folder.join("state.json")) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let part = folder.join("state.part");
        fs::write(&part, serde_json::to_vec(self)?)?;
        // A torn state under its name would be read after a power cut.
        fs::File::open(&part)?.sync_all()?;
        fs::rename(part, folder.join("state.json"))?;
        Ok(())
    }
}

fn sum_of(parts: &[&[u8]]) -> String {
    let mut sum = Sha256::new();
    for part in parts {
        sum.update(part);
    }
    hex(&sum.finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
