//! A JSONL file that is there whole or not at all.
//!
//! In: lines. Out: the file, written aside in its own folder, synced and renamed. A file that was
//! there before stays untouched until then. What is no ordinary file (a pipe, a device) is written
//! to as it stands: a rename would put a file in its place. May not enter: what the lines mean.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::errors::InputError;

/// An output that is being written.
pub struct Output {
    path: PathBuf,
    /// None: the place is no ordinary file.
    aside: Option<PathBuf>,
    writer: BufWriter<File>,
    published: bool,
}

const MEND: &str = "check that the folder exists, may be written to, and has room";

impl Output {
    /// Begins a file; `--out` is tried before any work is done.
    ///
    /// Errors: `File`.
    pub fn create(path: &Path) -> Result<Self, InputError> {
        let failed = |source| failure(path, source);
        if path.is_dir() {
            return Err(failed(std::io::Error::other("it is a folder")));
        }
        if std::fs::metadata(path).is_ok_and(|place| !place.is_file()) {
            let file = File::options().write(true).open(path).map_err(failed)?;
            let writer = BufWriter::new(file);
            return Ok(Self { path: path.to_owned(), aside: None, writer, published: false });
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("out");
        let aside = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = File::create(&aside).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            aside: Some(aside),
            writer: BufWriter::new(file),
            published: false,
        })
    }

    /// Appends one line.
    ///
    /// Errors: `File`.
    pub fn line(&mut self, value: &impl Serialize) -> Result<(), InputError> {
        let text = serde_json::to_string(value)
            .map_err(|error| failure(&self.path, std::io::Error::other(error)))?;
        writeln!(self.writer, "{text}").map_err(|source| failure(&self.path, source))
    }

    /// Gives the file its name.
    ///
    /// Errors: `File`; nothing then stands under the name that did not before.
    pub fn publish(mut self) -> Result<(), InputError> {
        let done = self.writer.flush().and_then(|()| match &self.aside {
            Some(aside) => {
                self.writer.get_ref().sync_all()?;
                std::fs::rename(aside, &self.path)
            }
            None => Ok(()),
        });
        self.published = done.is_ok();
        done.map_err(|source| failure(&self.path, source))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(aside) = self.aside.as_ref().filter(|_| !self.published) {
            // Nothing can be done about a failure here, and the error that led here is being told.
            let _ = std::fs::remove_file(aside);
        }
    }
}

fn failure(path: &Path, source: std::io::Error) -> InputError {
    InputError::File { path: path.to_owned(), action: "written", mend: MEND, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_given_up_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, "old\n").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.line(&1).unwrap();
        drop(output);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old\n");
        let mut output = Output::create(&path).unwrap();
        output.line(&2).unwrap();
        output.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_stays_a_device() {
        let mut output = Output::create(Path::new("/dev/null")).unwrap();
        output.line(&1).unwrap();
        output.publish().unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    }
}
