//! What was measured, told line by line and written as one JSON object.
//!
//! In: figures. Out: a table, `bench.json`. May not enter: how they were measured.

use std::path::Path;

use serde::Serialize;

use super::clock::Took;
use super::subject::Subject;
use crate::errors::{InputError, WorkerError};

/// One stage.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    pub name: String,
    pub seconds: f64,
    /// Of all threads together.
    pub cpu_s: f64,
    pub tok_per_s: f64,
    /// Of the model's own arithmetic.
    pub gflops: f64,
    /// Of the machine's matrix-product rate.
    pub gemm_share: f64,
    /// Host memory at most, MiB.
    pub peak_mib: u64,
}

impl Stage {
    /// From what it took, tokens and operations; the share comes when it is told.
    pub fn new(name: &str, took: Took, tokens: usize, operations: f64) -> Self {
        let Took { seconds, cpu_s, peak_mib } = took;
        #[expect(clippy::cast_precision_loss, reason = "a count for a report")]
        let tokens = tokens as f64;
        Self {
            name: name.to_owned(),
            seconds,
            cpu_s,
            tok_per_s: tokens / seconds,
            gflops: operations / seconds / 1e9,
            gemm_share: 0.0,
            peak_mib,
        }
    }
}

/// One part of a pass.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    pub name: &'static str,
    pub seconds: f64,
}

impl Part {
    pub fn new(name: &'static str, seconds: f64) -> Self {
        Self { name, seconds }
    }
}

/// The parts of one pass.
#[derive(Debug, Clone, Serialize)]
struct Parts {
    of: &'static str,
    parts: Vec<Part>,
}

/// Ours against the peer's, one stage: medians over the turns.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    pub stage: &'static str,
    pub ours_s: f64,
    pub peer_s: f64,
    pub ratio: f64,
    /// Of all threads together.
    pub ours_cpu_s: f64,
    pub peer_cpu_s: f64,
    /// Whether the results agree.
    pub equal: bool,
    /// How, or how far apart.
    pub agreement: String,
    /// Host memory at most in training, MiB: ours is the whole process, so is the peer's.
    pub ours_peak_mib: u64,
    pub peer_peak_mib: u64,
}

#[derive(Debug, Serialize)]
struct Figures {
    model: String,
    device: String,
    precision: String,
    threads: i32,
    gemm_gflops: f64,
    stages: Vec<Stage>,
    parts: Vec<Parts>,
    peer: Vec<Compared>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_ratio_total: Option<f64>,
}

/// The report as it grows.
pub struct Report<'a> {
    tell: &'a mut dyn FnMut(&str),
    figures: Figures,
}

impl<'a> Report<'a> {
    /// An empty one.
    pub fn new(subject: &Subject, tell: &'a mut dyn FnMut(&str)) -> Self {
        let figures = Figures {
            model: subject.name.clone(),
            device: format!("{:?}", subject.compute.devices.first()),
            precision: format!("{:?}", subject.compute.precision),
            threads: tch::get_num_threads(),
            gemm_gflops: 0.0,
            stages: Vec::new(),
            parts: Vec::new(),
            peer: Vec::new(),
            peer_ratio_total: None,
        };
        let Figures { model, device, precision, threads, .. } = &figures;
        tell(&format!("{model} on {device}, {precision}, {threads} threads"));
        Self { tell, figures }
    }

    /// The machine's rate.
    pub fn gemm(&mut self, gflops: f64) {
        self.figures.gemm_gflops = gflops;
        (self.tell)(&format!("matrix products: {gflops:.0} GFLOP/s"));
        (self.tell)(
            "stage                 seconds     CPU s     tok/s   GFLOP/s   share  peak MiB",
        );
    }

    /// A stage.
    pub fn stage(&mut self, mut stage: Stage) {
        stage.gemm_share = stage.gflops / self.figures.gemm_gflops;
        let Stage { name, seconds, cpu_s, tok_per_s, gflops, gemm_share, peak_mib } = &stage;
        (self.tell)(&format!(
            "{name:20} {seconds:8.3} {cpu_s:9.3} {tok_per_s:9.0} {gflops:9.1} {:6.1} % {peak_mib:8}",
            gemm_share * 100.0
        ));
        self.figures.stages.push(stage);
    }

    /// The parts of a pass.
    pub fn parts(&mut self, of: &'static str, parts: Vec<Part>) {
        let all: f64 = parts.iter().map(|part| part.seconds).sum();
        let share = |part: &Part| format!("{} {:.0} %", part.name, part.seconds / all * 100.0);
        let told: Vec<String> = parts.iter().map(share).collect();
        (self.tell)(&format!("{of}, {:.1} ms: {}", all * 1e3, told.join(", ")));
        self.figures.parts.push(Parts { of, parts });
    }

    /// A stage beside the peer's.
    pub fn compared(&mut self, compared: Compared) {
        let Compared { stage, ours_s, peer_s, ratio, equal, agreement, .. } = &compared;
        let word = if *equal { "equal" } else { "NOT EQUAL" };
        (self.tell)(&format!(
            "{stage:12} ours {ours_s:8.3} s, peer {peer_s:8.3} s, ratio {ratio:5.2} (CPU {:.1} s, \
             {:.1} s); {word}: {agreement}; peak {} MiB, {} MiB",
            compared.ours_cpu_s,
            compared.peer_cpu_s,
            compared.ours_peak_mib,
            compared.peer_peak_mib
        ));
        self.figures.peer.push(compared);
    }

    /// All stages together.
    pub fn total(&mut self, ratio: f64) {
        (self.tell)(&format!("generate, score and train together: ratio {ratio:.2}"));
        self.figures.peer_ratio_total = Some(ratio);
    }

    /// Writes the JSON file.
    ///
    /// # Errors
    /// The place cannot be written.
    pub fn write(self, path: &Path) -> Result<(), WorkerError> {
        let wrong = |error: &dyn std::fmt::Display| InputError::Setting {
            name: "--out".to_owned(),
            value: path.display().to_string(),
            rule: format!("it cannot be written ({error})"),
            mend: "a file in a folder that exists".to_owned(),
        };
        let mut text =
            serde_json::to_string_pretty(&self.figures).map_err(|error| wrong(&error))?;
        text.push('\n');
        std::fs::write(path, text).map_err(|error| wrong(&error))?;
        (self.tell)(&format!("written to {}", path.display()));
        Ok(())
    }
}
