//! The frames of `rlhfd_protocol` over tokio's sockets.
//!
//! In: bytes of a worker. Out: frames, or a `FrameError`. A frame is refused by its prefix before
//! anything is allocated for its body. Neither function may be cancelled half-way and called again:
//! each belongs to a task of its own. May not enter: what a frame means.

use rlhfd_protocol::frame::{self, Frame, FrameError, PREFIX_BYTES};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads one frame.
///
/// Errors: `Closed` at a clean end; `Io` with `UnexpectedEof` where the peer died inside a frame.
pub async fn read<M, R>(input: &mut R) -> Result<Frame<M>, FrameError>
where
    M: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut prefix = [0; PREFIX_BYTES];
    let first = input.read(&mut prefix).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    input.read_exact(&mut prefix[first..]).await?;
    let (header, payload) = frame::lengths(prefix)?;
    let mut body = vec![0; header + payload];
    input.read_exact(&mut body).await?;
    frame::decode(body, header)
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::worker::{FromWorker, ToWorker};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;

    #[actix_rt::test]
    async fn a_frame_crosses_a_socket_pair_and_the_end_is_told_from_a_torn_frame() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = FromWorker::Loaded { seconds: 1.5 };
        let bytes = frame::encode(&sent, &[1, 2, 3]).unwrap();
        theirs.write_all(&bytes).await.unwrap();
        theirs.write_all(&bytes[..12]).await.unwrap();
        drop(theirs);
        let got: Frame<FromWorker> = read(&mut ours).await.unwrap();
        assert_eq!(got, Frame { message: sent, payload: vec![1, 2, 3] });
        assert!(matches!(read::<FromWorker, _>(&mut ours).await, Err(FrameError::Io(_))));
        assert!(matches!(read::<FromWorker, _>(&mut ours).await, Err(FrameError::Closed)));
    }

    #[actix_rt::test]
    async fn a_prefix_over_the_ceiling_is_refused_before_its_body_is_read() {
        let mut garbage: &[u8] = &[0xff; 64];
        assert!(matches!(
            read::<ToWorker, _>(&mut garbage).await,
            Err(FrameError::TooLarge { .. })
        ));
    }
}
