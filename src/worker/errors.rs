//! What can go wrong in a worker, as types: each error says what was wrong, where, and how to mend it.
//!
//! In: nothing. Out: [`ModelError`] (a model folder), [`TextError`] (tokenizer, template, rendering),
//! [`InputError`] (a line of a data file), [`DeviceError`] and, around them, [`WorkerError`].
//! May not enter: tensors, files, decisions about retrying (the control plane decides those).

use std::path::PathBuf;

use thiserror::Error;

use crate::train::TrainError;

/// A model folder that cannot be used.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file of the folder is not there.
    #[error("{what} is missing\nat: {path}\ntry: {mend}")]
    Missing {
        /// The file, in words.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do about it.
        mend: &'static str,
    },
    /// A file is there but the system would not give it.
    #[error("{path} cannot be read\ntry: check that it is a file that this user may read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Weights in a format that runs code when it is opened.
    #[error(
        "the weights are a pickle, which can run any code when it is opened, so it is refused\n\
         at: {path}\n\
         try: convert once with transformers: \
         AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
    )]
    Pickle {
        /// The pickle file.
        path: PathBuf,
    },
    /// config.json says something that this worker cannot compute.
    #[error("config.json: {problem}\nat: {path}\ntry: {mend}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What it says, and why that does not work.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// A safetensors file whose contents contradict themselves.
    #[error("{problem}\nat: {path}\ntry: fetch or copy the file again; it is cut short or damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The weights and config.json describe different models.
    #[error(
        "tensor {name}: {problem}\nat: {dir}\n\
         try: use the config.json that was saved together with these weights"
    )]
    Tensor {
        /// The tensor's Hugging Face name.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// The model folder.
        dir: PathBuf,
    },
    /// One kind of model where another is wanted.
    #[error("{dir} holds {found}, but {wanted} is wanted here\ntry: {mend}")]
    WrongKind {
        /// The model folder.
        dir: PathBuf,
        /// What the folder holds.
        found: &'static str,
        /// What the caller needs.
        wanted: &'static str,
        /// What to do about it.
        mend: &'static str,
    },
    /// A preference.json that cannot be used.
    #[error(
        "the preference model cannot be used: {problem}\nat: {path}\n\
         try: a folder that `train preference` made, with the tokenizer that lies in it"
    )]
    Preference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A PEFT adapter that cannot be used, or not with this base.
    #[error("the adapter cannot be used: {problem}\nat: {path}\ntry: {mend}")]
    Adapter {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// libtorch refused an operation while the model was loaded.
    #[error("libtorch failed while loading {dir}: {first_line}")]
    Torch {
        /// The model folder.
        dir: PathBuf,
        /// The first line of libtorch's message; the rest is a dispatch table.
        first_line: String,
    },
}

/// A tokenizer, a chat template, or a conversation that cannot be rendered.
#[derive(Debug, Error)]
pub enum TextError {
    /// The tokenizer's files are missing or cannot be parsed.
    #[error("the tokenizer cannot be opened: {problem}\nat: {path}\ntry: {mend}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// The tokenizer can produce ids that the model has no embedding for.
    #[error(
        "the tokenizer does not fit the model: it has {tokens} tokens up to id {id_max}, \
         the model has rows for {vocabulary}\nat: {dir}\n\
         try: put the tokenizer.json that was saved with these weights into the folder"
    )]
    Misfit {
        /// The model folder.
        dir: PathBuf,
        /// Tokens in the tokenizer.
        tokens: usize,
        /// Its largest id.
        id_max: u32,
        /// Rows of the model's embedding.
        vocabulary: usize,
    },
    /// No chat template where one is needed.
    #[error(
        "there is no chat template\nat: {dir}\n\
         try: add chat_template.jinja, or a chat_template in tokenizer_config.json"
    )]
    NoTemplate {
        /// The model folder.
        dir: PathBuf,
    },
    /// The chat template failed on a conversation.
    #[error("the chat template fails: {problem}\nat: {dir}\ntry: {mend}")]
    Template {
        /// The model folder.
        dir: PathBuf,
        /// minijinja's message, first line.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// The prompt's rendering is not the beginning of the whole conversation's rendering.
    #[error(
        "the prompt's tokens change when the answer is added: at token {index} the prompt alone \
         has {prompt_token:?}, with the answer it is {whole_token:?}\n\
         try: `--render generation`, which takes the prompt's rendering, the answer and a stop id"
    )]
    PromptChanges {
        /// The first token that differs.
        index: usize,
        /// Its text in the prompt's rendering.
        prompt_token: String,
        /// Its text in the whole conversation's rendering.
        whole_token: String,
    },
    /// A conversation rendered up to a turn is not the beginning of the whole one's rendering.
    #[error(
        "the tokens of message {message} cannot be told from the others: at token {index} the \
         conversation up to it has {part_token:?}, the whole one {whole_token:?}\n\
         try: a template that marks the assistant's text by {{% generation %}}, or that renders a \
         turn the same whatever follows it"
    )]
    TurnChanges {
        /// The assistant's message, counted from 1.
        message: usize,
        /// The first token that differs.
        index: usize,
        /// Its text in the shorter rendering.
        part_token: String,
        /// Its text in the whole conversation's rendering.
        whole_token: String,
    },
    /// Chosen and rejected do not answer the same prompt.
    #[error(
        "chosen and rejected have different prompts: {difference}\n\
         try: pair only answers to the same conversation"
    )]
    PromptsDiffer {
        /// Where they part.
        difference: String,
    },
    /// An answer that the template does not write down.
    #[error("a response has no tokens\ntry: give an answer that the template writes down")]
    EmptyResponse,
    /// A rendering that cannot be used for a response or a score.
    #[error("{problem}\ntry: {mend}")]
    Unusable {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
}

