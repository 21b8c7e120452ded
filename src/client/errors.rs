//! Everything that can go wrong on the person's side, and what to do about it.

use std::io;
use std::path::PathBuf;

use rlhfd_protocol::control::{ErrorDetail, SOCKET_PATH_BYTES_MAX};

/// An error of rlhfctl. Each says what, where and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket, or a socket that nobody serves.
    #[error(
        "no daemon answers at {}\n\
         try: start one with `rlhfd run`, or name its socket with --socket PATH or RLHFD_SOCKET",
        places(.tried)
    )]
    NobodyAnswers {
        /// The paths that were tried.
        tried: Vec<PathBuf>,
    },
    /// The socket's mode keeps this user out.
    #[error(
        "this user may not open {}\n\
         try: join the socket's group (`sudo usermod -aG rlhfd $USER`, then log in again), or ask its owner",
        .path.display()
    )]
    NoRight {
        /// The socket.
        path: PathBuf,
    },
    /// A path that the kernel cannot take.
    #[error(
        "the socket's path has {bytes} bytes, and the kernel takes at most {SOCKET_PATH_BYTES_MAX}\n\
         at: {}\n\
         try: a shorter path; `ln -s` to a folder with a short name works too",
        .path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The daemon said no.
    #[error("{detail}{}", bad_lines(.detail))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the daemon said.
        detail: Box<ErrorDetail>,
    },
    /// The daemon went away, or did not speak as expected.
    #[error(
        "{what}\n\
         at: {place}\n\
         try: `rlhfctl status`; where the daemon is gone, its log says why"
    )]
    Talk {
        /// What happened.
        what: String,
        /// The request.
        place: String,
    },
    /// A file of this side.
    #[error("could not read {}: {source}\ntry: look at its path and its rights", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something local that is not a file.
    #[error("could not {what}: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A command line that clap lets pass but that makes no sense.
    #[error("{what}\ntry: {mend}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        mend: String,
    },
    /// `doctor` found something that is wrong; what, stands above.
    #[error("{count} findings are bad\ntry: what stands beside each of them")]
    Unwell {
        /// How many.
        count: usize,
    },
    /// `wait` ended without what it waited for.
    #[error("{what}\ntry: {mend}")]
    InVain {
        /// What happened instead.
        what: String,
        /// What to do.
        mend: String,
    },
}

impl ClientError {
    /// Whether standard output was closed by its reader.
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Local { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NobodyAnswers { .. } => 3,
            Self::Usage { .. } => 2,
            _ => 1,
        }
    }

    /// Whether the same request may be sent again: it did not reach the daemon, or the daemon asks
    /// to come again.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 503,
            Self::Talk { .. } | Self::NobodyAnswers { .. } => true,
            _ => false,
        }
    }
}

fn places(tried: &[PathBuf]) -> String {
    let shown: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
    shown.join(" or ")
}

fn bad_lines(detail: &ErrorDetail) -> String {
    let mut text = String::new();
    for bad in &detail.lines {
        text.push_str(&format!("\nline {}: {}", bad.line, bad.reason));
    }
    let more = detail.bad.saturating_sub(detail.lines.len() as u64);
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::control::BadLine;

    use super::*;

    #[test]
    fn a_refused_upload_names_its_lines_and_counts_the_others() {
        let mut detail = ErrorDetail::new("3 lines are bad", "the upload", "mend them");
        detail.lines = vec![BadLine { line: 2, reason: "is a number".to_owned() }];
        detail.bad = 3;
        let error = ClientError::Refused { status: 422, detail: Box::new(detail) };
        assert_eq!(
            error.to_string(),
            "3 lines are bad\nat: the upload\ntry: mend them\nline 2: is a number\nand 2 more"
        );
        assert!(!error.may_retry());
    }
}
