//! A body as lines, none of which is ever held beyond its ceiling.

use actix_web::web;
use bytes::{Bytes, BytesMut};
use rlhfd_domain::limits::LINE_BYTES_MAX;

use super::Refusal;
use super::body::piece;

/// The byte-order mark that some editors put in front of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A line of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// Its bytes without the end; none where it is longer than the ceiling.
    pub bytes: Option<Bytes>,
}

impl Line {
    /// Whether nothing but white space stands on it.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| bytes.iter().all(u8::is_ascii_whitespace))
    }
}

/// What comes in pieces: a body, or a file of the operator's.
pub(crate) trait Pieces {
    /// The next piece; none at the end.
    ///
    /// Errors: where it broke off.
    async fn piece(&mut self) -> Result<Option<Bytes>, Refusal>;
}

impl Pieces for web::Payload {
    async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        piece(self).await
    }
}

/// Cuts a body into lines as it comes.
pub(crate) struct Lines<'a, P> {
    pieces: &'a mut P,
    cutter: Cutter,
}

impl<'a, P: Pieces> Lines<'a, P> {
    /// Over a body.
    pub fn new(pieces: &'a mut P) -> Self {
        Self { pieces, cutter: Cutter::default() }
    }

    /// The next line; none at the body's end.
    ///
    /// Errors: where the body broke off or its peer fell silent.
    pub async fn next(&mut self) -> Result<Option<Line>, Refusal> {
        loop {
            if let Some(line) = self.cutter.next_line() {
                return Ok(Some(line));
            }
            if self.cutter.ended {
                return Ok(None);
            }
            match self.pieces.piece().await? {
                Some(bytes) => self.cutter.feed(&bytes),
                None => self.cutter.end(),
            }
        }
    }
}

/// The cutting itself, apart from where the bytes come from.
#[derive(Debug, Default)]
pub struct Cutter {
    held: BytesMut,
    /// How many of the held bytes were looked at already.
    looked: usize,
    /// The line that is being read is too long: its rest is thrown away.
    skipping: bool,
    number: u64,
    ended: bool,
}

impl Cutter {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// No more bytes come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether no more bytes come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next whole line of what was taken; after the end the last one, whole or not.
    pub fn next_line(&mut self) -> Option<Line> {
        match self.held[self.looked..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let mut line = self.held.split_to(self.looked + at + 1);
                line.truncate(line.len() - 1);
                self.looked = 0;
                Some(self.cut(line))
            }
            None if self.ended && (self.skipping || !self.held.is_empty()) => {
                let rest = self.held.split();
                self.looked = 0;
                Some(self.cut(rest))
            }
            None => {
                if self.skipping || self.held.len() > LINE_BYTES_MAX + 1 {
                    // What is held of a line that is too long is not needed any more.
                    self.skipping = true;
                    self.held.clear();
                }
                self.looked = self.held.len();
                None
            }
        }
    }

    fn cut(&mut self, mut line: BytesMut) -> Line {
        self.number += 1;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        if self.number == 1 && line.starts_with(BOM) {
            let _ = line.split_to(BOM.len());
        }
        let too_long = std::mem::take(&mut self.skipping) || line.len() > LINE_BYTES_MAX;
        Line { number: self.number, bytes: (!too_long).then(|| line.freeze()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines of a body that comes in pieces of `size`.
    fn lines(body: &[u8], size: usize) -> Vec<Line> {
        let mut cutter = Cutter::default();
        let mut lines = Vec::new();
        for piece in body.chunks(size) {
            cutter.feed(piece);
            lines.extend(std::iter::from_fn(|| cutter.next_line()));
        }
        cutter.end();
        lines.extend(std::iter::from_fn(|| cutter.next_line()));
        lines
    }

    fn texts(lines: &[Line]) -> Vec<&[u8]> {
        lines.iter().map(|line| line.bytes.as_deref().unwrap_or(b"?")).collect()
    }

    #[test]
    fn pieces_make_no_difference() {
        for size in [1, 2, 3, 100] {
            let cut = lines(b"\xef\xbb\xbfa\r\n\nbc\nlast", size);
            assert_eq!(texts(&cut), [b"a".as_slice(), b"", b"bc", b"last"], "{size}");
            assert_eq!(cut.iter().map(|l| l.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
            assert!(cut[1].is_blank() && !cut[2].is_blank());
        }
        assert_eq!(lines(b"", 1), []);
        assert_eq!(texts(&lines(b"a\n", 1)), [b"a"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_the_next_one_read() {
        let mut body = vec![b'x'; 10_000_000];
        body.extend_from_slice(b"\nshort\n");
        for size in [1 << 16, body.len()] {
            assert_eq!(texts(&lines(&body, size)), [b"?".as_slice(), b"short"]);
        }
        let mut cutter = Cutter::default();
        for piece in body[..9_999_999].chunks(1 << 16) {
            cutter.feed(piece);
            assert_eq!(cutter.next_line(), None);
            assert!(cutter.held.len() <= LINE_BYTES_MAX + 1 + (1 << 16));
        }
        cutter.end();
        assert_eq!(cutter.next_line().unwrap().bytes, None);
        assert_eq!(cutter.next_line(), None);
    }

    #[test]
    fn the_ceiling_itself_is_allowed() {
        let mut body = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(lines(&body, 1 << 16)[0].bytes.as_ref().unwrap().len(), LINE_BYTES_MAX);
        body.push(b'x');
        assert_eq!(lines(&body, 1 << 16)[0].bytes, None);
    }
}
