//! For `make parity`: what the file mode does not print, the engine's rendering and its logits.
//!
//! In: a model folder and JSONL. Out: `tokens`: `{"text", "ids"}` for each line
//! `{"messages", "add_generation_prompt"}`; `logits`: for each line `{"ids"}` its logits, f32
//! little-endian, `[tokens, vocabulary]`, one line after the other in one file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rlhfd_protocol::worker::Message;
use rlhfd_worker::logprob::host_floats;
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::render::{Renderer, Turn};
use serde_json::{Value, json};
use tch::{Device, Tensor};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, model, data, out] = &arguments[..] else {
        bail!("usage: inspect tokens|logits MODEL DATA OUT");
    };
    let folder = ModelFolder::open(Path::new(model))?;
    let text = std::fs::read_to_string(data).with_context(|| format!("reading {data}"))?;
    let lines = text.lines().map(serde_json::from_str::<Value>);
    let mut out = BufWriter::new(File::create(out).with_context(|| format!("creating {out}"))?);
    match verb.as_str() {
        "tokens" => {
            let renderer = Renderer::open(&folder)?;
            for line in lines {
                writeln!(out, "{}", tokens(&renderer, line?)?)?;
            }
        }
        "logits" => {
            let options = LoadOptions {
                devices: Devices::one(Device::Cpu),
                precision: Precision::Float32,
                trainable: Trainable::Nothing,
            };
            let model = Transformer::load(&folder, &options)?;
            for line in lines {
                for logit in logits(&model, &line?)? {
                    out.write_all(&logit.to_le_bytes())?;
                }
            }
        }
        other => bail!("unknown verb {other}"),
    }
    out.flush()?;
    Ok(())
}

fn tokens(renderer: &Renderer, mut line: Value) -> Result<Value> {
    let messages: Vec<Message> = serde_json::from_value(line["messages"].take())?;
    let open = line["add_generation_prompt"].as_bool().context("add_generation_prompt")?;
    let text = renderer.text(&messages, if open { Turn::Opened } else { Turn::Closed })?;
    let ids = renderer.tokenizer.encode(&text)?;
    Ok(json!({"text": text, "ids": ids}))
}

fn logits(model: &Transformer, line: &Value) -> Result<Vec<f32>> {
    let _guard = tch::no_grad_guard();
    let ids: Vec<i64> = serde_json::from_value(line["ids"].clone())?;
    let ids = Tensor::from_slice(&ids).unsqueeze(0);
    Ok(host_floats(&model.logits(&model.hidden(&ids))))
}
