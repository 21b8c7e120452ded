//! A trained model as a Hugging Face folder that transformers and vLLM load as it is.
//!
//! In: the folder that training started from, the learners, the steps. Out: weights in the folder's
//! own type and files (what did not learn is copied to the bit), config.json, tokenizer, template,
//! generation_config.json, steps.jsonl, and, where that type is narrower than f32,
//! `master/weights.safetensors` with the f32 masters, from which the next training goes on. It lies
//! in a folder of its own because vLLM loads every `*.safetensors` beside config.json. Where adapters
//! learnt, the weights are merged with them, and they lie beside in `adapter/`, as peft has them.
//! May not enter: training itself.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::adapter_files::AdapterFiles;
use super::error::TrainError;
use super::learners::Learners;
use super::report::{REPORT, Report};
use super::steps::{StepRow, to_jsonl};
use super::weights::{self, Piece};
use crate::checkpoint::{CheckpointError, Draft};
use crate::model::Adapters;
use crate::model::adapter_folder::ADAPTER;
use crate::model::labels::{Labels, PREFERENCE};
use crate::model::safetensors::{Entry, WeightFile};
use crate::model::{Head, ModelFolder};

/// Where the f32 masters lie in a folder.
pub const MASTERS: &str = "master/weights.safetensors";

/// The journal of steps in a checkpoint folder.
pub const STEPS: &str = "steps.jsonl";

/// Files that go over as they are, where they exist.
pub const COPIED: [&str; 7] = [
    "tokenizer.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// The f32 masters that a folder holds beside narrower weights.
#[derive(Debug)]
pub struct Masters {
    file: Option<WeightFile>,
}

/// Whether a folder has masters, which make a policy that goes on finer than the folder's own weights.
#[must_use]
pub fn has_masters(dir: &Path) -> bool {
    dir.join(MASTERS).is_file()
}

impl Masters {
    /// Of a folder that has none.
    #[must_use]
    pub fn none() -> Self {
        Self { file: None }
    }

    /// Opens them; a folder without any has none.
    ///
    /// # Errors
    /// A damaged file.
    pub fn open(dir: &Path) -> Result<Self, TrainError> {
        let path = dir.join(MASTERS);
        let file = if has_masters(dir) { Some(WeightFile::open(&path)?) } else { None };
        Ok(Self { file })
    }

    /// Whether there are none.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.file.is_none()
    }

    /// All of them, in the order of the file.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        self.file.as_ref().map_or(&[], |file| &file.entries)
    }

    /// The master of that name.
    ///
    /// # Errors
    /// What the system says.
    pub fn get(&self, name: &str) -> Result<Option<Tensor>, TrainError> {
        let Some(file) = &self.file else { return Ok(None) };
        let entry = file.entries.iter().find(|entry| entry.name == name);
        entry.map(|entry| file.read(entry)).transpose().map_err(TrainError::from)
    }
}

/// What a reward model's folder says beyond its base's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewardFolder {
    /// A pad id that is no stop id.
    pub pad_id: u32,
    /// Its token; None where the id has none.
    pub pad_token: Option<String>,
}

/// A weight file that was written: its name, and its tensors with their bytes.
struct Placed {
    file: String,
    tensors: Vec<(String, u64)>,
}

/// A folder to be published.
pub struct Publication<'a> {
    /// What the training started from.
    pub base: &'a ModelFolder,
    /// The base's own masters.
    pub masters: &'a Masters,
    /// What learnt.
    pub learners: &'a Learners,
    /// The adapters that the base's weights are merged with.
    pub adapters: Option<&'a Adapters>,
    /// Their own files, where they learnt.
    pub adapter_files: Option<AdapterFiles<'a>>,
    /// Every step.
    pub rows: &'a [StepRow],
    /// Set where a reward model is published.
    pub reward: Option<RewardFolder>,
    /// Of a reward model: what it is worth on held-out preferences.
    pub report: Option<&'a Report>,
    /// Set where a preference model is published.
    pub labels: Option<Labels>,
}

