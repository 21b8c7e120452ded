//! The engine: one configurable decoder over libtorch, loaded from a Hugging Face folder.
//!
//! In: a model folder. Out: hidden states, logits and scores of token ids. Reading order: `config`,
//! `keys` and `families` say what a model is, `folder` and `safetensors` find its tensors, `rotary`,
//! `layers`, `attention`, `block`, `parts` and `transformer` compute, `kv_cache` remembers, `reward_head`
//! scores, `placement` says on which device each part lies,
//! `adapter`, `adapter_folder` and `dropout` are LoRA's, `kind` and `labels` say what a folder is for. May not enter: text, sampling, losses, the protocol.

pub mod adapter;
pub mod adapter_folder;
pub mod attention;
pub mod block;
pub mod config;
pub mod dropout;
pub mod families;
pub mod folder;
pub mod joined;
pub mod keys;
pub mod kind;
pub mod kv_cache;
pub mod labels;
pub mod layers;
mod parts;
pub mod placement;
pub mod reward_head;
pub mod rotary;
pub mod safetensors;
pub mod transformer;

pub use adapter::{AdapterShape, Adapters, Dropout};
pub use adapter_folder::AdapterFolder;
pub use block::Block;
pub use config::{Head, ModelConfig};
pub use folder::ModelFolder;
pub use kind::ModelKind;
pub use kv_cache::KvCache;
pub use placement::{Devices, Placement};
pub use transformer::{LoadOptions, Precision, Trainable, Transformer};
