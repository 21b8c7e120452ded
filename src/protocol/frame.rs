//! Length-prefixed frames: a JSON header that people can read and a payload of bytes beside it.
//!
//! ```text
//! ┌──────────────┬───────────────┬─────────────┬─────────┐
//! │ header bytes │ payload bytes │ header JSON │ payload │
//! │    u32 LE    │    u32 LE     │             │         │
//! └──────────────┴───────────────┴─────────────┴─────────┘
//! ```
//! A frame above [`FRAME_BYTES_MAX`] is refused before anything is allocated for it. Token ids and
//! log-probs travel as little-endian u32 and f32 in the payload, never as JSON numbers.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The ceiling of one frame, prefix included.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// The length of the two size fields in front of each frame.
pub const PREFIX_BYTES: usize = 8;

/// What can be wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the socket between two frames: the ordinary end.
    #[error("the peer closed the frame socket")]
    Closed,
    /// The prefix announces more than the ceiling.
    #[error(
        "a frame of {bytes} bytes is over the ceiling of {FRAME_BYTES_MAX}; the two binaries do not fit, or the stream is damaged"
    )]
    TooLarge {
        /// What the prefix announced.
        bytes: usize,
    },
    /// The header is not the JSON that was expected.
    #[error(
        "a frame's header could not be read as {expected}; install rlhfd and rlhfd-worker of one version"
    )]
    Header {
        /// The Rust name of the expected message.
        expected: &'static str,
        /// What the JSON parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A payload whose length does not fit its elements.
    #[error("a payload of {bytes} bytes is no whole number of {element} elements")]
    Payload {
        /// The payload's length.
        bytes: usize,
        /// The element that was expected: `u32` or `f32`.
        element: &'static str,
    },
    /// The socket failed.
    #[error("the frame socket failed")]
    Io(#[from] io::Error),
}

/// A message with the bytes that belong to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<M> {
    /// The JSON header.
    pub message: M,
    /// The bytes beside it; empty for most messages.
    pub payload: Vec<u8>,
}

impl<M> Frame<M> {
    /// A frame without payload.
    pub fn bare(message: M) -> Self {
        Self { message, payload: Vec::new() }
    }
}

/// Encodes a frame into one buffer, so that it is written by one call.
///
/// Errors: `TooLarge` where header and payload together pass the ceiling.
pub fn encode<M: Serialize>(message: &M, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let header = serde_json::to_vec(message)
        .map_err(|source| FrameError::Header { expected: std::any::type_name::<M>(), source })?;
    let bytes = PREFIX_BYTES + header.len() + payload.len();
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes });
    }
    let mut buffer = Vec::with_capacity(bytes);
    // Both lengths are under 2^20 here, so the casts cannot lose anything.
    buffer.extend_from_slice(&(header.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(payload);
    Ok(buffer)
}

/// Reads the two lengths of a prefix: header bytes and payload bytes.
///
/// Errors: `TooLarge`, before a byte of the body is read.
pub fn lengths(prefix: [u8; PREFIX_BYTES]) -> Result<(usize, usize), FrameError> {
    let [a, b, c, d, e, f, g, h] = prefix;
    let header = u32::from_le_bytes([a, b, c, d]) as usize;
    let payload = u32::from_le_bytes([e, f, g, h]) as usize;
    let bytes = PREFIX_BYTES.saturating_add(header).saturating_add(payload);
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes });
    }
    Ok((header, payload))
}

/// Decodes the body of a frame whose lengths are already known.
pub fn decode<M: DeserializeOwned>(
    mut body: Vec<u8>,
    header: usize,
) -> Result<Frame<M>, FrameError> {
    let payload = body.split_off(header.min(body.len()));
    let message = serde_json::from_slice(&body)
        .map_err(|source| FrameError::Header { expected: std::any::type_name::<M>(), source })?;
    Ok(Frame { message, payload })
}

/// Writes one frame.
pub fn write<M: Serialize>(
    out: &mut impl Write,
    message: &M,
    payload: &[u8],
) -> Result<(), FrameError> {
    out.write_all(&encode(message, payload)?)?;
    Ok(())
}

/// Reads one frame, blocking.
///
/// Errors: `Closed` at a clean end; `Io` with `UnexpectedEof` where the peer died inside a frame.
pub fn read<M: DeserializeOwned>(input: &mut impl Read) -> Result<Frame<M>, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    let first = loop {
        match input.read(&mut prefix) {
            Ok(n) => break n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    };
    if first == 0 {
        return Err(FrameError::Closed);
    }
    input.read_exact(&mut prefix[first..])?;
    let (header, payload) = lengths(prefix)?;
    let mut body = vec![0; header + payload];
    input.read_exact(&mut body)?;
    decode(body, header)
}

/// Token ids as little-endian u32, the form of the payload and of the database.
pub fn ids_to_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// The inverse of [`ids_to_bytes`].
pub fn ids_from_bytes(bytes: &[u8]) -> Result<Vec<u32>, FrameError> {
    words(bytes, "u32").map(|words| words.map(u32::from_le_bytes).collect())
}

/// Log-probs as little-endian f32.
pub fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The inverse of [`floats_to_bytes`].
pub fn floats_from_bytes(bytes: &[u8]) -> Result<Vec<f32>, FrameError> {
    words(bytes, "f32").map(|words| words.map(f32::from_le_bytes).collect())
}

fn words<'a>(
    bytes: &'a [u8],
    element: &'static str,
) -> Result<impl Iterator<Item = [u8; 4]> + 'a, FrameError> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(FrameError::Payload { bytes: bytes.len(), element });
    }
    Ok(words.iter().copied())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_round_trip(message in ".{0,64}", payload in prop::collection::vec(any::<u8>(), 0..256)) {
            let bytes = encode(&message, &payload).unwrap();
            let frame: Frame<String> = read(&mut bytes.as_slice()).unwrap();
            prop_assert_eq!(frame, Frame { message, payload });
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read::<crate::worker::FromWorker>(&mut bytes.as_slice());
        }
    }

    #[test]
    fn a_frame_over_the_ceiling_is_refused_from_its_prefix_alone() {
        let mut prefix = [0xff; PREFIX_BYTES];
        prefix[3] = 0x7f;
        assert!(matches!(lengths(prefix), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_clean_end_differs_from_a_death_inside_a_frame() {
        assert!(matches!(read::<String>(&mut [].as_slice()), Err(FrameError::Closed)));
        let bytes = encode(&"abc".to_owned(), &[]).unwrap();
        assert!(matches!(read::<String>(&mut &bytes[..9]), Err(FrameError::Io(_))));
    }
}
