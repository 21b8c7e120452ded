//! Examples of training jobs: conversations and preferences, from a client or from files that the
//! configuration names.
//!
//! In: lines. Out: the same lines, checked, in one canonical form, in the upload's own file in the state
//! folder. May not enter: a path that a client named.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use rlhfd_config::{CheckedConfig, JobConfig, JobData};
use rlhfd_domain::JobKind;
use rlhfd_protocol::control::{lines, reward_lines};
use rlhfd_store::UploadKind;
use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

use crate::listener::intake::{Report, Sink};
use crate::listener::{Cutter, Pieces, Refusal};

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// What a job of this kind is trained on.
#[must_use]
pub fn data_of(kind: JobKind) -> UploadKind {
    match kind {
        JobKind::Sft => UploadKind::Conversations,
        JobKind::Reward | JobKind::Preference => UploadKind::Preferences,
    }
}

/// Reads a line of such data; gives its canonical form, with the line's end.
#[must_use]
pub fn example_of(kind: JobKind) -> fn(&[u8]) -> Result<Vec<u8>, String> {
    match kind {
        JobKind::Sft => |line| canonical(&lines::conversation_line(line)?),
        JobKind::Reward => |line| canonical(&reward_lines::reward_line(line)?),
        JobKind::Preference => |line| canonical(&lines::preference_line(line)?),
    }
}

fn canonical(example: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut json = serde_json::to_vec(example).map_err(|error| error.to_string())?;
    json.push(b'\n');
    Ok(json)
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
    path: PathBuf,
    file: BufWriter<File>,
    examples: u64,
    kept: bool,
}

impl Examples {
    /// An empty one.
    ///
    /// Errors: 507 where it cannot be made.
    pub async fn create(path: PathBuf) -> Result<Self, Refusal> {
        let file = File::create(&path).await.map_err(|error| unwritten(&error))?;
        Ok(Self { path, file: BufWriter::new(file), examples: 0, kept: false })
    }

    /// Examples in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.examples
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
    type Item = Vec<u8>;

    async fn take(&mut self, example: Vec<u8>) -> Result<(), Refusal> {
        self.file.write_all(&example).await.map_err(|e| unwritten(&e))?;
        self.examples += 1;
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Refusal> {
        self.file.flush().await.map_err(|e| unwritten(&e))?;
        self.file.get_ref().sync_all().await.map_err(|e| unwritten(&e))
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
