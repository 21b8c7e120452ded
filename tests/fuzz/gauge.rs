//! What the daemon is like meanwhile: how fast `status` answers, memory, open files.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rlhfd_tests::http::Line;

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
        let mut line = Line::open(socket);
        while !over.load(Ordering::Relaxed) {
            let (took, _, body) = line.ask("GET", "/v1/status", "");
            let body: serde_json::Value = serde_json::from_slice(&body).expect("status is JSON");
            pulse.took.push(took);
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
