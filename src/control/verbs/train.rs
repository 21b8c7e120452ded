//! `train sft`, `train reward` and `train preference`: take conversations or preferences in, and have a
//! model trained on them.
//!
//! The lines are checked and written, in one canonical form, to the upload's own file in the state
//! folder; the job's immutable folder is made from it.

use actix_web::{HttpRequest, web};
use rlhfd_domain::{JobKind, JobName, UploadId};
use rlhfd_protocol::control::{JobAdded, UploadQuery, check_name};
use rlhfd_store::{NewUpload, SetAsked, Upload};

use super::{Shared, asked, place};
use crate::examples::{Examples, data_of, example_of};
use crate::handles::{AskError, Command};
use crate::listener::answer::ok;
use crate::listener::intake::{Opened, Report, check_key, open};
use crate::listener::{Answer, Peer, Refusal, drain};

/// `POST /v1/training-jobs/{kind}/{name}`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    job: web::Path<(String, String)>,
    query: web::Query<UploadQuery>,
    mut payload: web::Payload,
) -> Answer {
    let added = add(&shared, &request, &job, query.into_inner(), &mut payload).await;
    if added.is_err() {
        drain(&mut payload).await;
    }
    ok(&added?)
}

async fn add(
    shared: &Shared,
    request: &HttpRequest,
    (kind, name): &(String, String),
    query: UploadQuery,
    payload: &mut web::Payload,
) -> Result<JobAdded, Refusal> {
    let kind = JobKind::parse(kind).map_err(|error| {
        Refusal::new(404, error.to_string(), asked(request), "`GET /v1` lists what there is")
    })?;
    let name = check_name("training job", name).map_err(|e| Refusal::with(400, e))?;
    check_key(query.client_key.as_deref())?;
    let _place = place(&shared.uploads, "uploads", request)?;
    let job = JobName { kind, name };
    let data = data_of(kind);
    let new = NewUpload {
        client_key: query.client_key,
        kind: data,
        name: job.name.clone(),
        set: SetAsked::default(),
    };
    let uid = Peer::of(request).uid;
    let (upload, report, repeated) = match open(&shared.app.store, new, &asked(request)).await? {
        Opened::Done(upload) => {
            drain(payload).await;
            (upload, Report::default(), true)
        }
        Opened::Fresh(intake) => {
            free_to_take(shared, &job).await?;
            let id = intake.id();
            let mut sink = Examples::create(&shared.app.store, &shared.app.places, id).await?;
            let skip_bad = query.skip_bad.unwrap_or(false);
            let (intake, report) =
                intake.take(payload, example_of(kind), &mut sink, skip_bad).await?;
            let (kept, bad) = (sink.count()?, report.bad);
            intake.write(move |store| store.count_lines(id, kept, 0)).await?;
            let upload = intake.publish(bad, uid).await?;
            sink.keep();
            (upload, report, false)
        }
    };
    if !repeated || !made_a_job(shared, request, upload.id).await? {
        still_there(shared, &job, upload.id)?;
        let command = Command::Train { job: job.clone(), upload: upload.id };
        order(shared, request, upload.id, command).await?;
    }
    Ok(told(job.to_string(), &upload, report, repeated))
}

/// Makes the job. Where that is refused, the examples are of no use to anyone.
async fn order(
    shared: &Shared,
    request: &HttpRequest,
    upload: UploadId,
    command: Command,
) -> Result<(), Refusal> {
    let told = shared.app.iteration.order(command, Peer::of(request).uid).await;
    match told {
        Ok(_) => Ok(()),
        Err(error) => {
            if matches!(error, AskError::Refused(_)) {
                let _ = tokio::fs::remove_file(shared.app.places.upload_file(upload.get())).await;
            }
            Err(Refusal::ask(asked(request), &error))
        }
    }
}

/// Whether a job was made from this upload before.
async fn made_a_job(
    shared: &Shared,
    request: &HttpRequest,
    upload: UploadId,
) -> Result<bool, Refusal> {
    let known = shared.app.store.read(move |reader| Ok(reader.job_of_upload(upload)?.is_some()));
    known.await.map_err(|error| Refusal::ask(asked(request), &error))
}

/// Whether the active run has a job that holds this name; none where no run is open.
async fn has_job(shared: &Shared, job: &JobName) -> Result<Option<bool>, Refusal> {
    let wanted = job.clone();
    let known = shared.app.store.read(move |reader| {
        let Some(run) = reader.active_run()? else { return Ok(None) };
        let known = reader.job_by_name(run.id, wanted.kind, wanted.name.as_str())?;
        Ok(Some(known.is_some_and(|job| !job.status.leaves_its_name())))
    });
    known.await.map_err(|error| Refusal::ask(job.to_string(), &error))
}

/// Told before the body is read, where it can be known by then that it would be in vain.
async fn free_to_take(shared: &Shared, job: &JobName) -> Result<(), Refusal> {
    let (what, mend) = match has_job(shared, job).await? {
        Some(false) => return Ok(()),
        Some(true) => (
            format!("the run has a training job {job} already"),
            "choose another name; `rlhfctl jobs` lists them",
        ),
        None => (
            "no run is open that the job could belong to".to_owned(),
            "`rlhfctl status` says what is missing",
        ),
    };
    Err(Refusal::new(409, what, job.to_string(), mend))
}

/// An upload that was taken before, whose job was refused then: its examples went with it.
fn still_there(shared: &Shared, job: &JobName, upload: UploadId) -> Result<(), Refusal> {
    if shared.app.places.upload_file(upload.get()).exists() {
        return Ok(());
    }
    let mend = "send them again, with another client key";
    Err(Refusal::new(409, "the examples of this upload are gone", job.to_string(), mend))
}

fn told(job: String, upload: &Upload, report: Report, repeated: bool) -> JobAdded {
    JobAdded {
        job,
        lines: upload.lines,
        examples: upload.kept,
        bad: upload.bad,
        evaluation_prompts: upload.evaluation_prompts,
        bad_lines: report.bad_lines,
        repeated,
    }
}
