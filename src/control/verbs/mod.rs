//! One file a verb, named as its twin in `src/client/verbs/`.
//!
//! In: a request that the listener let pass. Out: rows, as JSON, or a command's sentence. A verb asks
//! the store and the iteration actor through their handles, and acknowledges after the commit. May not
//! enter: SQL text, decisions on what runs when.

mod backup;
mod cancel;
mod checkpoints;
mod doctor;
mod events;
mod gpus;
mod iterations;
mod jobs;
mod pause;
mod pin;
mod preferences;
mod prompts;
mod resume;
mod rollback;
mod runs;
mod sql;
mod start;
mod status;
mod train;

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, Resource, web};
use rlhfd_domain::limits::MESSAGE_CHARS_MAX;
use rlhfd_protocol::control::{Command as Body, Done};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::handles::{AppState, Command};
use crate::listener::answer::ok;
use crate::listener::{Answer, Peer, Refusal, json};

/// Uploads at once.
const UPLOADS_MAX: usize = 16;

/// Event streams at once.
const STREAMS_MAX: usize = 64;

/// Backups at once.
const BACKUPS_MAX: usize = 1;

/// Examinations at once.
const DOCTORS_MAX: usize = 1;

/// Questions to `sql` at once.
const SQL_MAX: usize = 2;

/// What all verbs share: the daemon's handles, and how many may do costly things at once.
pub struct Shared {
    /// The daemon.
    pub app: AppState,
    uploads: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    sql: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    doctors: Arc<Semaphore>,
}

impl Shared {
    /// Over the daemon's handles.
    #[must_use]
    pub fn new(app: AppState) -> Self {
        Self {
            app,
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            sql: Arc::new(Semaphore::new(SQL_MAX)),
            backups: Arc::new(Semaphore::new(BACKUPS_MAX)),
            doctors: Arc::new(Semaphore::new(DOCTORS_MAX)),
        }
    }
}

/// A place among those that may do something at once.
///
/// Errors: 503 where all are taken.
fn place(
    places: &Arc<Semaphore>,
    what: &'static str,
    request: &HttpRequest,
) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let what = format!("too many {what} are open already");
        Refusal::new(503, what, asked(request), "try again in a second").retry_after(1)
    })
}

/// The request as an error's place.
fn asked(request: &HttpRequest) -> String {
    let path: String = request.path().chars().take(200).collect();
    format!("{} {path}", request.method())
}

/// All routes.
pub fn routes(config: &mut web::ServiceConfig) {
    let all = [
        at("/v1", "GET").route(web::get().to(list)),
        at("/v1/status", "GET").route(web::get().to(status::get)),
        at("/v1/runs", "GET").route(web::get().to(runs::get)),
        at("/v1/prompt-sets", "GET").route(web::get().to(prompts::get)),
        at("/v1/prompt-sets/{name}", "POST").route(web::post().to(prompts::order)),
        at("/v1/prompt-sets/{name}/prompts", "POST").route(web::post().to(prompts::post)),
        at("/v1/preference-sets", "GET").route(web::get().to(preferences::get)),
        at("/v1/preference-sets/{name}/preferences", "POST")
            .route(web::post().to(preferences::post)),
        at("/v1/iterations", "GET").route(web::get().to(iterations::get)),
        at("/v1/checkpoints", "GET").route(web::get().to(checkpoints::get)),
        at("/v1/training-jobs", "GET").route(web::get().to(jobs::get)),
        at("/v1/training-jobs/{kind}/{name}", "POST").route(web::post().to(train::post)),
        at("/v1/devices", "GET").route(web::get().to(gpus::get)),
        at("/v1/events", "GET").route(web::get().to(events::get)),
        at("/v1/start", "POST").route(web::post().to(start::post)),
        at("/v1/pause", "POST").route(web::post().to(pause::post)),
        at("/v1/resume", "POST").route(web::post().to(resume::post)),
        at("/v1/cancel", "POST").route(web::post().to(cancel::post)),
        at("/v1/rollback", "POST").route(web::post().to(rollback::post)),
        at("/v1/pin", "POST").route(web::post().to(pin::post)),
        at("/v1/unpin", "POST").route(web::post().to(pin::unpin)),
        at("/v1/backup", "POST").route(web::post().to(backup::post)),
        at("/v1/doctor", "POST").route(web::post().to(doctor::post)),
        at("/v1/sql", "POST").route(web::post().to(sql::post)),
    ];
    for resource in all {
        config.service(resource);
    }
}

