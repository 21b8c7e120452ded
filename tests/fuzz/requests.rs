//! Requests that are wrong, each in a way of its own, and what a daemon may answer to them.
//!
//! Comes in: random numbers. Goes out: bytes to send, how to end, what is allowed. None of them may change
//! what a run computes: whose framing is broken goes to verbs that refuse an empty body as well, bodies of
//! commands are wrong by construction, and an upload always holds a bad line. May not enter: sockets.

use crate::bodies::{broken_json, broken_upload, statement};
use crate::random::Random;

/// How a client goes on after its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It waits for the answer.
    Wait,
    /// It says that no more comes, and waits.
    Shut,
    /// It sends piece by piece with pauses, then leaves without a word.
    Trickle,
    /// It leaves at once.
    Leave,
}

/// What is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Some status of 400 to 499, or 503.
    Refused,
    /// As before, or success.
    Answered,
    /// As before, or no word: no whole head came.
    Silent,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub kind: &'static str,
    pub bytes: Vec<u8>,
    pub end: End,
    pub right: Right,
}

/// Those whose body may be read as empty without harm.
const SAFE: [&str; 6] = [
    "/v1/sql",
    "/v1/rollback",
    "/v1/pin",
    "/v1/unpin",
    "/v1/prompt-sets/No%2FName/prompts",
    "/v1/nothing",
];

const LISTS: [&str; 11] = [
    "/v1",
    "/v1/status",
    "/v1/runs",
    "/v1/prompt-sets",
    "/v1/preference-sets",
    "/v1/iterations",
    "/v1/checkpoints",
    "/v1/checkpoints?lineage=head",
    "/v1/training-jobs",
    "/v1/devices?history=50",
    "/v1/events?last=200",
];

/// The request of this number.
pub fn drawn(seed: u64, number: u64) -> Request {
    let random = &mut Random::new(seed, number);
    match random.below(100) {
        0..=9 => cut_head(random),
        10..=17 => wrong_length(random),
        18..=25 => chunks(random),
        26..=31 => heads(random),
        32..=39 => first_lines(random),
        40..=49 => flipped(random),
        50..=64 => {
            let (path, body) = broken_json(random);
            whole("json", "POST", &path, &body, Right::Refused)
        }
        65..=74 => upload(random),
        75..=79 => queries(random),
        80..=87 => sql(random),
        88..=93 => whole("list", "GET", random.pick(&LISTS), b"", Right::Answered),
        94..=97 => trickle(random),
        _ => pipelined(random),
    }
}

