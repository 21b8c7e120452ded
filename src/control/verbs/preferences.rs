//! `preferences`: take an upload of offline preferences in, and list the sets.
//!
//! As with prompts, rows go to the store in short batches under an upload row, and become visible by one
//! small transaction at the end.

use actix_web::{HttpRequest, web};
use rlhfd_domain::UploadId;
use rlhfd_domain::limits::UPLOAD_BATCH_ROWS;
use rlhfd_domain::offline::OfflinePreference;
use rlhfd_protocol::control::{
    PreferenceSet, PreferenceSets, PreferencesAdded, UploadQuery, check_name, lines,
};
use rlhfd_store::{NewOffline, NewUpload, SetAsked, Upload, UploadKind};

use super::{Shared, asked, place};
use crate::handles::{Command, StoreHandle};
use crate::listener::answer::ok;
use crate::listener::intake::{Opened, Report, Sink, check_key, open};
use crate::listener::{Answer, Peer, Refusal, drain};

/// Bytes of texts in a batch, beyond which it is sent early.
const BATCH_BYTES: usize = 1 << 20;

/// `GET /v1/preference-sets`
pub async fn get(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let sets = shared.app.store.read(|reader| reader.preference_sets()).await;
    let sets = sets.map_err(|error| Refusal::ask(asked(&request), &error))?;
    let config = shared.app.config.borrow().clone();
    let preference_sets = sets
        .into_iter()
        .map(|set| PreferenceSet {
            used: config.train.offline.contains(&set.name),
            name: set.name,
            preferences: set.preferences,
            created_ms: set.created_ms,
        })
        .collect();
    ok(&PreferenceSets { preference_sets })
}

/// `POST /v1/preference-sets/{name}/preferences`
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
) -> Result<PreferencesAdded, Refusal> {
    let name = check_name("preference set", name).map_err(|e| Refusal::with(400, e))?;
    check_key(query.client_key.as_deref())?;
    let _place = place(&shared.uploads, "uploads", request)?;
    let new = NewUpload {
        client_key: query.client_key,
        kind: UploadKind::OfflinePreferences,
        name: name.clone(),
        set: SetAsked::default(),
    };
    let intake = match open(&shared.app.store, new, &asked(request)).await? {
        Opened::Fresh(intake) => intake,
        Opened::Done(upload) => {
            drain(payload).await;
            return Ok(added(&upload, Report::default(), true));
        }
    };
    let mut sink = Batches {
        store: shared.app.store.clone(),
        upload: intake.id(),
        place: asked(request),
        rows: Vec::new(),
        bytes: 0,
    };
    let skip_bad = query.skip_bad.unwrap_or(false);
    let (intake, report) = intake.take(payload, lines::offline_line, &mut sink, skip_bad).await?;
    let uid = Peer::of(request).uid;
    let upload = intake.publish(report.bad, uid).await?;
    // The iteration actor also looks by itself, so that a full mailbox loses nothing.
    let _ = shared.app.iteration.order(Command::UploadPublished, uid).await;
    Ok(added(&upload, report, false))
}

fn added(upload: &Upload, report: Report, repeated: bool) -> PreferencesAdded {
    PreferencesAdded {
        set: upload.name.clone(),
        lines: upload.lines,
        added: upload.kept,
        duplicates: upload.duplicates,
        bad: upload.bad,
        evaluation_prompts: upload.evaluation_prompts,
        bad_lines: report.bad_lines,
        repeated,
    }
}

/// Preferences on their way to the store, a batch at a time.
struct Batches {
    store: StoreHandle,
    upload: UploadId,
    place: String,
    rows: Vec<NewOffline>,
    bytes: usize,
}

impl Batches {
    async fn flush(&mut self) -> Result<(), Refusal> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let upload = self.upload;
        // It waits for its turn: the peer is held back by this, and nobody else.
        let appended = self.store.write(move |store| store.append_offline(upload, &rows)).await;
        appended.map(|_| ()).map_err(|error| Refusal::ask(self.place.clone(), &error))
    }
}

impl Sink for Batches {
    type Item = OfflinePreference;

    async fn take(&mut self, pair: OfflinePreference) -> Result<(), Refusal> {
        let messages = lines::canonical(pair.prompt());
        self.bytes += messages.len() + pair.chosen().len() + pair.rejected().len();
        self.rows.push(NewOffline {
            messages,
            chosen: pair.chosen().to_owned(),
            rejected: pair.rejected().to_owned(),
            sha256: pair.sha256(),
            folded: pair.prompt().folded(),
        });
        if self.rows.len() >= UPLOAD_BATCH_ROWS || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Refusal> {
        self.flush().await
    }
}
