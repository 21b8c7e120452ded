//! `doctor`: everything is looked at once, to the last byte of every checkpoint.

use actix_web::{HttpRequest, web};

use super::{Shared, asked, body, place};
use crate::doctor;
use crate::handles::AskError;
use crate::listener::answer::ok;
use crate::listener::{Answer, Refusal};

/// `POST /v1/doctor`. It reads whole files, and so only one is on at a time.
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    body(&request, &mut payload, &[]).await?;
    let _place = place(&shared.doctors, "examinations", &request)?;
    let (places, live) = (shared.app.places.clone(), shared.app.live.now());
    let looked = actix_rt::task::spawn_blocking(move || doctor::examine(&places, &live)).await;
    ok(&looked.map_err(|_| Refusal::ask(asked(&request), &AskError::Gone))?)
}
