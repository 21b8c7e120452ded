//! Finds the daemon's socket and speaks HTTP/1.1 on it: one connection a request.
//!
//! Out: answers as the structs of `rlhfd-protocol`, or an error that says what to do. An answer with
//! a status of 400 and above is a [`ClientError::Refused`] with the daemon's own words.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use rlhfd_protocol::control::{
    ErrorBody, ErrorDetail, SOCKET_PATH_BYTES_MAX, SYSTEM_SOCKET, USER_SOCKET, VERSION_HEADER,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::errors::ClientError;
use crate::render;

/// A request's body, whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The longest answer that is read at once; streams are read line by line instead.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The longest line of a stream.
const STREAM_LINE_BYTES_MAX: usize = 4 << 20;

/// `--watch` asks often; the word about versions is said once.
static VERSION_NOTED: Once = Once::new();

/// A daemon that answered once.
#[derive(Debug, Clone)]
pub struct Daemon {
    path: PathBuf,
}

impl Daemon {
    /// The daemon at `socket`, or else the first of the default places that answers.
    pub async fn find(socket: Option<PathBuf>) -> Result<Self, ClientError> {
        let tried = socket.map_or_else(default_sockets, |path| vec![path]);
        let mut forbidden = None;
        for path in &tried {
            match open(path).await {
                Ok(_) => return Ok(Self { path: path.clone() }),
                Err(error @ ClientError::NobodyAnswers { .. }) => drop(error),
                Err(error) => forbidden = forbidden.or(Some(error)),
            }
        }
        Err(forbidden.unwrap_or(ClientError::NobodyAnswers { tried }))
    }

    /// `GET target`.
    pub async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        let answer = self.send(Method::GET, target, None, empty()).await?;
        read(target, answer).await
    }

    /// `POST target` with a JSON body.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        target: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let json = serde_json::to_vec(body).map_err(|e| talk(target, e.to_string()))?;
        let body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed_unsync();
        let answer = self.send(Method::POST, target, Some("application/json"), body).await?;
        read(target, answer).await
    }

    /// `POST target` with a body that is streamed.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        target: &str,
        body: Body,
    ) -> Result<T, ClientError> {
        let answer = self.send(Method::POST, target, Some("application/jsonl"), body).await?;
        read(target, answer).await
    }

    /// `GET target` as a stream of lines.
    pub async fn lines(&self, target: &str) -> Result<Lines, ClientError> {
        let answer = self.send(Method::GET, target, None, empty()).await?;
        if answer.status().as_u16() >= 400 {
            return Err(refused(target, answer).await);
        }
        Ok(Lines { target: target.to_owned(), body: answer.into_body(), rest: Vec::new() })
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        content_type: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = open(&self.path).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| talk(target, e.to_string()))?;
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "rlhfd")
            .header(header::ACCEPT, "application/json, application/x-ndjson")
            .header(header::USER_AGENT, concat!("rlhfctl/", env!("CARGO_PKG_VERSION")));
        if let Some(kind) = content_type {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(body).map_err(|e| talk(target, e.to_string()))?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| {
            talk(target, format!("the connection to the daemon broke off ({})", deepest(&e)))
        })?;
        note_other_version(&answer);
        Ok(answer)
    }
}

/// A stream of lines.
#[derive(Debug)]
pub struct Lines {
    target: String,
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next line without its end; none at the stream's end.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.rest.len() > STREAM_LINE_BYTES_MAX {
                return Err(talk(&self.target, "a line of the stream is too long".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                Some(Err(e)) => {
                    return Err(talk(&self.target, format!("the stream broke off ({e})")));
                }
            }
        }
    }
}

async fn open(path: &Path) -> Result<UnixStream, ClientError> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(ClientError::PathTooLong { path: path.to_owned(), bytes });
    }
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NoRight { path: path.to_owned() },
        _ => ClientError::NobodyAnswers { tried: vec![path.to_owned()] },
    })
}

fn default_sockets() -> Vec<PathBuf> {
    let user = std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(&dir).join(USER_SOCKET));
    std::iter::once(PathBuf::from(SYSTEM_SOCKET)).chain(user).collect()
}

async fn read<T: DeserializeOwned>(
    target: &str,
    answer: Response<Incoming>,
) -> Result<T, ClientError> {
    if answer.status().as_u16() >= 400 {
        return Err(refused(target, answer).await);
    }
    let bytes = whole(target, answer).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        talk(
            target,
            format!("the answer could not be read ({e}); rlhfctl and rlhfd differ in version"),
        )
    })
}

async fn refused(target: &str, answer: Response<Incoming>) -> ClientError {
    let status = answer.status();
    let bytes = whole(target, answer).await.unwrap_or_default();
    let detail = match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => body.error,
        // The HTTP layer itself refused: it knows nothing of our bodies.
        Err(_) => ErrorDetail::new(
            format!("the daemon answered {status}"),
            target,
            "`rlhfctl status` shows whether it is well",
        ),
    };
    ClientError::Refused { status: status.as_u16(), detail: Box::new(detail) }
}

async fn whole(target: &str, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    match Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) => Err(talk(target, format!("the answer broke off ({e})"))),
    }
}

/// An upgrade leaves an old client or an old daemon behind for a while: worth a word, no more.
fn note_other_version(answer: &Response<Incoming>) {
    let ours = env!("CARGO_PKG_VERSION");
    let Some(theirs) = answer.headers().get(VERSION_HEADER).and_then(|v| v.to_str().ok()) else {
        return;
    };
    if theirs != ours {
        render::warn_once(
            &VERSION_NOTED,
            &format!("the daemon is of version {theirs}, rlhfctl of {ours}"),
        );
    }
}

fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn talk(target: &str, what: String) -> ClientError {
    ClientError::Talk { what, place: target.to_owned() }
}

/// Escapes a value for a request's path or query.
pub fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_a_value_stays_in_its_place() {
        assert_eq!(escape("a/../b?c&d=ä"), "a%2F..%2Fb%3Fc%26d%3D%C3%A4");
    }

    #[test]
    fn a_path_over_the_kernels_limit_is_told_before_anything_is_tried() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(Daemon::find(Some(path))).unwrap_err();
        assert!(matches!(error, ClientError::PathTooLong { bytes: 108, .. }), "{error}");
    }

    #[test]
    fn where_nobody_answers_the_error_says_what_to_do() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(Daemon::find(Some("/nonexistent/s".into()))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no daemon answers at /nonexistent/s\n\
             try: start one with `rlhfd run`, or name its socket with --socket PATH or RLHFD_SOCKET"
        );
        assert_eq!(error.exit_code(), 3);
    }
}
