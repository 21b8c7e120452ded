//! Several files with weights as one upload: `--data FILE[:WEIGHT]`, more than once.
//!
//! In: files. Out: their lines, one file after the other, each line of a weighted file with the weight
//! beside its own. A bad line is told with its file and its number in it. A line that is no JSON object
//! goes as it is, so that the daemon tells what is wrong with it. May not enter: what a line means.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::ProgressBar;
use rlhfd_protocol::control::{BadLine, JobAdded};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::connect::{Body, Daemon};
use crate::errors::ClientError;
use crate::upload;

/// Bytes that go on their way together, at least.
const PIECE_BYTES: usize = 64 << 10;

/// The largest weight that the daemon takes.
const WEIGHT_MAX: f64 = 1000.0;

/// A file of training data.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// The file; `-` is standard input.
    pub path: PathBuf,
    /// How often each of its lines is taken.
    pub weight: f64,
}

impl FromStr for DataFile {
    type Err = String;

    /// What stands behind the last colon is a weight where it is a number.
    fn from_str(given: &str) -> Result<Self, String> {
        let weighted = given
            .rsplit_once(':')
            .and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
        match weighted {
            None => Ok(Self { path: given.into(), weight: 1.0 }),
            Some((path, weight)) if weight > 0.0 && weight <= WEIGHT_MAX => {
                Ok(Self { path: path.into(), weight })
            }
            Some(_) => Err(format!("a weight lies above 0 and is at most {WEIGHT_MAX}")),
        }
    }
}

/// The files so far, each with the number of its lines.
type Counts = Arc<Mutex<Vec<(PathBuf, u64)>>>;

/// Uploads files as one to `target`, which holds the client key already.
pub async fn send(
    daemon: &Daemon,
    target: &str,
    files: &[DataFile],
) -> Result<JobAdded, ClientError> {
    if let [only] = files
        && only.weight.to_bits() == 1_f64.to_bits()
    {
        return upload::send(daemon, target, &only.path).await;
    }
    let counts = Counts::default();
    let is_stdin = |file: &DataFile| file.path == Path::new("-");
    let once_only = files.iter().any(is_stdin);
    let body = || {
        counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let bar = upload::bar_of(files.iter().map(|file| file.path.as_path()))?;
        Ok((body(files.to_vec(), bar.clone(), Arc::clone(&counts)), bar))
    };
    let sent = upload::send_again(daemon, target, once_only, body).await;
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match sent {
        Ok(added) => {
            let mut added: JobAdded = added;
            added.bad_lines = placed(added.bad_lines, &counts);
            Ok(added)
        }
        Err(ClientError::Refused { status, mut detail }) => {
            detail.lines = placed(detail.lines, &counts);
            Err(ClientError::Refused { status, detail })
        }
        Err(other) => Err(other),
    }
}

/// Lines of the upload as lines of the files.
fn placed(lines: Vec<BadLine>, counts: &[(PathBuf, u64)]) -> Vec<BadLine> {
    let place = |bad: BadLine| {
        let mut before = 0;
        for (path, lines) in counts {
            if bad.line <= before + lines {
                let reason = format!("{} (of {})", bad.reason, path.display());
                return BadLine { line: bad.line - before, reason };
            }
            before += lines;
        }
        bad
    };
    lines.into_iter().map(place).collect()
}

/// What is still to be sent.
struct Rest {
    files: std::vec::IntoIter<DataFile>,
    open: Option<(BufReader<tokio::fs::File>, f64)>,
    bar: ProgressBar,
    counts: Counts,
}

fn body(files: Vec<DataFile>, bar: ProgressBar, counts: Counts) -> Body {
    let rest = Rest { files: files.into_iter(), open: None, bar, counts };
    let pieces = stream::try_unfold(rest, |mut rest| async move {
        let piece = rest.piece().await?;
        Ok::<_, std::io::Error>(
            (!piece.is_empty()).then(|| (Frame::data(Bytes::from(piece)), rest)),
        )
    });
    StreamBody::new(pieces).boxed_unsync()
}

impl Rest {
    /// The next lines, some kilobytes of them; none at the end of the last file.
    async fn piece(&mut self) -> std::io::Result<Vec<u8>> {
        let mut piece = Vec::new();
        while piece.len() < PIECE_BYTES {
            let Some((reader, weight)) = &mut self.open else {
                let Some(file) = self.files.next() else { break };
                let open = upload::open(&file.path)?;
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.push((file.path, 0));
                self.open = Some((BufReader::new(open), file.weight));
                continue;
            };
            let mut line = Vec::new();
            let read = reader.read_until(b'\n', &mut line).await?;
            if read == 0 {
                self.open = None;
                continue;
            }
            self.bar.inc(read as u64);
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, lines)) = counts.last_mut() {
                *lines += 1;
            }
            piece.extend(weighted(line, *weight));
        }
        Ok(piece)
    }
}

/// A line with the file's weight beside its own, and an end.
fn weighted(mut line: Vec<u8>, weight: f64) -> Vec<u8> {
    if weight.to_bits() != 1_f64.to_bits()
        && let Ok(mut object) = serde_json::from_slice::<Map<String, Value>>(&line)
    {
        let own = match object.get("weight") {
            None | Some(Value::Null) => Some(1.0),
            Some(own) => own.as_f64(),
        };
        if let Some(own) = own {
            object.insert("weight".to_owned(), Value::from(own * weight));
            line = Value::Object(object).to_string().into_bytes();
        }
    }
    if line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_behind_the_last_colon() {
        let parse = |text: &str| DataFile::from_str(text).map(|file| (file.path, file.weight));
        assert_eq!(parse("a.jsonl"), Ok(("a.jsonl".into(), 1.0)));
        assert_eq!(parse("a.jsonl:0.5"), Ok(("a.jsonl".into(), 0.5)));
        assert_eq!(parse("a:b.jsonl"), Ok(("a:b.jsonl".into(), 1.0)));
        assert_eq!(parse("a:2:1"), Ok(("a:2".into(), 1.0)));
        for bad in ["a:0", "a:-1", "a:nan", "a:1e9"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_weight_joins_a_lines_own_and_what_is_no_object_is_left_alone() {
        let told = |line: &str, weight| {
            String::from_utf8(weighted(line.as_bytes().to_vec(), weight)).unwrap()
        };
        assert_eq!(told("{\"a\": 1}", 1.0), "{\"a\": 1}\n");
        assert_eq!(told("{\"a\":1}\n", 2.0), "{\"a\":1,\"weight\":2.0}\n");
        assert_eq!(told("{\"weight\":0.5}", 3.0), "{\"weight\":1.5}\n");
        for alone in ["[1]\n", "\n", "{\"weight\":\"x\"}\n", "nonsense\n"] {
            assert_eq!(told(alone, 2.0), alone);
        }
    }

    #[test]
    fn a_bad_line_is_told_with_its_file() {
        let counts = [("a".into(), 2), ("b".into(), 3)];
        let bad = |line| BadLine { line, reason: "is bad".to_owned() };
        let told = placed(vec![bad(2), bad(3)], &counts);
        assert_eq!((told[0].line, told[0].reason.as_str()), (2, "is bad (of a)"));
        assert_eq!((told[1].line, told[1].reason.as_str()), (1, "is bad (of b)"));
    }
}
