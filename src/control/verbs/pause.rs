//! `pause`: let running units finish, and begin no others.

use actix_web::{HttpRequest, web};
use rlhfd_domain::limits::MESSAGE_CHARS_MAX;

use super::{Shared, asked, body, order};
use crate::handles::Command;
use crate::listener::{Answer, Refusal};

/// `POST /v1/pause`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    let reason = body(&request, &mut payload, &["reason"]).await?.reason;
    let characters = reason.as_ref().map_or(0, |reason| reason.chars().count());
    if characters > MESSAGE_CHARS_MAX {
        return Err(Refusal::new(
            400,
            format!("the reason has {characters} characters"),
            asked(&request),
            format!("say it in {MESSAGE_CHARS_MAX}"),
        ));
    }
    order(&shared, &request, Command::Pause { reason }).await
}
