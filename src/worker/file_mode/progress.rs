//! Progress on stderr: a bar on a terminal, a line now and then elsewhere.
//!
//! In: items done, tokens computed. Out: what a person wants to see. May not enter: the computation.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one command.
pub struct Progress {
    label: &'static str,
    total: usize,
    done: usize,
    begun: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `total` items of work called `label`.
    #[must_use]
    pub fn new(label: &'static str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let template = "{prefix} {bar:30} {pos}/{len} {elapsed} (left {eta}) {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(label);
            bar
        });
        let now = Instant::now();
        Self { label, total, done: 0, begun: now, told: now, bar }
    }

    /// `items` more are done; `tokens` were computed so far in all.
    pub fn advance(&mut self, items: usize, tokens: u64) {
        self.done += items;
        let rate = tokens as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("{rate:.0} tokens/s"));
                bar.set_position(self.done as u64);
            }
            None if self.told.elapsed() >= LINE_EVERY || self.done == self.total => {
                self.told = Instant::now();
                let seconds = self.begun.elapsed().as_secs_f64();
                let (label, done, total) = (self.label, self.done, self.total);
                eprintln!("{label}: {done}/{total} in {seconds:.1} s, {rate:.0} tokens/s");
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