/// A data file, or one line of it, that cannot be used.
#[derive(Debug, Error)]
pub enum InputError {
    /// One line is not what it should be.
    #[error("{path}, line {line}: {problem}\ntry: {mend}")]
    Line {
        /// The data file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },
    /// The file has no lines to work on.
    #[error("{path} is empty\ntry: put at least one JSON object into it, one to a line")]
    Empty {
        /// The data file.
        path: PathBuf,
    },
    /// The file cannot be read, or the output cannot be written.
    #[error("{path} cannot be {action}\ntry: {mend}")]
    File {
        /// The file.
        path: PathBuf,
        /// "read", "written", …
        action: &'static str,
        /// What to do about it.
        mend: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// An option or setting out of its range.
    #[error("{name} is {value}, but {rule}\ntry: {mend}")]
    Setting {
        /// The option or key.
        name: String,
        /// What was given.
        value: String,
        /// What it must be.
        rule: String,
        /// What to do about it.
        mend: String,
    },
}

/// A device that is asked for but cannot be used.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Not a device's name.
    #[error("{name:?} is no device\ntry: --device auto, cpu, or cuda:0")]
    Name {
        /// What was given.
        name: String,
    },
    /// bf16 where the CPU has no instructions for it.
    #[error(
        "this CPU has neither AMX nor AVX512-BF16, so bf16 would be slower than f32\n\
         try: --precision f32"
    )]
    Precision,
    /// CUDA is asked for and cannot be had.
    #[error("{name} cannot be used: {problem}\ntry: {mend}")]
    Cuda {
        /// The device's name.
        name: String,
        /// Why not.
        problem: String,
        /// What to do about it.
        mend: &'static str,
    },
}

/// Anything that ends a worker's unit or command.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The model folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer, template, rendering.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Data files and settings.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// libtorch failed in the middle of the work.
    #[error("libtorch failed: {0}")]
    Torch(String),
    /// The device has no memory left for this work.
    #[error("out of memory: {0}\ntry: fewer sequences at a time, shorter ones, or a larger device")]
    OutOfMemory(String),
    /// The work was cancelled from outside.
    #[error("cancelled")]
    Cancelled,
    /// A training ended without a checkpoint.
    #[error(transparent)]
    Train(Box<TrainError>),
}

impl From<TrainError> for WorkerError {
    /// Errors of the rooms below come out as themselves.
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Model(error) => Self::Model(error),
            TrainError::Text(error) => Self::Text(error),
            TrainError::Input(error) => Self::Input(error),
            TrainError::Worker(error) => error,
            other => Self::Train(Box::new(other)),
        }
    }
}

/// An error's text and, beneath it, what caused it.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let told = source.to_string();
        // A transparent error is its own cause's text.
        if !text.ends_with(&told) {
            text.push_str("\nbecause: ");
            text.push_str(&told);
        }
        cause = source.source();
    }
    text
}

/// The first line of a libtorch message; what follows is a dispatch table and a C++ stack.
#[must_use]
pub fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or("no message").trim().to_owned()
}

/// Whether a libtorch message means that memory ran out, on the device or on the host.
#[must_use]
pub fn is_out_of_memory(message: &str) -> bool {
    let lower = message.to_lowercase();
    ["out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"]
        .iter()
        .any(|sign| lower.contains(sign))
}

impl From<tch::TchError> for WorkerError {
    fn from(error: tch::TchError) -> Self {
        let message = error.to_string();
        if is_out_of_memory(&message) {
            Self::OutOfMemory(first_line(&message))
        } else {
            Self::Torch(first_line(&message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_messages_of_both_allocators_are_told_apart_from_others() {
        assert!(is_out_of_memory("CUDA out of memory. Tried to allocate 20.00 GiB"));
        assert!(is_out_of_memory(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ));
        assert!(!is_out_of_memory("mat1 and mat2 shapes cannot be multiplied"));
    }

    #[test]
    fn only_the_first_line_of_a_torch_message_is_kept() {
        assert_eq!(
            first_line("shape is wrong\nException raised from …\nframe #0"),
            "shape is wrong"
        );
        assert_eq!(first_line(""), "no message");
    }
}