/// A resource that takes one method and says so to all others.
fn at(path: &str, method: &'static str) -> Resource {
    web::resource(path).default_service(web::route().to(move |request: HttpRequest| async move {
        let mut answer = Refusal::new(
            405,
            format!("{} is not what this takes", request.method()),
            asked(&request),
            format!("send {method}"),
        )
        .into_answer();
        let allow = actix_web::http::header::HeaderValue::from_static(method);
        answer.headers_mut().insert(actix_web::http::header::ALLOW, allow);
        answer
    }))
}

/// `GET /v1`: what there is.
async fn list() -> Answer {
    Ok(HttpResponse::Ok().json(json!({
        "GET /v1/status": "what runs, how fast, how long still, and what it waits for",
        "GET /v1/runs": "the runs of the state folder",
        "GET /v1/prompt-sets": "prompt sets and their counts",
        "POST /v1/prompt-sets/{name}": { "priority": "P (optional)", "weight": "W (optional)" },
        "POST /v1/prompt-sets/{name}/prompts?reserve=&priority=&weight=&skip_bad=&client_key=": "JSONL, one prompt a line",
        "GET /v1/preference-sets": "sets of offline preferences and their counts",
        "POST /v1/preference-sets/{name}/preferences?skip_bad=&client_key=": "JSONL, one preference a line",
        "GET /v1/iterations?run=": "the view iteration_history",
        "GET /v1/checkpoints?run=&lineage=": "checkpoints; with lineage=NAME or head, the line back to the initial policy",
        "GET /v1/training-jobs": "training jobs",
        "POST /v1/training-jobs/{kind}/{name}?skip_bad=&client_key=": "JSONL; kind sft: one conversation a line, kinds reward and preference: one preference",
        "GET /v1/devices?history=": "GPUs (or the CPU), what holds them, and so many rows of their timeline",
        "GET /v1/events?since=&last=&follow=": "events as NDJSON, or as SSE by Accept: text/event-stream",
        "POST /v1/start": {},
        "POST /v1/pause": { "reason": "why (optional)" },
        "POST /v1/resume": {},
        "POST /v1/cancel": { "iteration": "N (optional)", "job": "KIND/NAME (instead)" },
        "POST /v1/rollback": { "iteration": "N; 0 is the initial policy", "reason": "why (optional)" },
        "POST /v1/pin": { "checkpoint": "NAME" },
        "POST /v1/unpin": { "checkpoint": "NAME" },
        "POST /v1/backup": {},
        "POST /v1/doctor": {},
        "POST /v1/sql": { "sql": "one SELECT", "rows_max": "N (optional)" },
    })))
}

/// Reads a command's body. Every verb refuses the keys that it does not take, rather than do less than
/// it was asked.
async fn body(
    request: &HttpRequest,
    payload: &mut web::Payload,
    takes: &[&str],
) -> Result<Body, Refusal> {
    let body: Body = json(payload).await?;
    let given = [
        ("reason", body.reason.is_some()),
        ("iteration", body.iteration.is_some()),
        ("job", body.job.is_some()),
        ("checkpoint", body.checkpoint.is_some()),
    ];
    match given.into_iter().find(|(key, given)| *given && !takes.contains(key)) {
        None => Ok(body),
        Some((key, _)) => Err(Refusal::new(
            400,
            format!("`{key}` means nothing here"),
            asked(request),
            match takes {
                [] => "send {}".to_owned(),
                takes => format!("it takes {}", takes.join(" or ")),
            },
        )),
    }
}

/// Why a command was given, which the events keep.
///
/// Errors: 400 where it is too long for them.
fn reason(request: &HttpRequest, body: Body) -> Result<Option<String>, Refusal> {
    let characters = body.reason.as_ref().map_or(0, |reason| reason.chars().count());
    if characters > MESSAGE_CHARS_MAX {
        let what = format!("the reason has {characters} characters");
        let mend = format!("say it in {MESSAGE_CHARS_MAX}");
        return Err(Refusal::new(400, what, asked(request), mend));
    }
    Ok(body.reason)
}

/// Orders a command of the iteration actor and tells what it did.
async fn order(shared: &Shared, request: &HttpRequest, command: Command) -> Answer {
    let uid = Peer::of(request).uid;
    let told = shared.app.iteration.order(command, uid).await;
    let told = told.map_err(|error| Refusal::ask(asked(request), &error))?;
    ok(&Done { message: told.message })
}
