//! The training jobs that the configuration itself asks for, by the `data` of
//! `[sft]`, `[reward]` and `[preference]`.
//!
//! In: files and settings. Out: one job for the same content, settings and name, however often it is
//! looked at, made through an upload as a client's is; or sentences. A job that stands is never made
//! again: other data under its name are told. May not enter: what a line means.

use rlhfd_config::CheckedConfig;
use rlhfd_domain::{JobName, Name, UploadId};
use rlhfd_store::{NewUpload, Run, SetAsked};

use crate::actors::iteration::OrderContext;
use crate::commands;
use crate::examples::{self, Examples, FilePieces, Named};
use crate::handles::{AskError, with_causes};
use crate::listener::Refusal;
use crate::listener::intake::{Opened, open};
use crate::stages::sums;

/// Bad lines that a sentence names.
const LINES_TOLD: usize = 3;

/// What became of the configuration's data.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// A job was made: look again.
    pub(super) changed: bool,
    /// Data that cannot be taken: the run waits.
    pub(super) waits: Vec<String>,
    /// Data that the standing job of their name was not made from.
    pub(super) notes: Vec<String>,
}

/// Makes the jobs that are missing.
pub(super) async fn make(
    ctx: &OrderContext,
    config: &CheckedConfig,
    run: &Run,
) -> Result<Asked, AskError> {
    let mut asked = Asked::default();
    for named in examples::named(config) {
        let name = match Name::parse(&named.data.job, "training job") {
            Ok(name) => name,
            Err(error) => {
                asked.waits.push(format!("[{}] job: {error}", named.kind));
                continue;
            }
        };
        let job = JobName { kind: named.kind, name };
        match one(ctx, run, &named, &job).await? {
            One::Stands => {}
            One::Made => asked.changed = true,
            One::Waits(sentence) => asked.waits.push(sentence),
            One::Differs(sentence) => asked.notes.push(sentence),
        }
    }
    Ok(asked)
}

enum One {
    Stands,
    Made,
    Waits(String),
    Differs(String),
}

async fn one(
    ctx: &OrderContext,
    run: &Run,
    named: &Named<'_>,
    job: &JobName,
) -> Result<One, AskError> {
    let key = match key(ctx, run, named, job).await? {
        Ok(key) => key,
        Err(sentence) => return Ok(One::Waits(sentence)),
    };
    if let Some(sentence) = ctx.models.refused(job.kind, &key) {
        return Ok(One::Waits(sentence));
    }
    let (id, wanted, sought) = (run.id, job.clone(), key.clone());
    let (upload, made, stands) = ctx
        .stage
        .store
        .read(move |r| {
            let upload = r.upload_by_key(&sought)?.filter(|upload| upload.state == "published");
            let made = match &upload {
                Some(upload) => r.job_of_upload(upload.id)?.is_some(),
                None => false,
            };
            let known = r.job_by_name(id, wanted.kind, wanted.name.as_str())?;
            let stands = known.is_some_and(|job| !job.status.leaves_its_name());
            Ok((upload.map(|upload| upload.id), made, stands))
        })
        .await?;
    match (upload, made, stands) {
        (_, true, _) => Ok(One::Stands),
        (_, false, true) => Ok(One::Differs(format!(
            "the data or settings of [{0}] are not those that {job} was made with, which stays as it \
             is; write another job = \"NAME\" in [{0}] to train on them",
            job.kind
        ))),
        (Some(upload), false, false) => order(ctx, run, job, upload).await,
        (None, false, false) => match take(ctx, named, job, key.clone()).await {
            Ok(upload) => order(ctx, run, job, upload).await,
            Err(refusal) => {
                let sentence = told(job, &refusal);
                if refusal.is_about_content() {
                    ctx.models.refuse(job.kind, &key, &sentence);
                }
                Ok(One::Waits(sentence))
            }
        },
    }
}

/// What names content, settings and job: the key of the upload.
async fn key(
    ctx: &OrderContext,
    run: &Run,
    named: &Named<'_>,
    job: &JobName,
) -> Result<Result<String, String>, AskError> {
    let mut text = format!("{} {job}\n{}", run.name, named.settings);
    for file in &named.data.files {
        let (models, path) = (ctx.models.clone(), file.place.path.clone());
        let read = actix_rt::task::spawn_blocking(move || models.data_sum(&path)).await;
        match read.map_err(|_| AskError::Gone)? {
            Ok(sum) => text.push_str(&format!("\n{sum} {:?}", file.weight)),
            Err(error) => {
                let why = with_causes(&error);
                return Ok(Err(format!(
                    "[{}] data names a file that cannot be read: {why}; put it there, or leave it out",
                    job.kind
                )));
            }
        }
    }
    Ok(Ok(format!("configuration/{}", sums::text_sum(&text))))
}

/// Takes the files in, by an upload.
async fn take(
    ctx: &OrderContext,
    named: &Named<'_>,
    job: &JobName,
    key: String,
) -> Result<UploadId, Refusal> {
    let (kind, place) = (examples::data_of(job.kind), format!("[{}] data", job.kind));
    let new =
        NewUpload { client_key: Some(key), kind, name: job.name.clone(), set: SetAsked::default() };
    let mut intake = match open(&ctx.stage.store, new, &place).await? {
        Opened::Done(upload) => return Ok(upload.id),
        Opened::Fresh(intake) => intake,
    };
    let id = intake.id();
    let mut sink = Examples::create(&ctx.stage.store, &ctx.stage.places, id).await?;
    for file in &named.data.files {
        let path = &file.place.path;
        let mut pieces = FilePieces::open(path).await?;
        sink.weigh(file.weight);
        let parse = examples::example_of(job.kind);
        let taken = intake.take(&mut pieces, parse, &mut sink, false).await;
        (intake, _) = taken.map_err(|refusal| refusal.at(path.display().to_string()))?;
    }
    let kept = sink.count()?;
    intake.write(move |store| store.count_lines(id, kept, 0)).await?;
    let upload = intake.publish(0, None).await?;
    sink.keep();
    Ok(upload.id)
}

async fn order(
    ctx: &OrderContext,
    run: &Run,
    job: &JobName,
    upload: UploadId,
) -> Result<One, AskError> {
    match commands::train(ctx, run, job, upload, None).await {
        Ok(_) => Ok(One::Made),
        Err(AskError::Refused(sentence)) => Ok(One::Waits(sentence)),
        Err(other) => Err(other),
    }
}

fn told(job: &JobName, refusal: &Refusal) -> String {
    let detail = refusal.detail();
    let lines: Vec<String> = detail
        .lines
        .iter()
        .take(LINES_TOLD)
        .map(|bad| format!("line {} {}", bad.line, bad.reason))
        .collect();
    let (lines, mend) = match lines.is_empty() {
        true => (String::new(), detail.mend.as_str()),
        false => {
            (format!(" ({})", lines.join(", ")), "mend the file; `rlhfd check` tells of every line")
        }
    };
    format!("[{}] data, {}: {}{lines}; {mend}", job.kind, detail.place, detail.what)
}
