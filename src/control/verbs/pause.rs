//! `pause`: let running units finish, and begin no others.

use actix_web::{HttpRequest, web};

use super::{Shared, body, order, reason};
use crate::handles::Command;
use crate::listener::Answer;

/// `POST /v1/pause`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    let reason = reason(&request, body(&request, &mut payload, &["reason"]).await?)?;
    order(&shared, &request, Command::Pause { reason }).await
}
