//! Examples of training jobs: conversations and preferences, from a client or from files that the
//! configuration names.
//!
//! In: lines. Out: the same lines, checked, in one canonical form, in the upload's own file in the state
//! folder, without those whose prompt is kept for evaluation. May not enter: a path that a client named.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use rlhfd_config::{CheckedConfig, JobConfig, JobData, ScorerKind};
use rlhfd_domain::prompt::{self, Turn};
use rlhfd_domain::{JobKind, UploadId};
use rlhfd_protocol::control::lines::{self, Message};
use rlhfd_protocol::control::reward_lines::{self, RewardLine};
use rlhfd_store::{ExamplePrompts, UploadKind};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

use crate::handles::StoreHandle;
use crate::listener::intake::{Report, Sink};
use crate::listener::{Cutter, Pieces, Refusal};
use crate::places::Places;

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Examples that are held against the evaluation prompts at once, and their bytes.
const BATCH_EXAMPLES: usize = 500;
const BATCH_BYTES: usize = 4 << 20;

/// What a job of this kind is trained on.
#[must_use]
pub fn data_of(kind: JobKind) -> UploadKind {
    match kind {
        JobKind::Sft => UploadKind::Conversations,
        JobKind::Reward | JobKind::Preference => UploadKind::Preferences,
    }
}

/// A checked example.
pub struct Example {
    /// Its canonical form, with the line's end.
    pub line: Vec<u8>,
    /// What it teaches to answer.
    pub prompts: ExamplePrompts,
    /// How often it is taken.
    pub weight: f64,
}

/// Reads a line of such data.
#[must_use]
pub fn example_of(kind: JobKind) -> fn(&[u8]) -> Result<Example, String> {
    match kind {
        JobKind::Sft => |line| {
            let conversation = lines::conversation_line(line)?;
            example(&conversation, answered(&conversation.messages), lines::weight(line)?)
        },
        JobKind::Reward => |line| {
            let weight = lines::weight(line)?;
            let line = reward_lines::reward_line(line)?;
            let prompt = match &line {
                RewardLine::Pair(pair) => asked(&pair.preference.chosen),
                RewardLine::Group(group) => group.prompt.as_slice(),
            };
            example(&line, vec![prompt], weight)
        },
        JobKind::Preference => |line| {
            let preference = lines::preference_line(line)?;
            example(&preference, vec![asked(&preference.chosen)], lines::weight(line)?)
        },
    }
}

fn example(
    example: &impl Serialize,
    prompts: Vec<&[Message]>,
    weight: f64,
) -> Result<Example, String> {
    let mut line = serde_json::to_vec(example).map_err(|error| error.to_string())?;
    line.push(b'\n');
    let turn = |m: &Message| Turn { role: m.role.clone(), content: m.content.clone() };
    let turns = |prompt: &[Message]| prompt.iter().map(turn).collect::<Vec<_>>();
    let prompts = prompts.into_iter().map(|prompt| prompt::folded(&turns(prompt))).collect();
    Ok(Example { line, prompts, weight })
}

/// The line of a canonical example with its weight, where that is not 1.
fn weighted(line: &[u8], weight: f64) -> Cow<'_, [u8]> {
    match line.strip_prefix(b"{") {
        Some(rest) if weight.to_bits() != 1_f64.to_bits() => {
            [format!("{{\"weight\":{weight:?},").as_bytes(), rest].concat().into()
        }
        _ => line.into(),
    }
}

/// All before the last message, which answers it.
fn asked(conversation: &[Message]) -> &[Message] {
    conversation.split_last().map_or(conversation, |(_, prompt)| prompt)
}

/// What each of the assistant's turns answers.
fn answered(messages: &[Message]) -> Vec<&[Message]> {
    let turns = messages.iter().enumerate();
    turns.filter(|(_, m)| m.role == "assistant").map(|(i, _)| &messages[..i]).collect()
}

/// The kind of job that trains what such a scorer asks.
#[must_use]
pub fn trains(kind: ScorerKind) -> JobKind {
    match kind {
        ScorerKind::Reward => JobKind::Reward,
        ScorerKind::Preference => JobKind::Preference,
    }
}

/// The section of the jobs of this kind; its name is the kind's label.
#[must_use]
pub fn section(config: &CheckedConfig, kind: JobKind) -> &JobConfig {
    match kind {
        JobKind::Sft => &config.sft,
        JobKind::Reward => &config.reward,
        JobKind::Preference => &config.preference,
    }
}

/// Data that the configuration names for a training job.
pub struct Named<'a> {
    /// What the job makes.
    pub kind: JobKind,
    /// The files and the job's name.
    pub data: &'a JobData,
    /// What else shapes the job.
    pub settings: String,
}

/// All data that the configuration names, in the order of the workflow.
pub fn named(config: &CheckedConfig) -> impl Iterator<Item = Named<'_>> {
    let named = |kind| {
        let job = section(config, kind);
        let base = job.base.as_ref().map_or("", |place| place.given.as_str());
        let settings = format!("{base}\n{}", job.settings_toml());
        (!job.data.files.is_empty()).then_some(Named { kind, data: &job.data, settings })
    };
    JobKind::ALL.into_iter().filter_map(named)
}

