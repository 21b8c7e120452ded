//! Streams a file or standard input to the daemon, with a progress bar on standard error.
//!
//! The file is read here, in pieces; the daemon gets bytes, never a path. A file is sent again, with
//! the same client key, where the daemon went away or was full; standard input cannot be.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::connect::{Body, Daemon};
use crate::errors::ClientError;
use crate::render;

/// What standard input is called.
const STDIN: &str = "-";

/// Bytes of one piece.
const PIECE_BYTES: usize = 64 << 10;

/// How often a file is sent in all, and how long is waited in between, growing.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// A key that no other upload has.
pub fn fresh_key() -> String {
    // Two hashers with keys from the system's random numbers; nothing else here needs a generator.
    let part = || RandomState::new().build_hasher().finish();
    format!("rlhfctl-{:016x}{:016x}", part(), part())
}

/// Uploads `file` (`-`: standard input) to `target`, which holds the client key already.
pub async fn send<T: DeserializeOwned>(
    daemon: &Daemon,
    target: &str,
    file: &Path,
) -> Result<T, ClientError> {
    let make = || {
        let bar = bar_of(std::iter::once(file))?;
        let reader = open(file).map_err(|source| unreadable(file, source))?;
        Ok((body(reader, bar.clone()), bar))
    };
    send_again(daemon, target, file == Path::new(STDIN), make).await
}

/// Uploads what `make` makes, and makes and sends it again where the daemon went away or was full and
/// it does not come from standard input.
pub async fn send_again<T: DeserializeOwned>(
    daemon: &Daemon,
    target: &str,
    once_only: bool,
    make: impl Fn() -> Result<(Body, ProgressBar), ClientError>,
) -> Result<T, ClientError> {
    let mut tries = 1;
    loop {
        let (body, bar) = make()?;
        let result = daemon.upload(target, body).await;
        bar.finish_and_clear();
        match result {
            Err(error) if !once_only && tries < TRIES && error.may_retry() => {
                render::warn(&format!("{} (sending again)", first_line(&error)));
                tokio::time::sleep(PAUSE * 2u32.pow(tries)).await;
                tries += 1;
            }
            result => return result,
        }
    }
}

/// Standard input is a file like any other, so both are read in one way.
pub fn open(file: &Path) -> io::Result<tokio::fs::File> {
    let file = if file == Path::new(STDIN) {
        std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        std::fs::File::open(file)?
    };
    Ok(tokio::fs::File::from_std(file))
}

/// A bar over all files; one without an end where standard input is among them.
pub fn bar_of<'a>(files: impl Iterator<Item = &'a Path>) -> Result<ProgressBar, ClientError> {
    let files: Vec<&Path> = files.collect();
    if files.contains(&Path::new(STDIN)) {
        let style = ProgressStyle::with_template("{spinner} {bytes} sent, {binary_bytes_per_sec}");
        let bar = ProgressBar::new_spinner();
        return Ok(style.map_or(bar.clone(), |style| bar.with_style(style)));
    }
    let mut bytes = 0;
    for file in files {
        let data = std::fs::metadata(file).map_err(|source| unreadable(file, source))?;
        if data.is_dir() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(unreadable(file, source));
        }
        bytes += data.len();
    }
    let style = ProgressStyle::with_template(
        "{bar:40} {percent:>3} % {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::new(bytes);
    Ok(style.map_or(bar.clone(), |style| bar.with_style(style)))
}

fn body(reader: impl AsyncRead + Unpin + Send + 'static, bar: ProgressBar) -> Body {
    let pieces = stream::try_unfold((reader, bar), |(mut reader, bar)| async move {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = reader.read_buf(&mut piece).await?;
        if read == 0 {
            bar.set_message("publishing");
            return Ok::<_, io::Error>(None);
        }
        bar.inc(read as u64);
        Ok(Some((Frame::data(Bytes::from(piece)), (reader, bar))))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn unreadable(path: &Path, source: io::Error) -> ClientError {
    ClientError::File { path: PathBuf::from(path), source }
}

fn first_line(error: &ClientError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ() {
        assert_ne!(fresh_key(), fresh_key());
    }

    #[test]
    fn a_folder_is_no_file_to_send() {
        let error = bar_of(std::iter::once(Path::new("/"))).unwrap_err();
        assert!(error.to_string().contains("could not read /"), "{error}");
    }
}
