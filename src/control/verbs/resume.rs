//! `resume`: go on after a pause.

use actix_web::{HttpRequest, web};

use super::{Shared, body, order};
use crate::handles::Command;
use crate::listener::Answer;

/// `POST /v1/resume`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    body(&request, &mut payload, &[]).await?;
    order(&shared, &request, Command::Resume).await
}
