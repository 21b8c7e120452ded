//! From a GGUF file of the Llama architecture to a Hugging Face folder, without Python, libtorch or
//! a network: the demo's model comes in this form.
//!
//! In: one `.gguf` file (version 2 or 3). Out: config.json, model.safetensors (f32), tokenizer.json,
//! tokenizer_config.json, chat_template.jinja, generation_config.json, written aside and renamed.
//! May not enter: anything that computes with a model. Weights are only decoded and put in order.
//!
//! ```text
//! reader (bytes → keys and tensors) → quants (blocks → f32) → tensors (names, rows) ─┐
//!                                   → tokenizer (BPE, chat template) ────────────────┴→ folder
//! ```

mod folder;
mod quants;
mod reader;
mod tensors;
mod tokenizer;

use std::path::PathBuf;

pub use folder::convert;

/// Why a GGUF file could not be turned into a folder.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// A file or folder could not be read or written.
    #[error("{path}: {doing} failed; check the path and its permissions")]
    Io {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The bytes are not what the format asks for.
    #[error("{path}: not a usable GGUF file at byte {offset}: {what}; fetch it again")]
    Malformed { path: PathBuf, offset: usize, what: &'static str },
    /// A metadata key is missing or of another type.
    #[error("the GGUF file has no usable key {key}: it is not a complete Llama model")]
    Key { key: String },
    /// A tensor is missing, or of another shape than the model's sizes ask for.
    #[error("tensor {name} of the GGUF file {what}: it is not a complete Llama model")]
    Tensor { name: String, what: String },
    /// The file holds something that is not converted.
    #[error(
        "{what} is not converted: only Llama models in f32, f16, q4_0, q4_1 or q8_0 with a BPE tokenizer are"
    )]
    Unsupported { what: String },
    /// The target is in the way.
    #[error("{path} exists: remove it, or name another --out")]
    Exists { path: PathBuf },
}

impl GgufError {
    fn io(path: &std::path::Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, doing, source }
    }
}
