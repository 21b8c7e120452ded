//! `prompts`: take an upload of prompts in, list the sets, and order them.
//!
//! Rows go to the store in short batches under an upload row, and become visible by one small
//! transaction at the end: nothing of an upload that was refused or cut off is ever seen.

use actix_web::{HttpRequest, web};
use rlhfd_domain::limits::UPLOAD_BATCH_ROWS;
use rlhfd_domain::prompt::Prompt;
use rlhfd_domain::{Name, UploadId};
use rlhfd_protocol::control::{
    Done, PromptSet, PromptSetOrder, PromptSets, PromptsAdded, PromptsQuery, check_name, lines,
};
use rlhfd_store::{NewPrompt, NewUpload, SetAsked, Upload, UploadKind};

use super::{Shared, asked, place};
use crate::handles::{Command, StoreHandle, now_ms};
use crate::listener::answer::ok;
use crate::listener::intake::{Opened, Report, Sink, check_key, open};
use crate::listener::{Answer, Peer, Refusal, drain, json};

/// Bytes of messages in a batch, beyond which it is sent early.
const BATCH_BYTES: usize = 1 << 20;

/// `GET /v1/prompt-sets`
pub async fn get(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let sets = shared.app.store.read(|reader| {
        let run = reader.active_run()?.map(|run| run.id);
        reader.prompt_sets(run)
    });
    let sets = sets.await.map_err(|error| Refusal::ask(asked(&request), &error))?;
    let prompt_sets = sets
        .into_iter()
        .map(|set| PromptSet {
            fresh: set.prompts.saturating_sub(set.reserved).saturating_sub(set.drawn),
            name: set.name,
            prompts: set.prompts,
            reserved: set.reserved,
            reserve_share: set.reserve_share,
            priority: set.priority,
            weight: set.weight,
            drawn: set.drawn,
        })
        .collect();
    ok(&PromptSets { prompt_sets })
}

/// `POST /v1/prompt-sets/{name}`
pub async fn order(
    shared: web::Data<Shared>,
    request: HttpRequest,
    name: web::Path<String>,
    mut payload: web::Payload,
) -> Answer {
    let name = check_name("prompt set", &name).map_err(|e| Refusal::with(400, e))?;
    let order: PromptSetOrder = json(&mut payload).await?;
    order.check().map_err(|e| Refusal::with(400, e))?;
    if order == PromptSetOrder::default() {
        let mend = "send a priority, a weight, or both";
        return Err(Refusal::new(400, "nothing of the set would change", asked(&request), mend));
    }
    let (wanted, uid) = ((order.priority, order.weight), Peer::of(&request).uid);
    let write = shared
        .app
        .store
        .write(move |store| store.order_prompt_set(&name, wanted, uid, now_ms()))
        .await;
    let set = write.map_err(|error| Refusal::ask(asked(&request), &error))?;
    let (name, priority, weight) = (set.name, set.priority, set.weight);
    let message =
        format!("{name} has priority {priority} and weight {weight} from the next draw on");
    ok(&Done { message })
}

/// `POST /v1/prompt-sets/{name}/prompts`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    name: web::Path<String>,
    query: web::Query<PromptsQuery>,
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
    query: PromptsQuery,
    payload: &mut web::Payload,
) -> Result<PromptsAdded, Refusal> {
    let name = check_name("prompt set", name).map_err(|e| Refusal::with(400, e))?;
    check_key(query.client_key.as_deref())?;
    if let Some(share) = query.reserve.filter(|share| !(0.0..1.0).contains(share)) {
        return Err(Refusal::new(
            400,
            format!("a share of {share} cannot be reserved"),
            asked(request),
            "reserve takes a number from 0 to below 1, such as 0.1",
        ));
    }
    PromptSetOrder { priority: query.priority, weight: query.weight }
        .check()
        .map_err(|e| Refusal::with(400, e))?;
    let _place = place(&shared.uploads, "uploads", request)?;
    let new = NewUpload {
        client_key: query.client_key,
        kind: UploadKind::Prompts,
        name: name.clone(),
        set: SetAsked {
            reserve_share: query.reserve,
            priority: query.priority,
            weight: query.weight,
        },
    };
    let intake = match open(&shared.app.store, new, &asked(request)).await? {
        Opened::Fresh(intake) => intake,
        Opened::Done(upload) => {
            drain(payload).await;
            return Ok(sentence(&name, &upload, Report::default(), true));
        }
    };
    let skip_bad = query.skip_bad.unwrap_or(false);
    let mut sink = Batches::new(shared.app.store.clone(), intake.id(), asked(request));
    let taken = intake.take(payload, lines::prompt_line, &mut sink, skip_bad).await;
    let (intake, report) = taken?;
    let uid = Peer::of(request).uid;
    let upload = intake.publish(report.bad, uid).await?;
    // The iteration actor also looks by itself, so that a full mailbox loses nothing.
    let _ = shared.app.iteration.order(Command::UploadPublished, uid).await;
    Ok(sentence(&name, &upload, report, false))
}

fn sentence(name: &Name, upload: &Upload, report: Report, repeated: bool) -> PromptsAdded {
    PromptsAdded {
        set: name.to_string(),
        lines: upload.lines,
        added: upload.kept,
        reserved: upload.reserved,
        duplicates: upload.duplicates,
        bad: upload.bad,
        bad_lines: report.bad_lines,
        repeated,
    }
}

/// Prompts on their way to the store, a batch at a time.
struct Batches {
    store: StoreHandle,
    upload: UploadId,
    place: String,
    rows: Vec<NewPrompt>,
    bytes: usize,
}

impl Batches {
    fn new(store: StoreHandle, upload: UploadId, place: String) -> Self {
        Self { store, upload, place, rows: Vec::new(), bytes: 0 }
    }

    async fn flush(&mut self) -> Result<(), Refusal> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let upload = self.upload;
        // It waits for its turn: the peer is held back by this, and nobody else.
        let appended = self.store.write(move |store| store.append_prompts(upload, &rows)).await;
        appended.map(|_| ()).map_err(|error| Refusal::ask(self.place.clone(), &error))
    }
}

impl Sink for Batches {
    type Item = Prompt;

    async fn take(&mut self, prompt: Prompt) -> Result<(), Refusal> {
        let messages = lines::canonical(&prompt);
        self.bytes += messages.len();
        let (sha256, folded) = (prompt.sha256(), prompt.folded());
        self.rows.push(NewPrompt { messages, sha256, folded });
        if self.rows.len() >= UPLOAD_BATCH_ROWS || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Refusal> {
        self.flush().await
    }
}
