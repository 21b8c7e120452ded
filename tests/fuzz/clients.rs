//! Clients that send such requests, many at once, and look at what comes back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rlhfd_tests::http;

use crate::requests::{self, End, Request, Right};

/// How many failures are kept in words.
const TOLD: usize = 20;

/// What came back, over all clients.
#[derive(Default)]
pub struct Tally {
    /// By kind of request and status; 0: no word.
    answers: BTreeMap<&'static str, BTreeMap<u16, u64>>,
    failures: u64,
    told: Vec<String>,
}

impl Tally {
    fn count(&mut self, number: u64, request: &Request, outcome: Result<u16, String>) {
        let status = *outcome.as_ref().unwrap_or(&0);
        *self.answers.entry(request.kind).or_default().entry(status).or_default() += 1;
        if let Err(why) = outcome {
            self.failed(format!("request {number} ({}): {why}", request.kind));
        }
    }

    /// Counts a failure.
    pub fn failed(&mut self, why: String) {
        self.failures += 1;
        if self.told.len() < TOLD {
            self.told.push(why);
        }
    }

    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// One line a kind, then the failures.
    pub fn tell(&self) {
        for (kind, statuses) in &self.answers {
            let each = statuses.iter().map(|(status, count)| match status {
                0 => format!("no word {count}"),
                status => format!("{status} {count}"),
            });
            println!("fuzz: {kind:<10} {}", each.collect::<Vec<_>>().join(", "));
        }
        for failure in &self.told {
            println!("fuzz: FAILURE {failure}");
        }
    }
}

/// Sends requests `from..to` by so many clients at once.
pub fn storm(
    socket: &Path,
    seed: u64,
    (from, to): (u64, u64),
    clients: usize,
    tally: &Mutex<Tally>,
) {
    let next = AtomicU64::new(from);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= to {
                        return;
                    }
                    let request = requests::drawn(seed, number);
                    let outcome = sent(socket, &request);
                    tally.lock().unwrap().count(number, &request, outcome);
                }
            });
        }
    });
}

/// Sends one and judges the answer: its status, 0 where there is none.
fn sent(socket: &Path, request: &Request) -> Result<u16, String> {
    let mut stream = http::open(socket).map_err(|error| format!("cannot connect: {error}"))?;
    match request.end {
        End::Leave => {
            let _ = stream.write_all(&request.bytes);
            return Ok(0);
        }
        End::Trickle => {
            for piece in request.bytes.chunks(40) {
                if stream.write_all(piece).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(25));
            }
            return Ok(0);
        }
        End::Wait | End::Shut => {
            // The daemon may refuse and close before all is sent.
            let _ = stream.write_all(&request.bytes);
            if request.end == End::Shut {
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }
    judged(&mut stream, request)
}

fn judged(stream: &mut UnixStream, request: &Request) -> Result<u16, String> {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && error.kind() != std::io::ErrorKind::ConnectionReset
    {
        return Err(format!("no end of the answer ({error}) after {} bytes", answer.len()));
    }
    if answer.is_empty() {
        return match request.right {
            Right::Silent => Ok(0),
            Right::Refused | Right::Answered => Err("no answer".to_owned()),
        };
    }
    let text = String::from_utf8_lossy(&answer);
    // Whoever asked whether to go on is told so first.
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    let status: u16 = text
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| text.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| format!("an answer that is no HTTP: {:?}", head(text)))?;
    let allowed = match status {
        400..=499 | 503 => true,
        200 => request.right != Right::Refused,
        _ => false,
    };
    if !allowed {
        let sent = String::from_utf8_lossy(&request.bytes);
        return Err(format!("status {status} to {:?}: {:?}", head(&sent), head(text)));
    }
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    // A head that the HTTP layer cannot read is answered without a body.
    let told =
        body.is_empty() || ["\"what\"", "\"where\"", "\"mend\""].iter().all(|k| body.contains(k));
    if status >= 400 && !told {
        return Err(format!("status {status} without what, where and mend: {:?}", head(body)));
    }
    Ok(status)
}

fn head(text: &str) -> String {
    text.chars().take(300).collect()
}
