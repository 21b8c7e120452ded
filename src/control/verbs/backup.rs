//! `backup`: a whole copy of the database, made while it is in use.

use actix_web::{HttpRequest, web};
use rlhfd_protocol::control::Done;

use super::{Shared, asked, body, place};
use crate::handles::now_ms;
use crate::listener::answer::ok;
use crate::listener::{Answer, Refusal};

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
    ok(&Done { message: format!("the database is copied to {}", path.display()) })
}
