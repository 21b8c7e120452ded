//! `backup`: a whole copy of the database, made while it is in use.

use actix_web::{HttpRequest, web};
use rlhfd_protocol::control::Done;
use rlhfd_store::NewEvent;

use super::{Shared, asked, body, place};
use crate::handles::now_ms;
use crate::listener::answer::ok;
use crate::listener::{Answer, Peer, Refusal};

/// `POST /v1/backup`. The daemon chooses the place: a client never names a path.
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    body(&request, &mut payload, &[]).await?;
    let _place = place(&shared.backups, "backups", &request)?;
    let folder = shared.app.places.backups();
    let made = shared.app.store.read(move |reader| reader.backup_into(&folder, now_ms())).await;
    let path = made.map_err(|error| Refusal::ask(asked(&request), &error))?;
    let (uid, copy) = (Peer::of(&request).uid, shared.app.places.relative(&path));
    let event = NewEvent { uid, ..NewEvent::about("backup_made", copy) };
    let told = shared.app.store.write(move |store| store.append_event(&event, now_ms())).await;
    told.map_err(|error| Refusal::ask(asked(&request), &error))?;
    ok(&Done { message: format!("the database is copied to {}", path.display()) })
}
