//! A client for the socket that can also misbehave: it sends what it is given.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// An answer: status, header lines and body.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|e| panic!("the body is no JSON ({e}): {}", self.body))
    }
}

/// Opens the socket with a deadline on each read and write.
pub fn open(socket: &Path) -> std::io::Result<UnixStream> {
    let stream = connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// Connects also where the path is too long for an address, through a descriptor of its folder.
fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    if socket.as_os_str().len() < 100 {
        return UnixStream::connect(socket);
    }
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

/// A connection on which one question follows the other.
pub struct Line {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Line {
    pub fn open(socket: &Path) -> Self {
        let writer = open(socket).expect("the daemon's socket");
        let reader = BufReader::new(writer.try_clone().expect("a descriptor"));
        Self { writer, reader }
    }

    /// How long it took until the last byte of the answer, its status line and its body.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> (Duration, String, Vec<u8>) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let asked = Instant::now();
        self.writer.write_all(request.as_bytes()).expect("the daemon listens");
        let mut status = String::new();
        self.reader.read_line(&mut status).expect("an answer");
        let (mut length, mut line) = (0, status.clone());
        while line.trim() != "" {
            line.clear();
            self.reader.read_line(&mut line).expect("a head");
            let lower = line.to_ascii_lowercase();
            if let Some(bytes) = lower.strip_prefix("content-length:") {
                length = bytes.trim().parse().expect("a length");
            }
        }
        let mut answer = vec![0; length];
        self.reader.read_exact(&mut answer).expect("a body");
        (asked.elapsed(), status, answer)
    }

    /// The same of what must be answered with 200.
    pub fn answered(&mut self, method: &str, path: &str, body: &str) -> (Duration, Vec<u8>) {
        let (took, status, answer) = self.ask(method, path, body);
        assert!(status.contains(" 200 "), "{method} {path}: {status}");
        (took, answer)
    }
}

/// One request, one answer.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: rlhfd\r\nConnection: close\r\n");
    if let Some(body) = body {
        let length = body.len();
        text += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    }
    text += "\r\n";
    text += body.unwrap_or_default();
    raw(socket, text.as_bytes()).expect("the daemon answers")
}

/// GET, with the body as JSON.
pub fn get(socket: &Path, path: &str) -> serde_json::Value {
    let answer = request(socket, "GET", path, None);
    assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
    answer.json()
}

/// Sends these bytes as they are and reads what comes until the daemon closes. `None` where it
/// closed without a word.
pub fn raw(socket: &Path, bytes: &[u8]) -> Option<Answer> {
    let mut stream = open(socket).expect("the daemon's socket");
    // A daemon that refuses early may close before all is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    parse(&answer)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[split + 4..];
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => unchunk(body),
        false => body.to_vec(),
    };
    Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = body.windows(2).position(|window| window == b"\r\n") {
        let size = String::from_utf8_lossy(&body[..line]);
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        let end = (line + 2 + size).min(body.len());
        out.extend_from_slice(&body[line + 2..end]);
        if size == 0 {
            break;
        }
        body = &body[(end + 2).min(body.len())..];
    }
    out
}