fn message(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn whole(kind: &'static str, method: &str, path: &str, body: &[u8], right: Right) -> Request {
    let headers = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
    let bytes = message(method, path, &headers, body);
    Request { kind, bytes, end: End::Wait, right }
}

fn cut_head(random: &mut Random) -> Request {
    let whole = message("POST", random.pick(&SAFE), "Connection: close\r\nX: y\r\n", b"");
    let bytes = whole[..random.below(whole.len() - 1)].to_vec();
    Request { kind: "cut head", bytes, end: End::Shut, right: Right::Silent }
}

fn wrong_length(random: &mut Random) -> Request {
    let length = random.pick(&[
        "Content-Length: 100000\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: two\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 9999999999999\r\n",
        "Content-Length: 2\r\nContent-Length: 7\r\n",
        "Content-Length: 3\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x10\r\n",
        "Content-Length:\r\n",
    ]);
    let headers = format!("Connection: close\r\n{length}");
    let bytes =
        message("POST", random.pick(&SAFE), &headers, b"{\"sql\": 5, \"iteration\": \"x\"}");
    Request { kind: "length", bytes, end: End::Shut, right: Right::Silent }
}

fn chunks(random: &mut Random) -> Request {
    let body = random.pick(&[
        "zz\r\n{}\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n{}\r\n",
        "ffffffffffffffff\r\n{}\r\n",
        "-1\r\n{}\r\n0\r\n\r\n",
        "5\r\n{}\r\n0\r\n\r\n",
        "2\r\n{\"x\": 1}\r\n0\r\n\r\n",
        "2;name=value\r\n{x\r\n0\r\n\r\n",
        "7fffffff\r\n{",
        "\r\n\r\n",
        "0\r\nTrailer: x\r\n\r\n",
        "",
    ]);
    let headers = random.pick(&[
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
    ]);
    let headers = format!("Connection: close\r\n{headers}");
    let bytes = message("POST", random.pick(&SAFE), &headers, body.as_bytes());
    Request { kind: "chunks", bytes, end: End::Shut, right: Right::Silent }
}

fn heads(random: &mut Random) -> Request {
    let headers = match random.below(8) {
        0 => format!("X: {}\r\n", "h".repeat(100_000 + random.below(200_000))),
        1 => "A: b\r\n".repeat(200 + random.below(3_000)),
        2 => "no colon at all\r\n".to_owned(),
        3 => ": no name\r\n".to_owned(),
        4 => "X: a\r\n folded: b\r\n".to_owned(),
        5 => "X: \u{1}\u{2}\r\n".to_owned(),
        6 => "Expect: 100-continue\r\nUpgrade: h2c\r\nConnection: upgrade\r\n".to_owned(),
        _ => format!("{}: x\r\n", "n".repeat(random.below(70_000))),
    };
    let mut bytes = message("GET", "/v1/runs", &format!("Connection: close\r\n{headers}"), b"");
    if random.below(4) == 0 {
        let at = 20 + random.below(bytes.len() - 24);
        bytes[at] = 0;
    }
    Request { kind: "head", bytes, end: End::Shut, right: Right::Silent }
}

fn first_lines(random: &mut Random) -> Request {
    let line = match random.below(12) {
        0 => random.bytes(60),
        1 => b"GET /v1/status".to_vec(),
        2 => b"GET /v1/status HTTP/0.9".to_vec(),
        3 => b"GET /v1/status HTTP/7.7".to_vec(),
        4 => b"GET http://x/v1/nothing HTTP/1.1".to_vec(),
        5 => b"CONNECT x:80 HTTP/1.1".to_vec(),
        6 => b"OPTIONS * HTTP/1.1".to_vec(),
        7 => format!("GET /{} HTTP/1.1", "p".repeat(random.below(90_000))).into_bytes(),
        8 => b"GET /v1/%zz%0 HTTP/1.1".to_vec(),
        9 => b"PRI * HTTP/2.0".to_vec(),
        10 => b"G\xc3\xa9T /v1 HTTP/1.1".to_vec(),
        _ => b"GET  /v1  HTTP/1.1".to_vec(),
    };
    let bytes = [line, b"\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec()].concat();
    Request { kind: "first line", bytes, end: End::Shut, right: Right::Silent }
}

fn flipped(random: &mut Random) -> Request {
    let body = b"{\"sql\": \"DELETE FROM runs\", \"rows_max\": -1}";
    let headers = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
    let mut bytes = message("POST", random.pick(&SAFE), &headers, body);
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        bytes[at] = random.below(256) as u8;
    }
    Request { kind: "flipped", bytes, end: End::Shut, right: Right::Silent }
}

fn upload(random: &mut Random) -> Request {
    let (path, body) = broken_upload(random);
    let mut request = whole("upload", "POST", &path, &body, Right::Refused);
    match random.below(4) {
        // Cut off within the body.
        0 => {
            let head = request.bytes.len() - body.len();
            request.bytes.truncate(head + random.below(body.len()));
            (request.end, request.right) = (End::Leave, Right::Silent);
        }
        1 => {
            let mut chunked = format!("{:x}\r\n", body.len()).into_bytes();
            chunked.extend_from_slice(&body);
            chunked.extend_from_slice(b"\r\n0\r\n\r\n");
            let headers = "Connection: close\r\nTransfer-Encoding: chunked\r\n";
            request.bytes = message("POST", &path, headers, &chunked);
        }
        _ => {}
    }
    request
}

fn queries(random: &mut Random) -> Request {
    let query = random.pick(&[
        "/v1/events?since=yesterday",
        "/v1/events?since=99999999999999999999",
        "/v1/events?last=-1",
        "/v1/events?colour=red",
        "/v1/iterations?run=%00",
        "/v1/iterations?run=a&run=b",
        "/v1/checkpoints?lineage=../../../etc/passwd",
        "/v1/devices?history=x",
        "/v1/devices?history=-1",
        "/v1/prompt-sets/..%2F..%2Fx/prompts",
        "/v1/../../etc/passwd",
        "/v1/training-jobs/reward/x?skip_bad=maybe",
        "/v1/events?last=4294967296",
    ]);
    let method = random.pick(&["GET", "POST", "PUT", "DELETE", "PATCH", "BREW", "TRACE"]);
    // A run of no such name has no iterations, which is an answer.
    let right = if query.contains("run=%00") { Right::Answered } else { Right::Refused };
    whole("query", method, query, b"", right)
}

fn sql(random: &mut Random) -> Request {
    let text = statement(random);
    let body = serde_json::json!({ "sql": text }).to_string();
    whole("sql", "POST", "/v1/sql", body.as_bytes(), Right::Answered)
}

fn trickle(random: &mut Random) -> Request {
    let headers = "Connection: close\r\nContent-Length: 5000\r\n";
    let path = random.pick(&["/v1/sql", "/v1/prompt-sets/fuzz/prompts", "/v1/pin"]);
    let bytes = message("POST", path, headers, b"{\"prompt\": \"never ended");
    Request { kind: "trickle", bytes, end: End::Trickle, right: Right::Silent }
}

fn pipelined(random: &mut Random) -> Request {
    let mut bytes = Vec::new();
    for _ in 0..2 + random.below(40) {
        bytes.extend(message("GET", random.pick(&LISTS[..6]), "", b""));
    }
    bytes.extend(message("GET", "/v1", "Connection: close\r\n", b""));
    Request { kind: "pipelined", bytes, end: End::Wait, right: Right::Answered }
}
