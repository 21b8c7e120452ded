//! `jobs`: training jobs and where each stands.

use actix_web::{HttpRequest, web};
use rlhfd_protocol::control::{Job, Jobs};
use rlhfd_store::tables::JobListing;

use super::{Shared, asked};
use crate::listener::answer::ok;
use crate::listener::{Answer, Refusal};

/// `GET /v1/training-jobs`
pub async fn get(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let jobs = shared.app.store.read(|reader| reader.job_listings()).await;
    let jobs = jobs.map_err(|error| Refusal::ask(asked(&request), &error))?;
    ok(&Jobs { jobs: jobs.into_iter().map(job).collect() })
}

fn job(job: JobListing) -> Job {
    Job {
        run: job.run,
        kind: job.kind,
        name: job.name,
        status: job.status,
        reason: job.reason,
        checkpoint: job.checkpoint,
        examples: job.examples,
        step: job.step,
        loss: job.loss,
        held_out_accuracy: job.held_out_accuracy,
        calibration_error: job.calibration_error,
        created_ms: job.created_ms,
        started_ms: job.started_ms,
        ended_ms: job.ended_ms,
    }
}