/// Looks at a whole file as an upload of it would. It blocks.
///
/// Errors: it cannot be read.
pub fn examine(kind: JobKind, path: &Path) -> io::Result<Report> {
    let (mut file, mut cutter) = (fs::File::open(path)?, Cutter::default());
    let (mut report, mut piece) = (Report::default(), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => cutter.end(),
            read => cutter.feed(&piece[..read]),
        }
        while let Some(line) = cutter.next_line() {
            report.look(&line, example_of(kind));
        }
        if cutter.has_ended() {
            return Ok(report);
        }
    }
}

/// A file in pieces, as a body comes.
pub struct FilePieces {
    path: PathBuf,
    file: File,
}

impl FilePieces {
    /// From its beginning.
    ///
    /// Errors: 404 where it cannot be opened.
    pub async fn open(path: &Path) -> Result<Self, Refusal> {
        match File::open(path).await {
            Ok(file) => Ok(Self { path: path.to_path_buf(), file }),
            Err(error) => Err(unread(404, path, &error)),
        }
    }
}

fn unread(status: u16, path: &Path, error: &io::Error) -> Refusal {
    let place = path.display().to_string();
    Refusal::new(status, format!("it cannot be read ({error})"), place, "put the file there")
}

impl Pieces for FilePieces {
    async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match self.file.read_buf(&mut piece).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(piece.freeze())),
            Err(error) => Err(unread(500, &self.path, &error)),
        }
    }
}

/// The upload's file. It goes away with this value unless it is kept.
pub struct Examples {
    store: StoreHandle,
    upload: UploadId,
    path: PathBuf,
    file: BufWriter<File>,
    /// Not yet held against the evaluation prompts.
    batch: Vec<Example>,
    batch_bytes: usize,
    /// Of the file that examples come from now.
    weight: f64,
    examples: u64,
    kept: bool,
}

impl Examples {
    /// An empty one.
    ///
    /// Errors: 507 where it cannot be made.
    pub async fn create(
        store: &StoreHandle,
        places: &Places,
        upload: UploadId,
    ) -> Result<Self, Refusal> {
        let path = places.upload_file(upload.get());
        // What stands there is a leftover or a link, and neither is written to.
        let _ = fs::remove_file(&path);
        let file = File::create_new(&path).await.map_err(|error| unwritten(&error))?;
        let (file, store) = (BufWriter::new(file), store.clone());
        let (batch, batch_bytes, examples, kept) = (Vec::new(), 0, 0, false);
        Ok(Self { store, upload, path, file, batch, batch_bytes, weight: 1.0, examples, kept })
    }

    /// From here on examples come from a file of this weight.
    pub fn weigh(&mut self, weight: f64) {
        self.weight = weight;
    }

    /// Writes what may be trained on.
    async fn flush(&mut self) -> Result<(), Refusal> {
        let (batch, upload) = (std::mem::take(&mut self.batch), self.upload);
        self.batch_bytes = 0;
        let prompts: Vec<_> = batch.iter().map(|example| example.prompts.clone()).collect();
        let sift = self.store.write(move |store| store.sift_examples(upload, &prompts)).await;
        let stay = sift.map_err(|error| Refusal::ask("the upload", &error))?;
        for (example, _) in batch.iter().zip(stay).filter(|(_, stays)| *stays) {
            let line = weighted(&example.line, example.weight);
            self.file.write_all(&line).await.map_err(|e| unwritten(&e))?;
            self.examples += 1;
        }
        Ok(())
    }

    /// Examples in it.
    ///
    /// Errors: 422 where there is none that may be trained on.
    pub fn count(&self) -> Result<u64, Refusal> {
        if self.examples > 0 {
            return Ok(self.examples);
        }
        let what = "every example has a prompt that is kept for evaluation";
        let mend = "train on other data, or reserve other prompts";
        Err(Refusal::new(422, what, "the lines of the upload", mend))
    }

    /// Lets it stay.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Examples {
    fn drop(&mut self) {
        if !self.kept {
            // A leftover is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Sink for Examples {
    type Item = Example;

    async fn take(&mut self, mut example: Example) -> Result<(), Refusal> {
        example.weight = (example.weight * self.weight).min(lines::WEIGHT_MAX);
        self.batch_bytes += example.line.len();
        self.batch.push(example);
        if self.batch.len() >= BATCH_EXAMPLES || self.batch_bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Refusal> {
        self.flush().await?;
        self.file.flush().await.map_err(|e| unwritten(&e))?;
        self.file.get_ref().sync_all().await.map_err(|e| unwritten(&e))?;
        // Its name lasts as well before anyone is told that it was taken.
        let Some(folder) = self.path.parent() else { return Ok(()) };
        let folder = File::open(folder).await.map_err(|e| unwritten(&e))?;
        folder.sync_all().await.map_err(|e| unwritten(&e))
    }
}

fn unwritten(error: &io::Error) -> Refusal {
    Refusal::new(
        507,
        format!("the examples could not be written ({error})"),
        "the state folder",
        "make room, or look at the disk; then send them again",
    )
}