impl Publication<'_> {
    /// Fills a draft. Returns the architecture that its config.json names.
    ///
    /// # Errors
    /// What the disk says; a file of the base that cannot be read.
    pub fn fill(&self, draft: &Draft) -> Result<String, TrainError> {
        let placed = self.weights(draft.path())?;
        if placed.len() > 1 {
            self.index(draft, &placed)?;
        }
        self.master_file(draft.path())?;
        if let Some(files) = &self.adapter_files {
            files.write(draft, ADAPTER)?;
        }
        let architecture = self.config(draft)?;
        self.padding_settings(draft)?;
        self.label_file(draft)?;
        self.copied(draft)?;
        Ok(architecture)
    }

    /// Fills a draft with the adapter alone, its tokenizer and its steps.
    ///
    /// # Errors
    /// What the disk says.
    pub fn fill_adapter(&self, draft: &Draft) -> Result<String, TrainError> {
        if let Some(files) = &self.adapter_files {
            files.write(draft, "")?;
        }
        self.padding_settings(draft)?;
        self.label_file(draft)?;
        self.copied(draft)?;
        let family = self.base.config.family;
        Ok(if self.reward.is_some() { family.classification } else { family.causal }.to_owned())
    }

    /// Files that go over as they are, and the journal of steps, where there were any.
    fn copied(&self, draft: &Draft) -> Result<(), TrainError> {
        for name in COPIED {
            let from = self.base.dir.join(name);
            if from.is_file() {
                draft.write(name, &read(&from)?)?;
            }
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        if let Some(report) = self.report {
            let report = serde_json::to_value(report)
                .map_err(|error| json_error(&draft.path().join(REPORT), &error))?;
            write_json(draft, REPORT, &report)?;
        }
        let steps =
            to_jsonl(self.rows).map_err(|error| json_error(&draft.path().join(STEPS), &error))?;
        Ok(draft.write(STEPS, steps.as_bytes())?)
    }

    /// Writes each weight file anew and returns what lies where.
    fn weights(&self, out: &Path) -> Result<Vec<Placed>, TrainError> {
        let files = self.base.files();
        let mut placed = Vec::with_capacity(files.len());
        for (index, file) in files.iter().enumerate() {
            let mut pieces: Vec<Piece<'_>> = file
                .entries
                .iter()
                .filter(|entry| self.reward.is_none() || entry.name != "lm_head.weight")
                .map(|entry| self.piece(file, entry))
                .collect();
            let last = index + 1 == files.len();
            let has_head = files.iter().flat_map(|f| &f.entries).any(|e| e.name == "score.weight");
            let learnt = self.learners.find("score.weight").map(|head| &head.master);
            let adapted = || self.adapters.and_then(|adapters| adapters.score_head.as_ref());
            if let (true, false, Some(head)) =
                (last && self.reward.is_some(), has_head, learnt.or_else(adapted))
            {
                pieces.push(Piece::of("score.weight".to_owned(), self.base.stored_kind, head));
            }
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            weights::write(&out.join(&name), &pieces)?;
            let tensors = pieces.iter().map(|p| (p.name.clone(), p.bytes())).collect();
            placed.push(Placed { file: name, tensors });
        }
        Ok(placed)
    }

    fn piece<'a>(&'a self, file: &'a WeightFile, entry: &'a Entry) -> Piece<'a> {
        // A second copy of a tied head follows the embedding.
        let name = if entry.name == "lm_head.weight" && self.base.config.tied {
            "model.embed_tokens.weight"
        } else {
            entry.name.as_str()
        };
        if let Some(adapters) = self.adapters.filter(|adapters| adapters.changes(name)) {
            return Piece {
                name: entry.name.clone(),
                kind: entry.kind,
                shape: entry.shape.clone(),
                tensor: Box::new(move || Ok(adapters.merged(&entry.name, &file.read(entry)?))),
            };
        }
        match self.learners.find(name) {
            Some(learner) => Piece::of(entry.name.clone(), entry.kind, &learner.master),
            None => Piece {
                name: entry.name.clone(),
                kind: entry.kind,
                shape: entry.shape.clone(),
                tensor: Box::new(move || Ok(file.read(entry)?)),
            },
        }
    }

    fn index(&self, draft: &Draft, placed: &[Placed]) -> Result<(), TrainError> {
        let mut map = Map::new();
        let mut total = 0;
        for Placed { file, tensors } in placed {
            for (name, bytes) in tensors {
                map.insert(name.clone(), Value::String(file.clone()));
                total += bytes;
            }
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_json(draft, "model.safetensors.index.json", &index)
    }

    /// Masters are kept for whatever learnt, now or before, if its stored type is narrower.
    fn master_file(&self, out: &Path) -> Result<(), TrainError> {
        // The next training goes on from the adapters, which are f32.
        if !narrower_than_f32(self.base.stored_kind) || self.adapters.is_some() {
            return Ok(());
        }
        let learners = self.learners.all().iter();
        let mut pieces: Vec<Piece<'_>> = learners
            .map(|learner| Piece::of(learner.name.clone(), Kind::Float, &learner.master))
            .collect();
        if let Some(file) = &self.masters.file {
            for entry in &file.entries {
                if self.learners.find(&entry.name).is_none() {
                    pieces.push(Piece {
                        name: entry.name.clone(),
                        kind: Kind::Float,
                        shape: entry.shape.clone(),
                        tensor: Box::new(move || Ok(file.read(entry)?)),
                    });
                }
            }
        }
        weights::write(&out.join(MASTERS), &pieces)
    }

    fn config(&self, draft: &Draft) -> Result<String, TrainError> {
        let path = self.base.dir.join("config.json");
        let bytes = read(&path)?;
        let mut config: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| json_error(&path, &error))?;
        let family = self.base.config.family;
        let Some(reward) = &self.reward else {
            draft.write("config.json", &bytes)?;
            let named = config.get("architectures").and_then(|list| list.get(0)?.as_str());
            return Ok(named.unwrap_or(family.causal).to_owned());
        };
        if self.base.config.head == Head::Language {
            config.insert("architectures".to_owned(), json!([family.classification]));
            // transformers counts labels by this table.
            config.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
            config.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
        }
        config.insert("pad_token_id".to_owned(), json!(reward.pad_id));
        write_json(draft, "config.json", &Value::Object(config))?;
        Ok(family.classification.to_owned())
    }

    /// The files that name a pad token besides config.json: a reward model's name the same one, so
    /// that padded batches of transformers score as single texts do.
    fn padding_settings(&self, draft: &Draft) -> Result<(), TrainError> {
        let reward = self.reward.as_ref();
        let token = reward.and_then(|reward| reward.pad_token.clone()).map(Value::String);
        let id = reward.map(|reward| json!(reward.pad_id));
        self.settings_file(draft, "tokenizer_config.json", ("pad_token", token.clone()))?;
        self.settings_file(draft, "special_tokens_map.json", ("pad_token", token))?;
        self.settings_file(draft, "generation_config.json", ("pad_token_id", id))
    }

    /// What names a preference model.
    fn label_file(&self, draft: &Draft) -> Result<(), TrainError> {
        let Some(labels) = self.labels else { return Ok(()) };
        let bytes = labels
            .to_bytes()
            .map_err(|error| json_error(&draft.path().join(PREFERENCE), &error))?;
        Ok(draft.write(PREFERENCE, &bytes)?)
    }

    /// Copies a JSON file where it exists, with `key` set where there is a value for it.
    fn settings_file(
        &self,
        draft: &Draft,
        name: &str,
        (key, value): (&str, Option<Value>),
    ) -> Result<(), TrainError> {
        let path = self.base.dir.join(name);
        if !path.is_file() {
            return Ok(());
        }
        let bytes = read(&path)?;
        let Some(value) = value else {
            return Ok(draft.write(name, &bytes)?);
        };
        let mut settings: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| json_error(&path, &error))?;
        settings.insert(key.to_owned(), value);
        write_json(draft, name, &Value::Object(settings))
    }
}

/// Whether a type has fewer bits than f32.
#[must_use]
pub fn narrower_than_f32(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}

fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    fs::read(path).map_err(|source| {
        CheckpointError::Io { path: path.to_owned(), action: "read", source }.into()
    })
}

fn write_json(draft: &Draft, name: &str, value: &Value) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| json_error(&draft.path().join(name), &error))?;
    text.push(b'\n');
    Ok(draft.write(name, &text)?)
}

fn json_error(path: &Path, error: &serde_json::Error) -> TrainError {
    TrainError::Job { path: path.to_owned(), problem: format!("no JSON ({error})") }
}
