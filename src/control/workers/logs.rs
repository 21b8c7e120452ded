//! A worker's stdout and stderr, said again through the daemon's own log.
//!
//! In: a pipe. Out: log lines inside the span of the unit that runs. Lines have a ceiling, and
//! nothing here is read by any code: logs are for people. May not enter: frames.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::watch;
use tracing::Span;

/// What is kept of one line.
const LINE_BYTES_MAX: u64 = 4 * 1024;

/// Reads a pipe to its end. `span` is that of the unit that runs now.
pub async fn say_again<R>(pipe: R, pid: u32, span: watch::Receiver<Span>)
where
    R: AsyncRead + Unpin,
{
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut pipe).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                if !text.is_empty() {
                    let _inside = span.borrow().clone().entered();
                    tracing::info!(target: "rlhfd::worker", pid, "{text}");
                }
            }
        }
    }
}
