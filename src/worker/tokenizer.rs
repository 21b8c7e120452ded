//! Text to token ids and back, with the ids that have a meaning of their own.
//!
//! In: a model folder's tokenizer.json, tokenizer_config.json, generation_config.json. Out:
//! [`Tokenizer`]: encode, decode, the stop ids, and the special tokens that a template may name.
//! Of generation_config.json only the stop ids are used; its sampling settings are reported.
//! May not enter: chat templates' rendering, tensors.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::checkpoint::sha256_hex;
use crate::errors::TextError;
use crate::model::keys::ids_of;
use crate::model::{ModelConfig, ModelFolder};

/// The special tokens that transformers hands to a template.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Sampling settings of generation_config.json that would change what is written.
const SAMPLING_KEYS: [&str; 8] = [
    "temperature",
    "top_p",
    "top_k",
    "do_sample",
    "repetition_penalty",
    "min_p",
    "typical_p",
    "no_repeat_ngram_size",
];

/// A tokenizer that fits its model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    dir: PathBuf,
    /// Special tokens by name (`bos_token`, …), as templates see them.
    pub special: Map<String, Value>,
    /// Ids that end a response, ascending.
    pub stop_ids: Vec<u32>,
    /// The id of `bos_token`.
    pub bos_id: Option<u32>,
    /// The id of `eos_token`.
    pub eos_id: Option<u32>,
    /// The id of `pad_token`, or of config.json's `pad_token_id`.
    pub pad_id: Option<u32>,
    /// The id of `unk_token`.
    pub unk_id: Option<u32>,
    /// The chat template's source, if the folder has one.
    pub template: Option<String>,
    /// Sampling settings that the folder suggests and that are not applied, `name = value`.
    pub suggested_sampling: Vec<String>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder and checks that it fits the model.
    ///
    /// Errors: `Tokenizer` names the file; `Misfit` where it has ids that the model has no row for,
    /// or not the ids that the model stops at.
    pub fn open(folder: &ModelFolder) -> Result<Self, TextError> {
        Self::open_for(&folder.dir, &folder.config)
    }

    /// Opens the tokenizer in `dir` for a model of this configuration, which may lie elsewhere.
    ///
    /// Errors: as [`Self::open`].
    pub fn open_for(dir: &Path, config: &ModelConfig) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let inner = open_inner(&path)?;
        let settings = optional_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let older = optional_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let generation = optional_json(&dir.join("generation_config.json"))?.unwrap_or_default();
        let special = special_tokens(&settings, &older);
        let id_of = |name: &str| inner.token_to_id(special.get(name)?.as_str()?);
        let (bos_id, eos_id) = (id_of("bos_token"), id_of("eos_token"));
        let pad_id = id_of("pad_token").or(config.pad_id);
        let mut stop_ids = generation
            .get("eos_token_id")
            .and_then(ids_of)
            .filter(|ids| !ids.is_empty())
            .unwrap_or_else(|| config.eos_ids.clone());
        if stop_ids.is_empty() {
            stop_ids.extend(eos_id);
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let tokenizer = Self {
            template: template_source(dir, &settings)?,
            dir: dir.to_owned(),
            bos_id,
            eos_id,
            pad_id,
            unk_id: id_of("unk_token"),
            stop_ids,
            suggested_sampling: suggested_sampling(&generation),
            special,
            inner,
        };
        tokenizer.check_fit(config.vocabulary)?;
        Ok(tokenizer)
    }

    fn check_fit(&self, vocabulary: usize) -> Result<(), TextError> {
        let ids = self.inner.get_vocab(true);
        let id_max = ids.values().copied().max().unwrap_or(0);
        if ids.is_empty() || id_max as usize >= vocabulary {
            return Err(TextError::Misfit {
                dir: self.dir.clone(),
                tokens: ids.len(),
                id_max,
                vocabulary,
            });
        }
        match self.stop_ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            Some(id) => Err(TextError::Tokenizer {
                path: self.dir.join("tokenizer.json"),
                problem: format!("the model stops at id {id}, which the tokenizer does not have"),
                mend: "put the tokenizer.json that was saved with these weights into the folder",
            }),
            None => Ok(()),
        }
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ids of a text that holds its special tokens already, as a rendered template does.
    ///
    /// Errors: `Tokenizer`, where the model of the tokenizer cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, AddSpecial::No)
    }

    /// Ids of a text, with or without what the tokenizer itself puts around it.
    ///
    /// Errors: as [`Self::encode`].
    pub fn encode_with(&self, text: &str, add: AddSpecial) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, add == AddSpecial::Yes);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| self.inexpressible(&error))
    }

    fn inexpressible(&self, error: &tokenizers::Error) -> TextError {
        TextError::Tokenizer {
            path: self.dir.join("tokenizer.json"),
            problem: format!("it cannot encode a text ({error})"),
            mend: "check that tokenizer.json is complete",
        }
    }

    /// For each id of a rendered text, whether it lies in one of `spans` (byte ranges of the text).
    ///
    /// As transformers' `assistant_masks`: from the first token that holds a span's first character
    /// to the first that holds its last one, by characters; to the end where that token is unknown.
    ///
    /// Errors: as [`Self::encode`].
    pub fn covered(&self, text: &str, spans: &[Range<usize>]) -> Result<Vec<bool>, TextError> {
        let encoding = self
            .inner
            .encode_char_offsets(text, false)
            .map_err(|error| self.inexpressible(&error))?;
        let mut covered = vec![false; encoding.len()];
        let characters = |bytes: usize| text[..bytes].chars().count();
        for span in spans.iter().filter(|span| !span.is_empty()) {
            let token = |character| encoding.char_to_token(character, 0);
            let Some(first) = token(characters(span.start)) else { break };
            let last = token(characters(span.end) - 1).filter(|last| *last > 0);
            let end = last.map_or(covered.len(), |last| last + 1);
            covered[first.min(end)..end].fill(true);
        }
        Ok(covered)
    }

    /// The text of ids, without special tokens.
    ///
    /// Errors: `Tokenizer`, where its decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_with(ids, false)
    }

    /// The text of ids with every special token in it.
    ///
    /// Errors: as [`Self::decode`].
    pub fn decode_whole(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_with(ids, true)
    }

    fn decode_with(&self, ids: &[u32], keep_special: bool) -> Result<String, TextError> {
        self.inner.decode(ids, !keep_special).map_err(|error| TextError::Tokenizer {
            path: self.dir.join("tokenizer.json"),
            problem: format!("it cannot decode its own ids ({error})"),
            mend: "check that tokenizer.json is complete",
        })
    }

    /// A token's own text, for messages.
    #[must_use]
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_else(|| format!("id {id}"))
    }

    /// Whether the tokenizer has a token of this id.
    #[must_use]
    pub fn has(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// The ids of added special tokens, ascending.
    #[must_use]
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let mut ids: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether this id ends a response.
    #[must_use]
    pub fn is_stop(&self, id: u32) -> bool {
        self.stop_ids.binary_search(&id).is_ok()
    }
}

