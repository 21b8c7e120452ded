//! `rlhfctl jobs`: training jobs and where each stands.

use rlhfd_protocol::control::Jobs;

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::{format, render};

/// Asks and prints.
pub async fn run(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    let jobs: Jobs = daemon.get("/v1/training-jobs").await?;
    if json {
        return render::json(&jobs);
    }
    let rows: Vec<Vec<String>> = jobs
        .jobs
        .iter()
        .map(|job| {
            vec![
                job.run.clone(),
                format!("{}/{}", job.kind, job.name),
                job.reason.as_ref().map_or(job.status.clone(), |r| format!("{}: {r}", job.status)),
                format::maybe(job.examples),
                format::maybe(job.step),
                format::maybe(job.loss.map(format::float)),
                format::maybe(job.held_out_accuracy.map(format::float)),
                format::maybe(job.calibration_error.map(format::float)),
                format::maybe(job.checkpoint.clone()),
                seconds(job.started_ms, job.ended_ms),
                format::time(job.created_ms),
            ]
        })
        .collect();
    render::table(
        &[
            "run",
            "job",
            "status",
            "examples",
            "step",
            "loss",
            "accuracy",
            "calibration",
            "checkpoint",
            "took",
            "made (UTC)",
        ],
        &rows,
        "no training job yet: `rlhfctl train sft|reward|preference --data FILE`",
    )
}

fn seconds(started: Option<i64>, ended: Option<i64>) -> String {
    match (started, ended) {
        (Some(started), Some(ended)) => format::duration((ended - started) as f64 / 1000.0),
        _ => "–".to_owned(),
    }
}
