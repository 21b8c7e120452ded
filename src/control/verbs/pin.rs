//! `pin` and `unpin`: whether a checkpoint's files stay, however old they are.

use actix_web::{HttpRequest, web};

use super::{Shared, asked, body, order};
use crate::handles::Command;
use crate::listener::{Answer, Refusal};

/// `POST /v1/pin`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    pinned(&shared, &request, payload, true).await
}

/// `POST /v1/unpin`
pub async fn unpin(
    shared: web::Data<Shared>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    pinned(&shared, &request, payload, false).await
}

async fn pinned(
    shared: &Shared,
    request: &HttpRequest,
    mut payload: web::Payload,
    pinned: bool,
) -> Answer {
    let body = body(request, &mut payload, &["checkpoint"]).await?;
    let Some(checkpoint) = body.checkpoint else {
        return Err(Refusal::new(
            400,
            "a checkpoint is missing".to_owned(),
            asked(request),
            "send {\"checkpoint\": NAME}; `rlhfctl checkpoints` lists them",
        ));
    };
    order(shared, request, Command::Pin { checkpoint, pinned }).await
}
