//! `train reward`: take preferences in, and have a reward model trained on them.
//!
//! The lines are checked and written, in one canonical form, to the upload's own file in the state
//! folder; the job's immutable folder is made from it.

use std::path::PathBuf;

use actix_web::{HttpRequest, web};
use rlhfd_domain::UploadId;
use rlhfd_protocol::control::lines::PreferenceLine;
use rlhfd_protocol::control::{JobAdded, UploadQuery, check_name, lines};
use rlhfd_store::{NewUpload, Upload, UploadKind};
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};

use super::{Shared, asked, place};
use crate::handles::{AskError, Command};
use crate::listener::answer::ok;
use crate::listener::intake::{Opened, Report, Sink, check_key, open};
use crate::listener::{Answer, Peer, Refusal, drain};

/// `POST /v1/training-jobs/reward/{name}`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    name: web::Path<String>,
    query: web::Query<UploadQuery>,
    mut payload: web::Payload,
) -> Answer {
    let added = add(&shared, &request, &name, query.into_inner(), &mut payload).await;
    if added.is_err() {
        drain(&mut payload).await;
    }
    ok(&added?)
}

async fn add(
    shared: &Shared,
    request: &HttpRequest,
    name: &str,
    query: UploadQuery,
    payload: &mut web::Payload,
) -> Result<JobAdded, Refusal> {
    let name = check_name("training job", name).map_err(|e| Refusal::with(400, e))?;
    check_key(query.client_key.as_deref())?;
    let _place = place(&shared.uploads, "uploads", request)?;
    let job = format!("reward/{name}");
    let new = NewUpload {
        client_key: query.client_key,
        kind: UploadKind::Preferences,
        name: name.clone(),
        reserve_share: None,
    };
    let uid = Peer::of(request).uid;
    let (upload, report, repeated) = match open(&shared.app, new, &asked(request)).await? {
        Opened::Done(upload) => {
            drain(payload).await;
            (upload, Report::default(), true)
        }
        Opened::Fresh(intake) => {
            free_to_take(shared, &job, name.as_str()).await?;
            let id = intake.id();
            let mut sink = Examples::create(shared.app.places.upload_file(id.get())).await?;
            let skip_bad = query.skip_bad.unwrap_or(false);
            let (intake, report) =
                intake.take(payload, lines::preference_line, &mut sink, skip_bad).await?;
            let (kept, bad) = (sink.examples, report.bad);
            intake.write(move |store| store.count_lines(id, kept, 0)).await?;
            let upload = intake.publish(bad, uid, &format!("preferences for {job}")).await?;
            sink.keep();
            (upload, report, false)
        }
    };
    if !repeated || has_job(shared, name.as_str()).await? != Some(true) {
        still_there(shared, &job, upload.id)?;
        order(shared, request, upload.id, Command::TrainReward { name, upload: upload.id }).await?;
    }
    Ok(told(job, &upload, report, repeated))
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

/// Whether the active run has a job of this name; none where no run is open.
async fn has_job(shared: &Shared, name: &str) -> Result<Option<bool>, Refusal> {
    let (place, name) = (format!("reward/{name}"), name.to_owned());
    let known = shared.app.store.read(move |reader| {
        let Some(run) = reader.active_run()? else { return Ok(None) };
        Ok(Some(reader.job_by_name(run.id, "reward", &name)?.is_some()))
    });
    known.await.map_err(|error| Refusal::ask(place, &error))
}

/// Told before the body is read, where it can be known by then that it would be in vain.
async fn free_to_take(shared: &Shared, job: &str, name: &str) -> Result<(), Refusal> {
    let (what, mend) = match has_job(shared, name).await? {
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
    Err(Refusal::new(409, what, job, mend))
}

/// An upload that was taken before, whose job was refused then: its examples went with it.
fn still_there(shared: &Shared, job: &str, upload: UploadId) -> Result<(), Refusal> {
    if shared.app.places.upload_file(upload.get()).exists() {
        return Ok(());
    }
    let mend = "send them again, with another client key";
    Err(Refusal::new(409, "the examples of this upload are gone", job, mend))
}

fn told(job: String, upload: &Upload, report: Report, repeated: bool) -> JobAdded {
    JobAdded {
        job,
        lines: upload.lines,
        examples: upload.kept,
        bad: upload.bad,
        bad_lines: report.bad_lines,
        repeated,
    }
}

/// The upload's file. It goes away with this value unless it is kept.
struct Examples {
    path: PathBuf,
    file: BufWriter<File>,
    examples: u64,
    kept: bool,
}

impl Examples {
    async fn create(path: PathBuf) -> Result<Self, Refusal> {
        let file = File::create(&path).await.map_err(|error| unwritten(&error))?;
        Ok(Self { path, file: BufWriter::new(file), examples: 0, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Examples {
    fn drop(&mut self) {
        if !self.kept {
            // A leftover is swept at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Sink for Examples {
    type Item = PreferenceLine;

    async fn take(&mut self, line: PreferenceLine) -> Result<(), Refusal> {
        let mut json = serde_json::to_vec(&line).map_err(|e| unwritten(&e.into()))?;
        json.push(b'\n');
        self.file.write_all(&json).await.map_err(|e| unwritten(&e))?;
        self.examples += 1;
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Refusal> {
        self.file.flush().await.map_err(|e| unwritten(&e))?;
        self.file.get_ref().sync_all().await.map_err(|e| unwritten(&e))
    }
}

fn unwritten(error: &std::io::Error) -> Refusal {
    Refusal::new(
        507,
        format!("the examples could not be written ({error})"),
        "the state folder",
        "make room, or look at the disk; then send them again",
    )
}
