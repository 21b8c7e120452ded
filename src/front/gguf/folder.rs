//! Writes the Hugging Face folder: aside on the same file system, synced, then renamed.
//!
//! In: the path of a GGUF file and of the folder to make. Out: the folder, or nothing of it.
//! Weights are written in f32: the decoded values need more digits than bf16 has, so a narrower
//! type would round the model a second time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::GgufError;
use super::reader::Gguf;
use super::tensors::{Place, Sizes, load};
use super::tokenizer::{TokenizerFiles, build};

/// Bytes of an f32.
const ELEMENT: usize = 4;

/// Converts `source` into the folder `out`; `progress` hears of each tensor (done, of all).
///
/// # Errors
/// See [`GgufError`]. Nothing is left at `out` then.
pub fn convert(
    source: &Path,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), GgufError> {
    if out.symlink_metadata().is_ok() {
        return Err(GgufError::Exists { path: out.to_path_buf() });
    }
    let gguf = Gguf::open(source)?;
    let architecture = gguf.text("general.architecture")?;
    if architecture != "llama" {
        return Err(GgufError::Unsupported { what: format!("the architecture {architecture}") });
    }
    let aside = aside_of(out);
    // What a killed run left is worth nothing: it is made anew.
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(GgufError::io(&aside, "clearing"))?;
    }
    std::fs::create_dir_all(&aside).map_err(GgufError::io(&aside, "making"))?;
    let written = write_all(&gguf, &aside, progress);
    if let Err(error) = written {
        // The first error is the one to tell; a folder that stays is cleared by the next run.
        let _left = std::fs::remove_dir_all(&aside);
        return Err(error);
    }
    std::fs::rename(&aside, out).map_err(GgufError::io(out, "renaming the finished folder"))?;
    sync(out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn aside_of(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    out.with_file_name(name)
}

fn write_all(
    gguf: &Gguf,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), GgufError> {
    let sizes = Sizes::of(gguf)?;
    let places = sizes.places(gguf);
    let context = gguf.unsigned("llama.context_length")?;
    let tokenizer = build(gguf, context)?;
    write_weights(gguf, &places, &folder.join("model.safetensors"), progress)?;
    let config = model_config(gguf, &sizes, &tokenizer, context)?;
    let generation = json!({"_from_model_config": true, "bos_token_id": tokenizer.bos,
                            "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad});
    write_json(&folder.join("config.json"), &config)?;
    write_json(&folder.join("generation_config.json"), &generation)?;
    write_json(&folder.join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer.config)?;
    write_bytes(&folder.join("chat_template.jinja"), tokenizer.chat_template.as_bytes())?;
    sync(folder)
}

fn model_config(
    gguf: &Gguf,
    sizes: &Sizes,
    tokenizer: &TokenizerFiles,
    context: usize,
) -> Result<Json, GgufError> {
    Ok(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": sizes.width, "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocabulary, "max_position_embeddings": context,
        "rms_norm_eps": shortest(gguf.float("llama.attention.layer_norm_rms_epsilon")?),
        "rope_theta": shortest(gguf.float("llama.rope.freq_base")?), "rope_scaling": null,
        "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "attention_dropout": 0.0, "initializer_range": 0.02, "pretraining_tp": 1,
        "tie_word_embeddings": !gguf.has_tensor("output.weight"), "use_cache": true,
        "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad, "torch_dtype": "float32",
    }))
}

/// The number that was meant: GGUF keeps 1e-5 as the nearest f32.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// safetensors: the header's length (u64), the header, then the data without gaps.
fn write_weights(
    gguf: &Gguf,
    places: &[Place],
    path: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), GgufError> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for place in places {
        let end = offset + place.shape.iter().product::<usize>() * ELEMENT;
        let entry = json!({"dtype": "F32", "shape": place.shape, "data_offsets": [offset, end]});
        header.insert(place.name.clone(), entry);
        offset = end;
    }
    let mut header = Json::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let failed = || GgufError::io(path, "writing");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed())?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed())?;
    file.write_all(&header).map_err(failed())?;
    for (done, place) in places.iter().enumerate() {
        progress(done, places.len());
        for value in load(gguf, place)? {
            file.write_all(&value.to_le_bytes()).map_err(failed())?;
        }
    }
    progress(places.len(), places.len());
    let file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())
}

fn write_json(path: &Path, value: &Json) -> Result<(), GgufError> {
    write_bytes(path, format!("{value:#}\n").as_bytes())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), GgufError> {
    let mut file = File::create(path).map_err(GgufError::io(path, "creating"))?;
    file.write_all(bytes).map_err(GgufError::io(path, "writing"))?;
    file.sync_all().map_err(GgufError::io(path, "syncing"))
}

fn sync(folder: &Path) -> Result<(), GgufError> {
    let file = File::open(folder).map_err(GgufError::io(folder, "opening"))?;
    file.sync_all().map_err(GgufError::io(folder, "syncing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_as_they_were_meant() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(100_000.0), 100_000.0);
    }
}
