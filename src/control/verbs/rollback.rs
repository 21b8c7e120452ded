//! `rollback`: the head becomes what an earlier iteration trained, or the initial policy.

use actix_web::{HttpRequest, web};

use super::{Shared, asked, body, order, reason};
use crate::handles::Command;
use crate::listener::{Answer, Refusal};

/// `POST /v1/rollback`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    let body = body(&request, &mut payload, &["iteration", "reason"]).await?;
    let iteration = body.iteration.and_then(|number| u32::try_from(number).ok());
    let Some(iteration) = iteration else {
        return Err(Refusal::new(
            400,
            "an iteration is missing, or is none".to_owned(),
            asked(&request),
            "send {\"iteration\": N} with the number of an iteration, 0 for the initial policy",
        ));
    };
    let reason = reason(&request, body)?;
    order(&shared, &request, Command::RollBack { iteration, reason }).await
}
