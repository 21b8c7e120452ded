//! What the daemon is like meanwhile: how fast `status` answers, memory, open files.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rlhfd_tests::http;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(5);

/// Every answer of `status` on one connection that stays, as a monitor has it.
#[derive(Default)]
pub struct Pulse {
    took: Vec<Duration>,
    /// Answers while an iteration was under way.
    during: usize,
}

impl Pulse {
    /// Asks until `over`.
    pub fn felt(socket: &Path, over: &AtomicBool) -> Self {
        let mut pulse = Self::default();
        let stream = http::open(socket).expect("the daemon's socket");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut writer = stream;
        while !over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let body = status(&mut writer, &mut reader);
            pulse.took.push(asked.elapsed());
            pulse.during += usize::from(!body["iteration"].is_null());
            std::thread::sleep(PAUSE);
        }
        pulse.took.sort();
        pulse
    }

    /// The time that this share of the answers did not take longer than.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.took.len().saturating_sub(1);
        self.took.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }

    pub fn tell(&self) {
        let ms = |share| self.quantile(share).as_secs_f64() * 1e3;
        println!(
            "fuzz: status answered {} times, {} of them while an iteration ran: p50 {:.2} ms, p99 {:.2} ms, \
             longest {:.2} ms",
            self.took.len(),
            self.during,
            ms(0.5),
            ms(0.99),
            ms(1.0)
        );
    }
}

fn status(writer: &mut UnixStream, reader: &mut BufReader<UnixStream>) -> serde_json::Value {
    writer.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").expect("the daemon listens");
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a head");
        let lower = line.to_ascii_lowercase();
        if let Some(bytes) = lower.strip_prefix("content-length:") {
            length = bytes.trim().parse().expect("a length");
        }
        if lower.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    serde_json::from_slice(&body).expect("status is JSON")
}

/// Open descriptors of a process.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}