/// Whether the tokenizer's post-processor may add its special tokens (a BOS, say).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// For plain text.
    Yes,
    /// For text that a template rendered.
    No,
}

/// Different tokenizers that are kept: a run has one a policy, a scorer and a preference model.
const OPEN_MAX: usize = 8;

/// The tokenizer in this file. Each policy that a run makes brings the same file once more, and of each opened
/// tokenizer the `tokenizers` crate keeps a cache of words in every thread that used it, until that thread ends:
/// equal files share one.
fn open_inner(path: &Path) -> Result<Arc<tokenizers::Tokenizer>, TextError> {
    static OPEN: Mutex<VecDeque<(String, Arc<tokenizers::Tokenizer>)>> =
        Mutex::new(VecDeque::new());
    let error = |problem: String, mend| TextError::Tokenizer { path: path.into(), problem, mend };
    let bytes = std::fs::read(path).map_err(|source| {
        error(
            source.to_string(),
            "the folder needs tokenizer.json; transformers writes it by \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    })?;
    let sum = sha256_hex(&bytes);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, known)) = open.iter().find(|(of, _)| *of == sum) {
        return Ok(Arc::clone(known));
    }
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|problem| error(first(&problem.to_string()), "fetch tokenizer.json again"))?;
    // A file may carry the truncation and padding of whoever saved it; both would falsify ids.
    inner
        .with_truncation(None)
        .map_err(|problem| error(first(&problem.to_string()), "fetch tokenizer.json again"))?;
    inner.with_padding(None);
    let inner = Arc::new(inner);
    if open.len() >= OPEN_MAX {
        open.pop_front();
    }
    open.push_back((sum, Arc::clone(&inner)));
    Ok(inner)
}

fn first(message: &str) -> String {
    crate::errors::first_line(message)
}

/// A JSON object of the folder, or nothing where the file is not there.
fn optional_json(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    if !path.is_file() {
        return Ok(None);
    }
    let error = |problem: String| TextError::Tokenizer {
        path: path.to_owned(),
        problem,
        mend: "fetch the file again, or remove it",
    };
    let text = std::fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(error("it is no JSON object".to_owned())),
        Err(problem) => Err(error(format!("it is no JSON ({problem})"))),
    }
}

fn special_tokens(settings: &Map<String, Value>, older: &Map<String, Value>) -> Map<String, Value> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let mut special = Map::new();
    for name in SPECIAL_NAMES {
        let found = settings.get(name).or_else(|| older.get(name)).and_then(text);
        special.extend(found.map(|token| (name.to_owned(), Value::String(token))));
    }
    special
}

/// The template's source: its own file first, as transformers prefers it.
fn template_source(dir: &Path, settings: &Map<String, Value>) -> Result<Option<String>, TextError> {
    let path = dir.join("chat_template.jinja");
    if path.is_file() {
        return std::fs::read_to_string(&path).map(Some).map_err(|source| TextError::Tokenizer {
            path,
            problem: source.to_string(),
            mend: "check that the file is readable UTF-8",
        });
    }
    Ok(match settings.get("chat_template") {
        Some(Value::String(source)) => Some(source.clone()),
        // Several named ones: the default is the one for plain conversations.
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str().map(str::to_owned)),
        _ => None,
    })
}

fn suggested_sampling(generation: &Map<String, Value>) -> Vec<String> {
    SAMPLING_KEYS
        .iter()
        .filter_map(|key| {
            let value = generation.get(*key).filter(|value| !value.is_null())?;
            Some(format!("{key} = {value}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_files_share_one_tokenizer_and_with_it_its_caches() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
        let one = golden.join("tiny-tied/tokenizer.json");
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("tokenizer.json");
        std::fs::copy(&one, &copy).unwrap();
        let first = open_inner(&one).unwrap();
        assert!(Arc::ptr_eq(&first, &open_inner(&copy).unwrap()));
        let other = open_inner(&golden.join("tiny-untied/tokenizer.json")).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
    }
}
