//! Builds tokenizer.json and its neighbours from GGUF's tokenizer keys.
//!
//! In: tokens, their types, merges, special ids, chat template. Out: JSON values. Only byte-level
//! BPE is known here. GGUF names the way of splitting text (`tokenizer.ggml.pre`) instead of
//! carrying it: `smollm` means each digit alone, then GPT-2's byte-level split.

use serde_json::{Value as Json, json};

use super::GgufError;
use super::reader::{Gguf, Value};

/// GGUF's type of a token that is never met in text: `<|im_start|>` and its like.
const CONTROL: u64 = 3;

/// The tokenizer files of a folder.
pub struct TokenizerFiles {
    pub tokenizer: Json,
    pub config: Json,
    pub chat_template: String,
    pub bos: Option<usize>,
    pub eos: usize,
    pub pad: Option<usize>,
}

/// Builds them.
///
/// # Errors
/// A key is missing, or the tokenizer is of another kind.
pub fn build(gguf: &Gguf, context: usize) -> Result<TokenizerFiles, GgufError> {
    let kind = (gguf.text("tokenizer.ggml.model")?, gguf.text("tokenizer.ggml.pre")?);
    if kind != ("gpt2", "smollm") {
        return Err(GgufError::Unsupported {
            what: format!("a tokenizer of the kind {}/{}", kind.0, kind.1),
        });
    }
    let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
    let added = added_tokens(gguf, &tokens)?;
    let merges = texts(gguf, "tokenizer.ggml.merges")?
        .iter()
        .map(|merge| merge.split_once(' ').map(|(left, right)| json!([left, right])))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| GgufError::Key { key: "tokenizer.ggml.merges".to_owned() })?;
    let vocabulary: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let byte_level = |add_prefix_space: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space,
               "trim_offsets": true, "use_regex": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level(false)]},
        "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges},
    });
    let id = |name: &str| gguf.unsigned(&format!("tokenizer.ggml.{name}_token_id")).ok();
    let text = |id: Option<usize>| id.and_then(|id| tokens.get(id)).map(|token| json!(token));
    let (bos, pad) = (id("bos"), id("padding"));
    let eos = gguf.unsigned("tokenizer.ggml.eos_token_id")?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context,
        "clean_up_tokenization_spaces": false,
        "bos_token": text(bos), "eos_token": text(Some(eos)),
        "pad_token": text(pad), "unk_token": text(id("unknown")),
    });
    let chat_template = gguf.text("tokenizer.chat_template")?.to_owned();
    Ok(TokenizerFiles { tokenizer, config, chat_template, bos, eos, pad })
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>, GgufError> {
    let text = |value: &'a Value| match value {
        Value::Text(text) => Some(text.as_str()),
        _ => None,
    };
    let items = gguf.list(key)?.iter().map(text).collect::<Option<Vec<_>>>();
    items.ok_or_else(|| GgufError::Key { key: key.to_owned() })
}

fn added_tokens(gguf: &Gguf, tokens: &[&str]) -> Result<Vec<Json>, GgufError> {
    let types = gguf.list("tokenizer.ggml.token_type")?;
    let control = |kind: &Value| {
        matches!(kind, Value::Signed(n) if u64::try_from(*n) == Ok(CONTROL))
            || *kind == Value::Unsigned(CONTROL)
    };
    let special = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| control(kind));
    Ok(special
        .map(|(id, (token, _))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect())
}
