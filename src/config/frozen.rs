//! The frozen configuration: the canonical text that an iteration's row keeps, and its way back.
//!
//! In: a checked configuration. Out: text with every knob that shapes what an iteration computes,
//! defaults written out, so that a later version's defaults cannot change a running iteration.
//! Equal settings give equal text, byte for byte. Paths stand as the user gave them; the machine's
//! sections (`[control]` to `[worker]`) are not part of it.

use std::path::{Path, PathBuf};

use crate::checked::CheckedConfig;
use crate::problem::{ConfigError, Problems};
use crate::sections::Rows;
use crate::values::Value;

impl CheckedConfig {
    /// The canonical text; its sum is the iteration's `config_sha256`.
    #[must_use]
    pub fn to_frozen_toml(&self) -> String {
        let mut text = String::new();
        table(&mut text, "[run]", &self.run.values());
        table(&mut text, "[prompts]", &self.prompts.values());
        table(&mut text, "[generate]", &self.generate.values());
        for arm in &self.generate.arms {
            table(&mut text, "[[generate.arms]]", &arm.values());
        }
        table(&mut text, "[label]", &self.label.values());
        for scorer in &self.label.scorers {
            table(&mut text, "[[label.scorers]]", &scorer.values());
        }
        table(&mut text, "[pair]", &self.pair.values());
        table(&mut text, "[train]", &self.train.values());
        table(&mut text, "[evaluate]", &self.evaluate.values());
        table(&mut text, "[gate]", &self.gate.values());
        table(&mut text, "[sft]", &self.sft.values());
        table(&mut text, "[reward]", &self.reward.values());
        table(&mut text, "[preference]", &self.preference.values());
        text
    }

    /// The machine's part as canonical text; no iteration keeps it.
    #[must_use]
    pub fn to_machine_toml(&self) -> String {
        let mut text = String::new();
        table(&mut text, "[control]", &self.control.values());
        table(&mut text, "[store]", &self.store.values());
        table(&mut text, "[devices]", &self.devices.values());
        table(&mut text, "[scheduler]", &self.scheduler.values());
        table(&mut text, "[worker]", &self.worker.values());
        text
    }

    /// This configuration with the iteration's part taken from a frozen text: the machine's part
    /// (devices, timeouts, worker) stays that of today.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`] where the text is not one that this version can read.
    pub fn with_frozen(&self, text: &str) -> Result<Self, ConfigError> {
        let name = PathBuf::from("(frozen with the iteration)");
        let frozen = Self::read(text, &self.base_dir)
            .map_err(|problems: Problems| ConfigError::Wrong { path: name, problems })?;
        let today = self.clone();
        Ok(Self {
            control: today.control,
            store: today.store,
            devices: today.devices,
            scheduler: today.scheduler,
            worker: today.worker,
            ..frozen
        })
    }
}

fn table(text: &mut String, head: &str, rows: &Rows) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(head);
    text.push('\n');
    for (key, value) in rows {
        if let Some(value) = value {
            text.push_str(&line(key, value));
        }
    }
}

/// `key = value` and a line's end.
pub(crate) fn line(key: &str, value: &Value) -> String {
    format!("{key} = {}\n", literal(value))
}

fn literal(value: &Value) -> String {
    match value {
        Value::Count(count) => count.to_string(),
        // Rust's shortest form that reads back as the same number; valid TOML for finite numbers.
        Value::Number(number) => format!("{number:?}"),
        Value::Switch(on) => on.to_string(),
        Value::Text(text) => quoted(text),
        Value::Numbers(numbers) => {
            let items: Vec<String> = numbers.iter().map(|number| format!("{number:?}")).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Texts(texts) => {
            let items: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Files(files) => {
            let item = |(path, weight): &(String, f64)| {
                if weight.to_bits() == 1_f64.to_bits() {
                    return quoted(path);
                }
                format!("{{ file = {}, weight = {weight:?} }}", quoted(path))
            };
            let items: Vec<String> = files.iter().map(item).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// A TOML basic string. Control characters never get here: no knob takes them.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The folder that relative paths are meant from, for a configuration file.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}
