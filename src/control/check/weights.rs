//! Weights files by their headers: what tensors a model folder holds, without reading a weight.
//!
//! In: a model folder. Out: [`Weights`], or what is wrong with the files. A header says where each
//! tensor lies; a file that is shorter or longer than its header says was cut or is still arriving.
//! May not enter: libtorch, tensor values.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

/// The format's own ceiling.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// What the headers say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Weights {
    /// Elements over all tensors.
    pub(crate) parameters: u64,
    /// The same by block, from the bottom; what belongs to none is left out.
    pub(crate) blocks: BTreeMap<u64, u64>,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Types that occur, as the header names them.
    pub(crate) types: BTreeSet<String>,
    /// Whether a score head is there.
    pub(crate) score_head: bool,
}

/// Reads the headers of all weights files of a folder.
///
/// Errors: one sentence for each thing that is wrong.
pub(crate) fn read(folder: &Path) -> Result<Weights, Vec<String>> {
    let index = folder.join("model.safetensors.index.json");
    let names = if index.is_file() {
        shard_names(&index).map_err(|problem| vec![problem])?
    } else {
        BTreeSet::from(["model.safetensors".to_owned()])
    };
    if !folder.join("model.safetensors").exists() && !index.is_file() {
        return Err(vec![no_weights(folder)]);
    }
    let mut weights = Weights::default();
    let mut problems = Vec::new();
    for name in names {
        if let Err(problem) = one_file(&folder.join(&name), &mut weights) {
            problems.push(format!("{name} {problem}"));
        }
    }
    if problems.is_empty() { Ok(weights) } else { Err(problems) }
}

fn no_weights(folder: &Path) -> String {
    let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if pickle.iter().any(|name| folder.join(name).exists()) {
        "it has pickle weights, which may run code and are not read: convert them with \
         transformers' save_pretrained, which writes safetensors"
            .to_owned()
    } else {
        "it has no model.safetensors and no model.safetensors.index.json: fetch the model whole"
            .to_owned()
    }
}

/// The files that an index names.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, String> {
    let unreadable = |what: String| format!("model.safetensors.index.json {what}");
    let mut text = String::new();
    File::open(index)
        .and_then(|file| file.take(INDEX_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| unreadable(format!("is no JSON ({error}): fetch it again")))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| unreadable("has no weight_map: fetch it again".to_owned()))?;
    let mut names = BTreeSet::new();
    for name in map.values() {
        // Only plain names: an index may not lead out of its folder.
        let name = name.as_str().filter(|name| !name.is_empty() && !name.contains('/'));
        names.insert(name.ok_or_else(|| unreadable("names no plain files".to_owned()))?.to_owned());
    }
    Ok(names)
}

fn one_file(path: &Path, weights: &mut Weights) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let bytes = file.metadata().map_err(|error| format!("cannot be read: {error}"))?.len();
    let mut length = [0_u8; 8];
    file.read_exact(&mut length).map_err(|_| format!("has {bytes} bytes: fetch it again"))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || length + 8 > bytes {
        return Err("has no header of the safetensors format: fetch it again".to_owned());
    }
    let mut header = Vec::new();
    file.take(length)
        .read_to_end(&mut header)
        .map_err(|error| format!("cannot be read: {error}"))?;
    let header: Value = serde_json::from_slice(&header)
        .map_err(|_| "has a header that is no JSON: fetch it again".to_owned())?;
    let tensors = header.as_object().ok_or("has a header that is no object: fetch it again")?;
    let mut end = 0;
    for (name, tensor) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        let (elements, tensor_end) = tensor_facts(tensor)
            .ok_or_else(|| format!("describes the tensor {name} wrongly: fetch it again"))?;
        weights.parameters = weights.parameters.saturating_add(elements);
        if let Some(block) = block_of(name) {
            let own = weights.blocks.entry(block).or_default();
            *own = own.saturating_add(elements);
        }
        weights.types.extend(tensor.get("dtype").and_then(Value::as_str).map(str::to_owned));
        weights.score_head |= name == "score.weight";
        end = end.max(tensor_end);
    }
    let expected = end.saturating_add(length + 8);
    if expected != bytes {
        return Err(format!(
            "has {bytes} bytes, but its header tells of {expected}: fetch it again"
        ));
    }
    weights.bytes += bytes;
    Ok(())
}

/// The number of the block that a tensor belongs to.
fn block_of(name: &str) -> Option<u64> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Elements of a tensor, and where its bytes end.
fn tensor_facts(tensor: &Value) -> Option<(u64, u64)> {
    let shape = tensor.get("shape")?.as_array()?;
    let mut elements = 1_u64;
    for size in shape {
        elements = elements.checked_mul(size.as_u64()?)?;
    }
    let offsets = tensor.get("data_offsets")?.as_array()?;
    Some((elements, offsets.get(1)?.as_u64()?))
}
