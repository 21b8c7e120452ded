//! `start`: start an iteration with the prompts that are there.

use actix_web::{HttpRequest, web};

use super::{Shared, body, order};
use crate::handles::Command;
use crate::listener::Answer;

/// `POST /v1/start`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    body(&request, &mut payload, &[]).await?;
    order(&shared, &request, Command::Start).await
}
